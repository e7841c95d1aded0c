"""The examples of web servers, task queues and schedulers: real servers, real requests, a real database.

Here live the programs below `examples/` that need a framework, each started as its own first lines say.

Theory. Every job of the examples says `report by <process>` on standard output, which all workers share and which is
appended to one file. So the file tells the order: if no two workers did the job at a time, the lines of each process
stand together. Before anything is judged, all workers must be seen on the server, or one worker alone would prove it.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert.blocking import Coordinator
from pgconcert.testing import ServerSession, eventually
from tests.processes import Worker, spawn, stop
from tests.servers import Server, free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EVERY = "0.05"
ENOUGH = 5
"""Reports of one process after which it counts as the one that does the job."""
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(240)


def need_package(config: pytest.Config, package: str) -> None:
    """Without it the test skips, or fails under `--require-all`."""
    if importlib.util.find_spec(package) is not None:
        return
    message = f"needs {package}: pip install {package}"
    if config.getoption("--require-all"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class Program:
    """A server that runs in a folder of examples; what it and its workers say goes to one file."""

    def __init__(self, command: Sequence[str], folder: Path, output: Path, environment: dict[str, str]) -> None:
        self.output = output
        with output.open("ab") as log:
            self.process = spawn(
                [sys.executable, *command],
                cwd=folder,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "REPORT_EVERY": EVERY} | environment,
            )

    def reporters(self) -> list[int]:
        """Who did the job, in order."""
        return [int(pid) for pid in re.findall(r"^report by (\d+)$", self.output.read_text(), flags=re.MULTILINE)]

    def wait_reporter(self, *former: int) -> int:
        """Wait until somebody has done the job a few times who is not one of the `former`, and return who."""
        chosen: list[int] = []

        def working() -> bool:
            chosen[:] = [pid for pid in self.reporters() if pid not in former]
            return len(chosen) >= ENOUGH

        eventually(working, PATIENCE, what="a worker does the job")
        return chosen[-1]

    def assert_one_at_a_time(self, *expected: int) -> None:
        """The lines of each process stand together, and these processes did the job, in this order."""
        assert [pid for pid, _ in itertools.groupby(self.reporters())] == list(expected), self.story()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it as its supervisor would; return its code."""
        stop(self.process, how, PATIENCE)
        return self.process.returncode

    def story(self) -> str:
        return self.output.read_text()[-4000:]


class Start(Protocol):
    def __call__(self, command: Sequence[str], folder: Path = EXAMPLES, **environment: str) -> Program: ...


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[Start]:
    """Start programs, all with one output and one database; what still runs at the end is ended."""
    with ExitStack() as stack:

        def start(command: Sequence[str], folder: Path = EXAMPLES, **environment: str) -> Program:
            program = Program(command, folder, tmp_path / "output", {"PGCONCERT_URL": database} | environment)
            stack.callback(program.stop)
            return program

        yield start


@pytest.fixture
def sessions(server: Server, database: str) -> Callable[[], list[ServerSession]]:
    """The server's sessions in this test's database."""
    name = conninfo_to_dict(database)["dbname"]
    return lambda: [session for session in server.sessions() if session.database == name]


@pytest.fixture
def seen(sessions: Callable[[], list[ServerSession]]) -> Callable[[], set[int]]:
    """The processes that have a session."""
    return lambda: {process_of(session) for session in sessions()}


@pytest.fixture
def holders(sessions: Callable[[], list[ServerSession]]) -> Callable[[], set[int]]:
    """The processes that hold an advisory lock."""
    return lambda: {process_of(session) for session in sessions() if has_lock(session)}


def has_lock(session: ServerSession) -> bool:
    """A waiter has a shared mark."""
    return any(lock.granted and lock.mode == "ExclusiveLock" for lock in session.locks)


def process_of(session: ServerSession) -> int:
    found = re.search(r":(\d+) pgconcert-", session.application_name)
    assert found, session
    return int(found[1])


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answers(program: Program, url: str) -> Callable[[], bool]:
    def answered() -> bool:
        assert program.process.poll() is None, program.story()
        try:
            get(url)
        except OSError:
            return False
        return True

    return answered


@pytest.mark.parametrize("preload", [False, True], ids=["each worker loads", "preloaded"])
def test_gunicorn(
    preload: bool, start: Start, seen: Callable[[], set[int]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One of three workers does the job; it is killed, another takes over; no visit is lost."""
    need_package(request.config, "gunicorn")
    url = f"http://127.0.0.1:{free_port()}"
    command = ["-m", "gunicorn", "-c", "gunicorn_conf.py", "--bind", url.removeprefix("http://")]
    command += ["--no-control-socket", *(["--preload"] if preload else []), "gunicorn_app:app"]
    program = start(command, VISITS=str(tmp_path / "visits"))
    eventually(lambda: len(seen()) == 3, PATIENCE, what="three workers stand in line")
    first = program.wait_reporter()
    pages: list[tuple[int, str]] = []
    with ThreadPoolExecutor(6) as pool:
        for _ in range(10):  # on a busy machine one worker may answer all of a round
            pages += pool.map(lambda _: get(url), range(60))
            assert {status for status, _ in pages} == {200}, program.story()
            if len({page.split()[-1] for _, page in pages}) > 1:
                break
    assert sorted(int(page.split()[1].rstrip(",")) for _, page in pages) == list(range(1, len(pages) + 1))
    assert len({page.split()[-1] for _, page in pages}) > 1, "one worker alone answered"
    os.kill(first, signal.SIGKILL)
    second = program.wait_reporter(first)
    program.assert_one_at_a_time(first, second)
    assert program.stop() == 0
    assert "Traceback" not in program.story(), program.story()


SENDER = """
import sys
sys.path.insert(0, sys.argv[1])
from celery_app import import_prices
sent = []
for line in sys.stdin:
    verb, word = line.split()
    if verb == "send":
        sent.append(import_prices.delay(word))
        print("sent", len(sent) - 1)
    else:
        try:
            print("result", sent[int(word)].get(timeout=20))
        except Exception as error:
            print("result lost:", type(error).__name__)
"""


@pytest.mark.long
def test_celery(
    start: Start,
    seen: Callable[[], set[int]],
    holders: Callable[[], set[int]],
    worker: Callable[..., Worker],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task whose file is being imported is skipped; the process that imports is killed, and the next task does it."""
    need_package(request.config, "celery")
    monkeypatch.setenv("CELERY_BOX", str(tmp_path / "box"))
    file = tmp_path / "north.csv"
    os.mkfifo(file)  # whoever reads it waits
    command = ["-m", "celery", "-A", "celery_app", "worker", "--pool", "prefork", "--concurrency", "2"]
    program = start([*command, "--without-mingle", "--without-gossip", "--without-heartbeat"])
    sender = worker(SENDER, str(EXAMPLES))

    def send() -> str:
        sender.send(f"send {file}")
        return sender.expect("sent", PATIENCE)

    def result(number: str) -> str:
        sender.send(f"result {number}")
        return sender.expect("result", PATIENCE)

    send()
    eventually(lambda: len(holders()) == 1, PATIENCE, what="a task has the lock")
    (first,) = holders()
    assert first != program.process.pid, "the lock belongs to the process that the pool is forked from"
    assert result(send()) == "busy", program.story()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not holders(), PATIENCE, what="the lock of the killed process is free")
    file.unlink()
    file.write_text("apples 3\npears 4\n")
    # Celery loses what it hands to the killed process before it has noticed; whoever calls a task asks again
    done = next((told for _ in range(5) if not (told := result(send())).startswith("lost")), "nothing")
    assert re.fullmatch(r"2 prices imported by \d+", done), done
    assert done.split()[-1] != str(first)
    program.stop(signal.SIGKILL)  # Celery takes its time to end; its pool ends with it, as the check for leaks sees


@pytest.mark.long
def test_celery_beat(
    start: Start,
    seen: Callable[[], set[int]],
    holders: Callable[[], set[int]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Of two clocks one beats; it is killed with its command, and the other begins."""
    need_package(request.config, "celery")
    command = ["-m", "pgconcert", "run", "--lock", "beat", "--", sys.executable, "-m", "celery", "-A", "celery_app"]
    command += ["beat", "--loglevel", "INFO", "--pidfile=", "--schedule", str(tmp_path / "schedule")]
    programs = [start(command, CELERY_BOX=str(tmp_path / "box")) for _ in range(2)]

    def beats() -> int:
        return programs[0].output.read_text().count("beat: Starting...")

    eventually(lambda: len(seen()) == 2 and beats() > 0, PATIENCE, what="one beats, and the other waits")
    assert beats() == 1
    (first,) = holders()
    programs[first != programs[0].process.pid].stop(signal.SIGKILL)
    eventually(lambda: beats() == 2, PATIENCE, what="the other beats")
    assert holders() == {program.process.pid for program in programs} - {first}


def test_django_runserver(
    start: Start, seen: Callable[[], set[int]], tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    """The reloader runs the job in the process that serves, and after a change in the new one alone."""
    need_package(request.config, "django")
    site = tmp_path / "site"
    site.mkdir()
    for source in (EXAMPLES / "django_site").glob("*.py"):
        (site / source.name).write_text(source.read_text())
    url = f"http://127.0.0.1:{free_port()}"
    program = start(["manage.py", "runserver", url.removeprefix("http://")], site)
    first = program.wait_reporter()
    assert seen() == {first}
    assert first != program.process.pid, "the reloader did the job, with the code of its start"
    eventually(answers(program, url), PATIENCE, what="the site answers")
    assert get(f"{url}/refresh") == (200, f"refreshed by {first}\n")
    with Coordinator(database) as c, c.lock("refresh"):
        status, text = get(f"{url}/refresh")
        assert status == 409
        assert str(os.getpid()) in text, text
    jobs = site / "jobs.py"
    jobs.write_text(jobs.read_text() + "\n# changed\n")
    second = program.wait_reporter(first)
    program.assert_one_at_a_time(first, second)
    program.stop(signal.SIGINT)
    assert "Traceback" not in program.story(), program.story()


def test_apscheduler(
    start: Start,
    seen: Callable[[], set[int]],
    sessions: Callable[[], list[ServerSession]],
    server: Server,
    request: pytest.FixtureRequest,
) -> None:
    """Of three programs one schedules; it is killed, then the next one is told to end, and somebody else goes on."""
    need_package(request.config, "apscheduler")
    programs = {program.process.pid: program for program in (start(["apscheduler_once.py"]) for _ in range(3))}
    eventually(lambda: seen() == set(programs), PATIENCE, what="three programs stand in line")
    one = next(iter(programs.values()))
    first = one.wait_reporter()
    programs[first].stop(signal.SIGKILL)
    second = one.wait_reporter(first)
    assert programs[second].stop(signal.SIGINT) == -signal.SIGINT
    third = one.wait_reporter(first, second)
    (session,) = (session for session in sessions() if process_of(session) == third and has_lock(session))
    server.kill_backend(session.pid)
    assert programs[third].process.wait(PATIENCE) == 1
    assert "LockLost" in one.story()
    one.assert_one_at_a_time(first, second, third)
