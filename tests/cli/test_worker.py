"""`pgconcert worker`: a function gets tasks, until a signal comes; how it ends, and what it says of a wrong call."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgconcert import RunnerStatistics
from pgconcert.cli.worker import progress
from pgconcert.testing import eventually
from tests.cli.holding import execute, let_expire, make_tables
from tests.cli.messages import Listener, run
from tests.cli.shell import LIMIT, on_terminal, refused
from tests.cli.working import folder_of_functions, states, worker, working

NOWHERE = "postgresql://ann:hunter2@127.0.0.1:1/x"


@pytest.fixture(autouse=True, scope="module")
def _tables(database: str) -> None:
    make_tables(database)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the functions are."""
    return folder_of_functions(tmp_path_factory.mktemp("functions"))


@pytest.fixture
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is in the folder, and forgets what it has imported there."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("work", "shop", "shop.mail"):
        sys.modules.pop(name, None)


def enqueue(url: str, queue: str, *payloads: str) -> None:
    done = run("tasks", "enqueue", queue, "--lines", "--url", url, said="\n".join(payloads).encode())
    assert done.returncode == 0, done.stderr


def end(one: Listener, number: signal.Signals = signal.SIGTERM) -> int:
    one.signal(number)
    return one.end()


def until_empty(url: str, queue: str) -> None:
    eventually(lambda: not states(url, queue), LIMIT, what="all tasks are finished")


def test_a_function_gets_the_tasks_of_a_queue(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a", "b", "c")
    with working(folder, "work:batch", "--queue", unique, "--url", database) as one:
        lines = [one.line() for _ in range(4)]
        assert lines[0] == "batch of 3"
        assert [line.split()[1:] for line in lines[1:]] == [["a", "1"], ["b", "1"], ["c", "1"]]
        until_empty(database, unique)
        enqueue(database, unique, "later")
        assert one.line() == "batch of 1"
        until_empty(database, unique)
        assert end(one) == 0
        said = one.errors().splitlines()
    assert said[0].startswith(f"pgconcert: runner '{unique}' has session ")
    assert said[0].endswith(f", and shares the tasks of queue '{unique}'")
    assert said[1:] == ["pgconcert: 4 tasks completed"]
    session = int(said[0].partition(" has session ")[2].partition(",")[0])
    assert execute(database, "select ended is null from pgconcert.session where id = %s", session) == [(False,)]


def test_a_plain_function_completes_a_part(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "this", "not this")
    where = ("--queue", unique, "--name", "post", "--tick", "3600", "--url", database)
    with working(folder, "shop.mail:send", *where) as one:
        assert one.line() == "plain this not this"
        eventually(lambda: states(database, unique) == [(False, False, 1)], LIMIT, what="one is left")
        assert end(one, signal.SIGINT) == 0
        assert "runner 'post' has session" in one.errors()


def test_a_function_is_called_for_each_task(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a", "b")
    with working(folder, "work:one", "--queue", unique, "--per-task", "--concurrency", "2", "--url", database) as one:
        assert {one.line(), one.line()} == {"one a", "one b"}
        until_empty(database, unique)
        assert end(one, signal.SIGHUP) == 0


def test_a_function_in_a_class(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    with working(folder, "work:Of.here", "--queue", unique, "--batch", "1", "--url", database) as one:
        assert one.line() == "here a"
        until_empty(database, unique)
        assert end(one) == 0


def test_the_rows_of_a_table_are_tasks(database: str, folder: Path) -> None:
    execute(database, "create table parcel (number int primary key, name text, sent timestamptz, session_id bigint)")
    execute(database, "insert into parcel values (1, 'first'), (2, 'second')")
    of_table = ("--id", "number", "--where", "t.sent is null", "--order-by", "t.number desc")
    finish = ("--finish", "sent = clock_timestamp()")
    with working(folder, "work:rows", "--table", "parcel", *of_table, *finish, "--url", database) as one:
        assert [one.line(), one.line()] == ["row second", "row first"]
        eventually(lambda: execute(database, "select count(sent) from parcel") == [(2,)], LIMIT, what="both are sent")
        assert end(one) == 0
        assert "runner 'parcel' has session" in one.errors()
        assert "shares the tasks of table 'parcel'" in one.errors()


def test_finished_tasks_are_kept(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    with working(folder, "work:batch", "--queue", unique, "--retention", "3600", "--url", database) as one:
        one.line()
        until_empty(database, unique)
        assert end(one) == 0
    shown = run("tasks", "list", unique, "--state", "finished", "--url", database).stdout.decode()
    assert len(shown.splitlines()) == 2


def test_a_function_that_raises_is_told_and_tried_again(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    with working(folder, "work:broken", "--queue", unique, "--tick", "0.05", "--url", database) as one:
        one.until_said("failed to run tasks: ")
        eventually(
            lambda: [attempt > 1 for *_, attempt in states(database, unique)] == [True], LIMIT, what="it is tried again"
        )
        assert end(one) == 0
        said = one.errors()
    assert "    raise RuntimeError" in said, "where it was raised is shown"
    assert "RuntimeError: no good\\x1b[31m\n" in said
    assert "\x1b" not in said
    assert "worker_function.py" not in said
    assert " failed\n" in said.splitlines(keepends=True)[-1]


def test_a_signal_lets_what_is_under_way_come_to_its_end(
    database: str, unique: str, folder: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    enqueue(database, unique, str(gate), str(gate))
    where = ("--queue", unique, "--batch", "1", "--stop-timeout", "3600", "--url", database)
    with working(folder, "work:gated", *where) as one:
        assert one.line() == "begun"
        one.signal(signal.SIGTERM)
        one.until_said("1 task under way, for 3600 s or until another signal; no new ones")
        gate.touch()
        assert one.end() == 0
        assert one.output.read() == b"ended\n"
        assert one.errors().endswith("pgconcert: 1 task completed\n")
    assert states(database, unique) == [(False, False, 0)], "the other one was never begun"


@pytest.mark.parametrize("function", ["slow", "stubborn"])
def test_another_signal_cuts_it_short(database: str, unique: str, folder: Path, function: str) -> None:
    enqueue(database, unique, "a")
    where = ("--queue", unique, "--stop-timeout", "3600", "--url", database)
    with working(folder, f"work:{function}", *where) as one:
        assert one.line() == "begun"
        one.signal(signal.SIGTERM)
        one.until_said("1 task under way, for 3600 s or until another signal; no new ones")
        one.signal(signal.SIGINT)
        assert one.end() == 143
        assert "1 task cut short, and free for others" in one.errors()
    assert [held for held, *_ in states(database, unique)] == [False]


def test_the_time_for_what_is_under_way(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    with working(folder, "work:slow", "--queue", unique, "--stop-timeout", "0.1", "--url", database) as one:
        assert one.line() == "begun"
        assert end(one) == 143
    assert [held for held, *_ in states(database, unique)] == [False]


def test_a_function_that_ends_the_program_ends_it(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    with working(folder, "work:leaves", "--queue", unique, "--url", database) as one:
        assert one.end() == 7
    assert [held for held, *_ in states(database, unique)] == [False]


def test_two_workers_share(database: str, unique: str, folder: Path, tmp_path: Path) -> None:
    """Neither ends a task before the other has begun one."""
    call = ("work:together", "--queue", unique, "--batch", "1", "--tick", "0.2", "--url", database)
    with working(folder, *call) as one, working(folder, *call) as other:
        enqueue(database, unique, *[str(tmp_path)] * 40)
        until_empty(database, unique)
        assert (end(one), end(other)) == (0, 0)
        counts = [int(each.errors().split()[-3]) for each in (one, other)]
    assert sum(counts) == 40
    assert min(counts) > 0


def test_the_tasks_of_one_that_was_killed_go_to_another(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    where = ("--queue", unique, "--tick", "0.2", "--url", database)
    with working(folder, "work:slow", *where) as one:
        assert one.line() == "begun"
        one.process.kill()
        let_expire(database, one.process.pid)
        with working(folder, "work:batch", *where) as other:
            assert other.line() == "batch of 1"
            assert other.line().endswith(" a 2")
            until_empty(database, unique)
            assert end(other) == 0


@pytest.mark.long
def test_how_it_goes_is_said_on_a_terminal(database: str, unique: str, folder: Path) -> None:
    enqueue(database, unique, "a")
    with on_terminal("worker", "work:batch", "--queue", unique, "--url", database, PYTHONPATH=str(folder)) as one:
        one.expect(r"1 task completed, 0 under way; our share is \d+, as one of 1")
        one.type("\x03")
        assert one.end() == 0
        assert one.said.rstrip().endswith("pgconcert: 1 task completed")


def test_progress_in_words() -> None:
    seen = RunnerStatistics(
        name="mail", session_id=7, sessions=3, share=40, running=2, turns=9, handed=1300,
        completed=1204, failed=3, refused=1, moved=0, lost_sessions=0,
    )  # fmt: skip
    words = "1204 tasks completed, 3 failed, 1 done but refused, 2 under way; our share is 40, as one of 3"
    assert progress(seen) == words


# what is wrong


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("work", "'work' is not MODULE:FUNCTION, such as shop.mail:send"),
        ("work.batch", "is not MODULE:FUNCTION"),
        (":batch", "is not MODULE:FUNCTION"),
        ("work:", "is not MODULE:FUNCTION"),
        ("work.py:batch", "name the module, not its file: work:batch"),
        ("nowhere:batch", "there is no module 'nowhere'; looked in "),
        ("shop.nowhere:send", "there is no module 'shop.nowhere'"),
        ("work:bach", "module 'work' has no 'bach'; there is 'batch'"),
        ("work:Of.there", "module 'work', 'Of', has no 'there'; there is 'here'"),
        ("work:number", "'work:number' is of type int, and not a function"),
        ("work:Of", "'work:Of' is a class, and not a function"),
        ("work:generator", "'work:generator' is an async generator"),
    ],
)
@pytest.mark.usefixtures("_inside")
def test_a_function_that_is_not_there(function: str, said: str) -> None:
    assert said in refused("worker", function, "--queue", "q", "--url", NOWHERE)


def test_a_function_of_a_module_that_stands_elsewhere(folder: Path) -> None:
    done = worker(folder.parent, "work:batch", "--queue", "q", "--url", NOWHERE)
    assert done.returncode == 2
    assert f"there is no module 'work'; looked in {folder.parent} and" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "said"), [("wrong", "No module named 'no_such_thing'"), ("raises", "LookupError('oh')")]
)
def test_a_module_that_cannot_be_imported(folder: Path, module: str, said: str) -> None:
    done = worker(folder, f"{module}:f", "--queue", "q", "--url", NOWHERE)
    assert done.returncode == 70
    assert f"{module}.py" in done.stderr
    assert "worker_function.py" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"pgconcert: module '{module}' cannot be imported: ")
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say where the tasks are: --queue NAME, or --table NAME"),
        (["--queue", "q", "--table", "t"], "say where the tasks are"),
        (["--queue", "q", "--finish", "delete"], "--finish is for --table"),
        (["--queue", "q", "--order-by", "x"], "--order-by is for --table"),
        (["--table", "t", "--where", "x"], "say what makes a row of the table done: --finish"),
        (["--table", "t", "--finish", "a = 1"], "TableTasks needs where="),
        (["--table", "t", "--finish", "delete", "--retention", "1"], "--retention is for --queue"),
        (["--queue", ""], "the name of a queue has 1 to 1000 encoded bytes"),
        (["--queue", "q", "--name", "x" * 1001], "has 1 to 1000 encoded bytes"),
        (["--queue", "q", "--tick", "0"], "--tick"),
        (["--queue", "q", "--batch", "0"], "--batch"),
        (["--queue", "q", "--ttl", "0"], "--ttl"),
    ],
)
def test_a_wrong_call(arguments: list[str], said: str) -> None:
    assert said in refused("worker", "work:batch", *arguments, "--url", NOWHERE)


def test_no_server(folder: Path) -> None:
    done = worker(folder, "work:batch", "--queue", "q", "--url", NOWHERE)
    assert done.returncode == 69
    assert "the server cannot be reached: " in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--queue", "q", "--schema", "nowhere"], "pgconcert schema apply --schema nowhere"),
        (["--table", "bare", "--finish", "delete"], "pgconcert schema show --table bare"),
        (["--table", "nowhere", "--finish", "delete"], "nowhere"),
    ],
)
def test_what_is_missing_is_named(database: str, folder: Path, arguments: list[str], said: str) -> None:
    execute(database, "create table if not exists bare (id int primary key)")
    done = worker(folder, "work:batch", *arguments, "--url", database)
    assert (done.returncode, done.stdout) == (78, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_that_reaches_nobody(folder: Path) -> None:
    done = worker(folder, "work:batch", "--queue", "q", "--url", "memory://here")
    assert done.returncode == 78
    assert "memory://here reaches no other process" in done.stderr


def test_the_help_shows_examples_and_codes() -> None:
    text = run("worker", "--help").stdout.decode()
    assert "pgconcert worker shop.mail:send --queue mail" in text
    for code in (0, 2, 69, 70, 78):
        assert f"\n  {code:>5}  " in text
