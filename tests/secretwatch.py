"""No log record, no warning and no captured output of the whole run shows a password.

Here lives what looks, and what a test fails with. Theory: a password gets onto a log in a case that nobody thought of,
so no single test can look for it. Here every record that any logger of the run makes is looked at where all of them
pass by (`Logger.handle`), with message, arguments, extra fields and traceback; `pgconcert` and the libraries below it
make theirs at every level, and what nobody had asked for goes no further, so that a test sees the records it always
saw. Warnings are looked at where they are recorded, output when a test is over. A secret is one that was named
(`keep_secret`), or whatever stands where an address has its password. The test in which it is shown fails, and is told
the place; the secret itself is not shown again.
"""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Generator, Iterator
from typing import Any, Final

import pytest

__all__ = ["keep_secret", "look", "shows_secret"]

SHORTEST: Final = 8
"""Characters of a secret that cannot stand in a text by chance."""

_LOUD: Final = ("pgconcert", "psycopg", "asyncio", "asyncpg")
"""Loggers whose records are made at every level."""

_ALL: Final = 1
"""The level that says: nobody but us asked for it."""

_IN_AN_ADDRESS: Final = re.compile(r"\w://[^\s/:@]*:(?!\*+@)[^\s/@]+@|\bpassword=(?!\*)[^\s&]")
_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({})))

_secrets: set[str] = set()
_shown: list[str] = []
"""Places of this test that have shown a secret."""


def keep_secret(text: str) -> str:
    """From now on no record, warning or output may show this text. Returns it."""
    assert len(text) >= SHORTEST, f"a secret of {len(text)} characters may stand anywhere by chance"
    _secrets.add(text)
    return text


def shows_secret(text: str) -> bool:
    """Whether a secret stands in a text, or an address with its password."""
    for secret in _secrets:
        if secret in text:
            return True
    # the plain search comes first because it costs a tenth of the other, and hardly any text has either
    return ("://" in text or "password=" in text) and _IN_AN_ADDRESS.search(text) is not None


def look(place: str, text: str) -> None:
    """Let this test fail, and name the place, if the text shows a secret."""
    if shows_secret(text):
        _shown.append(place)


def taken() -> list[str]:
    """The places that have shown one since the last call."""
    found = list(_shown)
    del _shown[: len(found)]
    return found


def pytest_configure(config: pytest.Config) -> None:
    handle, recorded = logging.Logger.handle, warnings.WarningMessage.__init__

    def looked_at(self: logging.Logger, record: logging.LogRecord) -> None:
        # a record is looked at even if nobody had asked for it
        if any(map(shows_secret, _words(record))):
            _shown.append(
                f"a record of logger {record.name} ({record.levelname}) from {record.pathname}:{record.lineno}"
            )
        if record.levelno >= _asked(self):
            handle(self, record)

    def kept(self: warnings.WarningMessage, message: Warning | str, *more: Any, **named: Any) -> None:
        recorded(self, message, *more, **named)
        look(f"a warning, {type(message).__name__}, of {self.filename}:{self.lineno}", str(message))

    def undo() -> None:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.Logger.handle = handle  # type: ignore[method-assign]
        warnings.WarningMessage.__init__ = recorded  # type: ignore[method-assign]

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(_ALL)
    logging.Logger.handle = looked_at  # type: ignore[method-assign]
    warnings.WarningMessage.__init__ = kept  # type: ignore[method-assign]
    config.add_cleanup(undo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for name, text in report.sections:
        if report.when == "teardown":
            look(f"section {name!r} of this report", text)
    report.sections = [(name, "(it shows a secret)" if shows_secret(text) else text) for name, text in report.sections]
    if report.when == "teardown" and (places := taken()):
        report.outcome = "failed"
        report.longrepr = "a secret was shown by:\n  " + "\n  ".join(sorted(set(places)))
    return report


def _asked(logger: logging.Logger) -> int:
    """The level that somebody else has set."""
    at: logging.Logger | None = logger
    while at is not None:
        if at.level > _ALL:
            return at.level
        at = at.parent
    return 0


def _words(record: logging.LogRecord) -> Iterator[str]:
    """All that a handler could show of a record."""
    yield from _safely(record.getMessage)
    more = vars(record).keys() - _OF_EVERY_RECORD
    if record.args or more:
        yield from _safely(lambda: repr((record.args, [vars(record)[name] for name in more])))
    if record.exc_info and record.exc_info[1]:
        error = record.exc_info[1]
        yield from _safely(lambda: "".join(traceback.format_exception(error)))
    if record.stack_info:
        yield record.stack_info


def _safely(make: Any) -> Iterator[str]:
    try:
        yield make()
    except Exception:  # what cannot be shown shows nothing; the handler meets the same error
        yield ""
