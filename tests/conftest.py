"""What every test may use, and what every test is checked for.

Here live the options, fixtures and checks; what they are made of stands in `servers.py`, `poolers.py`, `processes.py`,
`needs.py`, `coroutines.py` and `secretwatch.py`.

Theory: servers are started once, on first use, and kept in one place; the parametrised fixtures only look them up, so
random order costs nothing. Tests below `postgres/` run on every server found, all others on the first. After each test
that passed, whatever is there and was not there before it (threads, processes, server sessions, advisory locks) is a
failure; after a failed one the traceback itself keeps things alive, so nothing is asked.
"""

import contextlib
import gc
import os
import re
import secrets
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest

from pgconcert import acquiring
from pgconcert.blocking import acquiring as blocking_acquiring
from pgconcert.testing import AdvisoryLock, FaultProxy, Snapshot, eventually
from tests import secretwatch
from tests.needs import debian_servers, need
from tests.nursery import nursery
from tests.poolers import PgBouncer, PoolMode
from tests.processes import Worker, children
from tests.servers import Cluster, Embedded, OwnServer, Server

pytest_plugins = ["tests.coroutines"]

LEAK_LIMIT = 30.0
"""Seconds that what a test started has for its end."""

_FAILED = pytest.StashKey[bool]()
_GIVEN_URL = os.environ.get("PGCONCERT_TEST_URL")

# What the interpreter itself starts once and keeps to its end.
_INTERPRETER_HELPERS = re.compile(r"multiprocessing\.(resource_tracker|forkserver)")

hypothesis.settings.register_profile("pgconcert", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "pgconcert")


def pytest_collection_finish() -> None:
    """What was imported and collected is there for good. Tests that collect garbage need not look through all of it,
    which takes a second on a busy machine, longer than some of their sessions live."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-all", action="store_true", help="fail instead of skipping what needs a program that is not installed"
    )


_ON_EVERY_SERVER: Final = re.compile(
    "test_(conformance|fixtures|function|guard|lockmodel|messenger|probe|schema|session_store|store|table|task)"
    "|test_(locks|semaphore|shared)$"
)
"""Files below `postgres` about what we say to a server and what it answers. All the others are about what we do
besides, and run on the other servers with the long tests only."""


_SPOKEN: Final = frozenset({
    "electing", "exclusion", "grouping", "inheriting", "jobs", "keeping", "publishing", "semaphores", "sets", "shared",
    "storing", "turning",
})  # fmt: skip
"""The rooms of the conformance suite that are about the same."""


def pytest_configure(config: pytest.Config) -> None:
    # a run in the background (nohup, a shell's &) ignores these, and so would every program that the tests start
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for ignored in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)
    config.pluginmanager.register(secretwatch)
    config.addinivalue_line("markers", "long: takes more than a few seconds, or much of the machine")
    config.addinivalue_line("markers", "needs(program): needs a program of a Debian package")


def pytest_unconfigure() -> None:
    nursery.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" not in metafunc.fixturenames:
        return
    names = ["given"] if _GIVEN_URL else ["pg18"]
    path = Path(metafunc.definition.path)
    everywhere = path.is_relative_to(Path(__file__).parent / "postgres") and "standby" not in metafunc.fixturenames
    others = [name for name in debian_servers() if name != "pg18"] or ["debian"]
    marks = () if _ON_EVERY_SERVER.match(path.stem) else (pytest.mark.long,)
    more = [pytest.param(name, marks=marks) for name in others] if everywhere and not _GIVEN_URL else []
    metafunc.parametrize("server", [*names, *more], indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        other = given.get("server", "pg18") not in ("given", "pg18")
        if other and "case" in given and given["case"].room not in _SPOKEN:
            item.add_marker(pytest.mark.long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            need(item.config, program)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or not report.passed
    return report


class Servers:
    """Every server of this run, started when first asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._running: dict[str, Server] = {}

    def get(self, name: str) -> Server:
        if name not in self._running:
            self._running[name] = self._start(name)
        return self._running[name]

    def pids(self) -> set[int]:
        return {pid for server in self._running.values() if isinstance(server, OwnServer) for pid in server.pids()}

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for server in self._running.values():
                stack.callback(server.close)

    def _start(self, name: str) -> Server:
        if name == "given":
            return Server(name, _GIVEN_URL or "")
        if name == "pg18":
            return Embedded()
        need(self._config, "postgresql")
        return Cluster(name, debian_servers()[name])


@pytest.fixture(scope="session", autouse=True)
def _patient_about_holders() -> Iterator[None]:
    """Whoever waits in vain is told who has the lock, if that is found out within a quarter of a second. Tests that
    compare what is told would need a machine that is never late."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (acquiring, blocking_acquiring):
            patch.setattr(module, "_ASK_HOLDER", 30.0)
        yield


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """All servers of this run."""
    running = Servers(request.config)
    yield running
    running.close()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """The PostgreSQL of this test: see `tests/servers.py` for what it can do."""
    return servers.get(request.param)


@pytest.fixture
def own_server(server: Server) -> OwnServer:
    """`server`, if it is ours to stop and start; else the test skips."""
    if not isinstance(server, OwnServer):
        pytest.skip("PGCONCERT_TEST_URL names a server that is not ours to break")
    return server


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[str]:
    """The URL of a database of this module's own."""
    with server.fresh_database() as url:
        yield url


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name nobody else uses."""
    return f"{request.node.name.partition('[')[0]}:{secrets.token_hex(6)}"


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A fault proxy to the server; `proxy.url(database)` leads through it."""
    with FaultProxy.to(server.tcp_url) as running:
        yield running


@pytest.fixture
def tls_proxy(server: Server) -> Iterator[FaultProxy]:
    """A fault proxy that speaks TLS to clients; `sslrootcert` is `tls_proxy.certificate`."""
    with FaultProxy.to(server.tcp_url, tls=True) as running:
        yield running


@pytest.fixture
def pgbouncer(request: pytest.FixtureRequest, server: Server, database: str) -> Iterator[Callable[..., PgBouncer]]:
    """`pgbouncer(mode, pool_size=4, **settings)` starts one; `.url` leads through it to `database`."""
    program = need(request.config, "pgbouncer")
    with contextlib.ExitStack() as stack:

        def start(mode: PoolMode, *, pool_size: int = 4, **settings: str) -> PgBouncer:
            running = PgBouncer(program, server, database, mode, pool_size=pool_size, **settings)
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture
def standby(server: Server) -> Iterator[Cluster]:
    """A hot standby of the embedded server, streaming; it may be promoted."""
    if not isinstance(server, Embedded):
        pytest.skip("a standby needs the embedded server, and PGCONCERT_TEST_URL names another")
    running = Cluster("standby", server.programs, primary=server)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    """`worker(source_or_path, *args)` starts a Python process that dies with the test: see `tests/processes.py`."""
    with contextlib.ExitStack() as stack:

        def start(program: str | Path, *args: str, fresh: bool = False) -> Worker:
            return stack.enter_context(Worker(program, *args, fresh=fresh))

        yield start


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    server: Server | None = None
    servers: Servers | None = None
    if "server" in request.fixturenames:
        server, servers = request.getfixturevalue("server"), request.getfixturevalue("servers")
    threads, processes = Snapshot.take(), children()
    known: set[int] = set()
    locked: set[AdvisoryLock] = set()
    if server:
        there = server.sessions()
        known = {session.pid for session in there}
        locked = {lock for session in there for lock in session.locks}
    yield
    if request.node.stash.get(_FAILED, False):
        return
    left: list[str] = []

    def nothing_left() -> bool:
        left[:] = threads.leaks()
        ours = {nursery.pid, *(servers.pids() if servers else ())}
        for pid, command in children().items():
            if pid not in processes and pid not in ours and not _INTERPRETER_HELPERS.search(command):
                left.append(f"process {pid}: {command or 'ended, not waited for'}")
        for session in server.sessions() if server else ():
            if session.pid not in known:
                left.append(str(session))
            left.extend(str(lock) for lock in session.locks if lock not in locked)
        return not left

    try:
        eventually(nothing_left, LEAK_LIMIT)
    except AssertionError:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def pytest_report_header(config: pytest.Config) -> str:
    return "servers: " + ", ".join(["given"] if _GIVEN_URL else ["pg18", *debian_servers()])
