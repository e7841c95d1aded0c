"""Runners under random faults, and the judge of what the server wrote down: what it finds, and that it finds nothing.

Theory: see ``task_history.py`` (the judge) and ``task_director.py``. Each story of the judge's tests is told as
versions of rows: session 1 lives until 100, session 2 for long.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from pgconcert.testing import FaultProxy
from tests.faults.task_director import Stage
from tests.faults.task_history import Said, SessionRow, TaskRow, Version, judge
from tests.faults.task_tables import Kind, history_written
from tests.needs import need
from tests.poolers import PgBouncer
from tests.processes import Worker
from tests.servers import OwnServer

SMOKE: Final = 3.0
SETTLING: Final = 400

Row = SessionRow | TaskRow | None

ALIVE = SessionRow(1, 100.0, None)
EXPIRED = SessionRow(1, 100.0, 110.0)
ENDED = SessionRow(1, 100.0, 95.0)
NEXT = SessionRow(2, 900.0, None)

FREE = TaskRow("a", None)
ASSIGNED = TaskRow("a", -1)
STARTED = TaskRow("a", 1)
MOVED = TaskRow("a", -2)
TAKEN = TaskRow("a", 2)
DONE = TaskRow("a", None, "done")


def told(*changes: tuple[Row, Row], at: float = 90.0, actor: int = 0) -> list[Version]:
    """Versions of rows, each of a transaction of its own, all within a second, after two sessions and a task."""
    every: list[tuple[Row, Row]] = [(None, ALIVE), (None, NEXT), (None, FREE), *changes]
    return [Version(n, n, at + n / 20, at + n / 20 + 0.01, actor, old, new) for n, (old, new) in enumerate(every, 1)]


STARTING: list[tuple[Row, Row]] = [(FREE, ASSIGNED), (ASSIGNED, STARTED)]


def later(history: list[Version], *changes: tuple[Row, Row], at: float = 110.0, one: bool = False) -> list[Version]:
    """What happened later, in transactions of its own, or in one."""
    seq = len(history)
    return history + [
        Version(seq + n, seq + (1 if one else n), at, at + n / 20, 0, old, new)
        for n, (old, new) in enumerate(changes, 1)
    ]


BEGUN = told(*STARTING)
LEFT = later(BEGUN, (ALIVE, EXPIRED), (STARTED, TAKEN), (TAKEN, None))
FINISHED = later(BEGUN, (STARTED, None), at=92.0)
COUNTED = TaskRow("b", None, "", 4)

RIGHT = {
    "finished": FINISHED,
    "finished in a table": told(*STARTING, (STARTED, DONE)),
    "kept when it is finished": told(*STARTING, (STARTED, DONE), (DONE, None)),
    "started at once": told((FREE, STARTED), (STARTED, None)),
    "counted": told(
        (None, COUNTED),
        (COUNTED, COUNTED._replace(session=1, attempt=5)),
        (COUNTED._replace(session=1, attempt=5), None),
        (FREE, STARTED),
        (STARTED, None),
    ),
    "moved": told((FREE, ASSIGNED), (ASSIGNED, MOVED), (MOVED, TAKEN), (TAKEN, None)),
    "failed": told(*STARTING, (STARTED, FREE), (FREE, STARTED), (STARTED, None)),
    "put back": told(*STARTING, (STARTED, ASSIGNED), (ASSIGNED, STARTED), (STARTED, None)),
    "given back": told((FREE, ASSIGNED), (ASSIGNED, FREE), (FREE, TAKEN), (TAKEN, None)),
    "ended, then taken": LEFT,
    "ended and taken at once": later(BEGUN, (STARTED, TAKEN), (ALIVE, EXPIRED), (TAKEN, None), one=True),
    "ended by its owner, then taken": told(*STARTING, (ALIVE, ENDED), (STARTED, TAKEN), (TAKEN, None)),
    "dead": later(BEGUN, (ALIVE, EXPIRED), (STARTED, TaskRow("a", None, "dead"))),
    "renewed, ended and forgotten": told(
        (FREE, TAKEN), (TAKEN, None), (ALIVE, ALIVE._replace(expires=140.0)), (ALIVE, ENDED), (ENDED, None)
    ),
}

WRONG = {
    "two sessions": (told(*STARTING, (STARTED, TAKEN), (TAKEN, None)), "taken from a session that had not ended"),
    "what is started moves": (
        told(*STARTING, (STARTED, MOVED), (MOVED, TAKEN), (TAKEN, None)),
        "taken from a session that had not ended",
    ),
    "what is assigned is started by another": (
        told((FREE, ASSIGNED), (ASSIGNED, TAKEN), (TAKEN, None)),
        "taken from a session that had not ended",
    ),
    "ended too late": (
        later(BEGUN, (STARTED, TAKEN), (ALIVE, EXPIRED), (TAKEN, None)),
        "taken from a session that had not ended",
    ),
    "renewed after its time": (
        later(FINISHED, (ALIVE, ALIVE._replace(expires=140.0))),
        "renewed that was over when the statement began",
    ),
    "changed after its end": (later(FINISHED, (ALIVE, ENDED), (ENDED, ALIVE), at=96.0), "changed after its end"),
    "deleted before its end": (later(FINISHED, (ALIVE, None)), "deleted that had not ended"),
    "started by the dead": (
        later(told(), (FREE, STARTED), (STARTED, FREE), (FREE, TAKEN), (TAKEN, None)),
        "started by a session that was over when the statement began",
    ),
    "finished by the dead": (
        later(BEGUN, (STARTED, None)),
        "finished by a session that was over when the statement began",
    ),
    "moved to the dead": (
        later(told((FREE, MOVED)), (MOVED, ASSIGNED), (ALIVE, EXPIRED), (ASSIGNED, TAKEN), (TAKEN, None)),
        "moved by a session that was over",
    ),
    "finished unstarted": (told((FREE, ASSIGNED), (ASSIGNED, None)), "finished that was not started"),
    "finished free": (told((FREE, None)), "finished that was not started"),
    "finished twice": (
        told(*STARTING, (STARTED, None), (None, FREE), (FREE, TAKEN), (TAKEN, None)),
        "finished twice",
    ),
    "begun again": (told(*STARTING, (STARTED, DONE), (DONE, TAKEN)), "a finished task is touched"),
    "forgotten": (told(), "forgotten"),
    "with a session in the end": (BEGUN, "forgotten"),
    "born with an owner": (
        told((None, TaskRow("b", 1)), (TaskRow("b", 1), None), *STARTING, (STARTED, None)),
        "a new task belongs to somebody",
    ),
    "not counted": (
        told(
            (None, COUNTED),
            (COUNTED, COUNTED._replace(session=1)),
            (COUNTED._replace(session=1), None),
            *STARTING,
            (STARTED, None),
        ),
        "does not count as one attempt",
    ),
}


def lines(*told: tuple[str, float, int], process: int = 7) -> list[Said]:
    """What a process said about the task, after it had its session."""
    return [
        Said("session", 89.0, 1, (), process),
        *(Said(what, at, session, ("a",), process) for what, at, session in told),  # type: ignore[arg-type]
    ]


WORKED = [("begun", 90.5, 1), ("left", 91.0, 1)]
COMPLETED = [*WORKED, ("done", 91.0, 1)]
OF_THE_NEXT = [Said("session", 100.0, 2, (), 8), Said("done", 110.0, 2, ("a",), 8)]
END = [Said("ended", 200.0, process=7)]

RIGHT_WORDS = {
    "all in order": (FINISHED, [*lines(*COMPLETED), *END]),
    "taken after it was left": (LEFT, [*lines(*WORKED), *END, *OF_THE_NEXT]),
    "lost, completed and told": (LEFT, [*lines(*COMPLETED, ("refused", 111.0, 1)), *END, *OF_THE_NEXT]),
    "lost, completed and killed": (LEFT, [*lines(*COMPLETED), *OF_THE_NEXT]),
    "refused because it was finished": (FINISHED, [*lines(*COMPLETED, ("refused", 111.0, 1)), *END]),
    "begun again after it failed": (
        later(BEGUN, (STARTED, FREE), (FREE, STARTED), (STARTED, None), at=92.0),
        [*lines(*WORKED, ("begun", 92.2, 1), ("left", 92.11, 1), ("done", 92.1, 1)), *END],
    ),
}

WRONG_WORDS = {
    "handed too early": (FINISHED, lines(("begun", 90.1, 1), ("left", 91.0, 1), ("done", 91.0, 1)), "not started it"),
    "handed to another": (
        FINISHED,
        [*lines(*COMPLETED), Said("session", 89.0, 2, (), 8), *lines(("begun", 91.0, 2), ("left", 91.0, 2))[1:]],
        "not started it",
    ),
    "taken while trusted": (
        LEFT,
        [*lines(("begun", 90.5, 1), ("left", 115.0, 1)), *OF_THE_NEXT],
        "before the trust was over",
    ),
    "never completed": (FINISHED, [*lines(*WORKED), *END], "finished before it was completed"),
    "completed later": (FINISHED, [*lines(("done", 93.0, 1)), *END], "finished before it was completed"),
    "not told": (LEFT, [*lines(*COMPLETED), *END, *OF_THE_NEXT], "nobody was told"),
    "killed in another session": (
        LEFT,
        [*lines(*COMPLETED), Said("session", 105.0, 3, (), 7), *OF_THE_NEXT],
        "nobody was told",
    ),
    "odd": (FINISHED, [*lines(*COMPLETED), Said("odd", 92.0, 1, ("it broke",), 7)], "odd"),
}

STRANGERS = {
    "start": (told((FREE, TAKEN), (TAKEN, None), actor=9), ["started by a stranger", "finished by a stranger"]),
    "assign": (told((FREE, MOVED), (MOVED, FREE), actor=9), ["assigned by", "given back by a stranger", "forgotten"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_judge_finds_nothing(name: str) -> None:
    assert judge(RIGHT[name]).wrong == []


@pytest.mark.parametrize("name", WRONG)
def test_the_judge_finds(name: str) -> None:
    history, what = WRONG[name]
    wrong = judge(history).wrong
    assert wrong
    assert [one for one in wrong if what not in one] == []


@pytest.mark.parametrize("name", RIGHT_WORDS)
def test_the_judge_believes(name: str) -> None:
    assert judge(*RIGHT_WORDS[name]).wrong == []


@pytest.mark.parametrize("name", WRONG_WORDS)
def test_the_judge_does_not_believe(name: str) -> None:
    history, words, what = WRONG_WORDS[name]
    (wrong,) = judge(history, words).wrong
    assert what in wrong


@pytest.mark.parametrize("name", STRANGERS)
def test_the_judge_knows_who_did_it(name: str) -> None:
    history, what = STRANGERS[name]
    wrong = judge(history, [Said("session", 89.0, 2, (), 8), Said("done", 90.0, 2, ("a",), 8)]).wrong
    assert [expected in one for expected, one in zip(what, wrong, strict=True)] == [True] * len(what)


@pytest.fixture
def history(
    own_server: OwnServer,
    proxy: FaultProxy,
    worker: Callable[..., Worker],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Callable[..., None]:
    """``history(kind, tasks, seconds, rounds, restarts)`` runs it, and fails by what the judge finds."""

    def run(kind: Kind, tasks: int, seconds: float, rounds: int, restarts: int) -> None:
        program = need(request.config, "pgbouncer")
        with (
            history_written(own_server, kind, naps=0.0005) as url,
            closing(PgBouncer(program, own_server, url, "transaction", server_login_retry="0.2")) as pooler,
        ):
            ways = [url, pooler.url, proxy.url(own_server.over_tcp(url))]
            stage = Stage(own_server, url, kind, tmp_path, worker, ways, proxy)
            stage.fill_up()
            for number in range(rounds):
                stage.disturb(seconds / rounds, tasks // rounds - SETTLING, restart=number < restarts)
                stage.settle(SETTLING)
            verdict = stage.finish()
        assert verdict.wrong == [], f"{len(verdict.wrong)} wrong, of {verdict.counts}, {stage.done}"
        assert verdict.counts["finished"] == tasks
        for what in ("started", "said done"):
            assert verdict.counts[what] > 0, f"{what}: {verdict.counts}, {stage.done}"
        if seconds > SMOKE:
            for what in (
                "killed",
                "stopped",
                "left",
                "cut by the server",
                "cut",
                "frozen",
                "restarted",
                "lost_sessions",
            ):
                assert stage.done[what] > 0, f"{what}: {verdict.counts}, {stage.done}"
            for what in ("taken over", "moved", "refused"):
                assert verdict.counts[what] > 0, f"{what}: {verdict.counts}, {stage.done}"

    return run


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("kind", ["queue", "table"])
def test_each_task_is_finished_once_by_its_owner(history: Callable[..., None], kind: Kind) -> None:
    history(kind, 1_500, SMOKE, 1, 1)


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("kind", ["queue", "table"])
def test_each_of_many_tasks_is_finished_once_by_its_owner(history: Callable[..., None], kind: Kind) -> None:
    history(kind, 20_000, 50.0, 5, 2)
