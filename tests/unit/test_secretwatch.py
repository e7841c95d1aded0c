"""What looks over the whole run finds a secret wherever it is shown, fails that test, and shows it no second time.

The inner suites are run as pytest runs ours, each in a process of its own.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Worker, importing_tests
from tests.secretwatch import keep_secret, shows_secret, taken

SECRET = keep_secret("planted-4f1d")
ADDRESS = "postgresql://ann:x@h/d"
LOG = logging.getLogger("pgconcert")


def in_an_exception() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        LOG.exception("it failed")


def in_a_chain() -> None:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise KeyError("other") from error
    except KeyError as error:
        LOG.warning("it failed", exc_info=error)


PLACES: dict[str, Callable[[], None]] = {
    "a message": lambda: LOG.warning(f"connecting with {SECRET}"),  # noqa: G004
    "an argument": lambda: LOG.error("connecting with %s", SECRET),
    "the arguments of no message": lambda: LOG.error("of %(user)s", {"user": "ann", "with": SECRET}),
    "an extra field": lambda: LOG.warning("connecting", extra={"with": [SECRET]}),
    "what nobody had asked for": lambda: LOG.debug("connecting with %s", SECRET),
    "another logger": lambda: logging.getLogger("psycopg.pool").debug("%s", SECRET),
    "any logger": lambda: logging.getLogger("some.thing").error("%s", SECRET),
    "an exception": in_an_exception,
    "a chain": in_a_chain,
    "an address": lambda: LOG.warning("connecting to %s", ADDRESS),
    "a key and its value": lambda: LOG.warning("connecting to host=h password=x"),
    "a warning": lambda: warnings.warn(f"old: {SECRET}", stacklevel=1),
}


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_in(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # no handler writes what is planted into the report of this test, where it would be found a second time
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        PLACES[place]()
    found = taken()
    assert len(found) == 1
    assert "test_secretwatch" in found[0]
    assert not shows_secret(found[0])


def test_it_is_found_on_the_standard_error_of_a_worker() -> None:
    with Worker("import sys; sys.stderr.write(sys.argv[1]); print('done')", SECRET) as other:
        other.expect("done")
    assert taken() == ["the standard error of worker"]


@pytest.mark.parametrize(
    "harmless",
    [
        "postgresql://ann@h:5/d",
        "postgresql://ann:***@h/d",
        "password=***",
        "host=h:5 at 12:30 x@y",
        "embedded:///a:b@c",
    ],
)
def test_what_shows_none(harmless: str) -> None:
    LOG.warning("connecting to %s", harmless)
    assert taken() == []


def test_records_that_nobody_asked_for_go_no_further(caplog: pytest.LogCaptureFixture) -> None:
    """Tests see the records that they would see without it."""
    LOG.debug("unasked")
    LOG.warning("loud")
    with caplog.at_level(logging.DEBUG, "pgconcert"):
        LOG.debug("asked by name")
    with caplog.at_level(logging.DEBUG):
        LOG.debug("asked at the root")
    LOG.info("unasked")
    assert [record.message for record in caplog.records] == ["loud", "asked by name", "asked at the root"]


INNER = f"""
import logging, sys
from tests.secretwatch import keep_secret

def test_quiet():
    logging.getLogger("pgconcert").warning("nothing to see")

def test_record():
    logging.getLogger("pgconcert").debug("connecting with %s", keep_secret({SECRET!r}))

def test_output():
    print("connecting to {ADDRESS}")
"""


def test_the_test_that_shows_it_fails_and_does_not_show_it_again(tmp_path: Path) -> None:
    suite = tmp_path / "test_inner.py"
    suite.write_text(INNER)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.secretwatch", "-p", "no:randomly", "-p", "no:cacheprovider",
         "-rA", "--rootdir", str(tmp_path), "-c", "/dev/null", str(suite)],
        capture_output=True, text=True, env=importing_tests() | {"COLUMNS": "200"}, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "3 passed, 2 errors" in ran.stdout
    assert "a record of logger pgconcert (DEBUG) from" in ran.stdout
    assert "section 'Captured stdout call' of this report" in ran.stdout
    assert SECRET not in ran.stdout + ran.stderr
    assert ADDRESS not in ran.stdout + ran.stderr
