"""The example for Django: its own tests by its own runner, and a server with a browser that looks on.

Here lives what starts processes. The runner makes a test database of its own on the server of ours, and drops it, which
it cannot as long as anybody is connected to it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from pgconcert.testing import eventually
from tests.processes import spawn, stop
from tests.servers import Server, free_port

SHOP = Path(__file__).resolve().parents[2] / "examples" / "django_shop"
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(240)


def run(folder: Path, database: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=environment(database),
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


def environment(database: str) -> dict[str, str]:
    return os.environ | {"DATABASE_URL": database, "PYTHONDONTWRITEBYTECODE": "1"}


def databases(server: Server) -> set[str]:
    return {str(row[0]) for row in server.execute("select datname from pg_database where datname like 'test%'")}


def test_its_own_tests(server: Server, database: str) -> None:
    """All of them pass, and the runner could drop its database."""
    done = run(SHOP, database, "manage.py", "test")
    assert done.returncode == 0, done.stderr
    ran = re.search(r"^Ran (\d+) tests in", done.stderr, flags=re.MULTILINE)
    assert ran, done.stderr
    assert int(ran[1]) == (SHOP / "shop/tests.py").read_text().count("    def test_") + 1  # one is a coroutine
    assert re.search(r"^OK$", done.stderr, flags=re.MULTILINE), done.stderr
    assert databases(server) == set()


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "instead", "finds"),
    [
        ('publish("orders"', '(lambda *_, **__: None)("orders"', "test_everybody_is_told"),
        ("        publish_on_commit(", "        coordinator().publish(", "test_nobody_is_told_what_was_rolled_back"),
        ("@exclusive(lambda", "@(lambda *_, **__: lambda fn: fn)(lambda", "test_one_report_at_a_time"),
    ],
)
def test_its_tests_find_defects(line: str, instead: str, finds: str, database: str, tmp_path: Path) -> None:
    """A planted one fails the run, by the test that is about it."""
    shop = shutil.copytree(SHOP, tmp_path / "shop")
    views = shop / "shop" / "views.py"
    text = views.read_text()
    assert text.count(line) == 1
    views.write_text(
        text.replace(line, instead).replace("import async_coordinator,", "import async_coordinator, coordinator,")
    )
    done = run(shop, database, "manage.py", "test")
    assert done.returncode == 1, done.stderr
    assert re.search(rf"^(FAIL|ERROR): {finds} ", done.stderr, flags=re.MULTILINE), done.stderr


@pytest.fixture
def site(database: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The shop behind a real server: its address, and the file of what it says."""
    assert run(SHOP, database, "manage.py", "migrate", "--verbosity", "0").returncode == 0
    port = free_port()
    output = tmp_path / "output"
    with output.open("ab") as log:
        command = ["-m", "uvicorn", "asgi:application", "--port", str(port)]
        server = spawn([sys.executable, *command], cwd=SHOP, stdout=log, stderr=log, env=environment(database))
    try:
        eventually(lambda: "running on" in output.read_text(), PATIENCE, what="the server serves")
        yield f"http://127.0.0.1:{port}", output
    finally:
        stop(server, limit=PATIENCE)
    assert "Application shutdown complete" in output.read_text(), output.read_text()
    assert "Traceback" not in output.read_text(), output.read_text()


@pytest.mark.long
def test_a_browser_follows(site: tuple[str, Path], database: str, server: Server) -> None:
    """What one request pays, another one's stream shows; all streams share one connection that listens."""
    url, _ = site
    with psycopg.connect(database, autocommit=True) as connection:
        (number,) = connection.execute(
            "insert into shop_order (customer, paid, closed) values ('Ann', false, false) returning id"
        ).fetchone() or (0,)
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        with client.stream("GET", "/orders/live") as one, client.stream("GET", "/orders/live") as two:
            streams = [one.iter_lines(), two.iter_lines()]
            assert [next(lines) for lines in streams] == [":"] * 2
            assert client.post(f"/orders/{number}/pay").text == "paid\n"
            for lines in streams:
                assert [next(lines) for _ in range(2)] == ["", f'data: {{"paid":{number}}}']
            listening = [s for s in server.sessions() if s.application_name.endswith("pgconcert-listen")]
            assert len(listening) == 1
        assert client.get("/report/monday").text == "monday: 1 orders are paid\n"
