"""The check of a demo's tasks must find what is wrong; a check that finds nothing proves nothing.

Histories are written by hand here, in milliseconds, and read by the functions that judge a real demo. Process 101 has
session 11, process 102 session 12.
"""

from __future__ import annotations

import pytest

from pgconcert.cli.demo_history import Kind, Record
from pgconcert.cli.demo_tasks import Share, Sharing, excused, judge_tasks, works
from pgconcert.taskstore import TaskInfo, TaskState

MS = 1_000_000


def at(ms: float, kind: Kind, pid: int, number: int = 0) -> Record:
    return Record(kind, pid - 100, pid, round(ms * MS), number=number)


def did(pid: int, number: int, start: float, end: float, how: Kind = Kind.COMPLETED) -> list[Record]:
    return [at(start, Kind.BEGUN, pid, number), at(end, how, pid, number)]


def task(number: int, session: int | None, state: TaskState = "finished") -> TaskInfo:
    return TaskInfo(
        id=f"id {number}",
        state=state,
        payload=b"%d" % number,
        attempt=1,
        attempts=20,
        created=0.0,
        run_at=0.0,
        session=session,
        error=None,
        finished=1.0 if state == "finished" else None,
    )


SESSIONS = [at(0, Kind.SHARING, 101, 11), at(0, Kind.SHARING, 102, 12)]
KILL = at(25, Kind.KILLED, 101)
TASKS = [task(0, 11), task(1, 12), task(2, 12)]
GOOD = [*SESSIONS, *did(101, 0, 10, 20), *did(102, 1, 10, 20), *did(102, 2, 30, 40)]


def seen(records: list[Record], tasks: list[TaskInfo], count: int = 3) -> Sharing:
    made = Sharing(2, count)
    for record in records:
        made.take(record)
    made.see(tasks, 0)
    return made


def judged(records: list[Record], tasks: list[TaskInfo], count: int = 3) -> list[str]:
    return judge_tasks(seen(records, tasks, count), killed=False)


def test_a_history_of_tasks_is_right() -> None:
    assert judged(GOOD, TASKS) == []


def test_a_task_that_was_forgotten_is_found() -> None:
    assert judged(GOOD, TASKS, 4) == ["task 3 was forgotten"]


def test_a_task_that_is_there_twice_is_found() -> None:
    assert judged(GOOD, [*TASKS, task(1, 12)]) == ["task 1 is there 2 times"]


@pytest.mark.parametrize("state", ["waiting", "assigned", "started", "dead", "scheduled"])
def test_a_task_that_was_not_finished_is_found(state: TaskState) -> None:
    assert judged(GOOD, [*TASKS[:2], task(2, 12, state)]) == [f"task 2 was not finished: it is {state}"]


@pytest.mark.parametrize("session", [11, 13, None])
def test_a_task_that_another_one_finished_is_found(session: int | None) -> None:
    (wrong,) = judged(GOOD, [*TASKS[:2], task(2, session)])
    assert wrong == f"task 2 was finished by session {session}, which had not completed it"


def test_a_task_that_was_dropped_was_not_completed() -> None:
    records = [*GOOD[:-2], *did(102, 2, 30, 40, Kind.DROPPED)]
    assert judged(records, TASKS) == ["task 2 was finished by session 12, which had not completed it"]


def test_a_task_that_was_begun_after_it_was_finished_is_found() -> None:
    wrong = judged([*GOOD, *did(101, 1, 50, 60, Kind.DROPPED)], TASKS)
    assert wrong == [
        "task 1 was begun by worker-1 (pid 101, session 11) after worker-2 (pid 102, session 12) had finished it"
    ]


def test_one_that_is_begun_and_never_ended_is_found_too() -> None:
    (wrong,) = judged([*GOOD, at(50, Kind.BEGUN, 101, 1)], TASKS)
    assert wrong.startswith("task 1 was begun by worker-1 (pid 101, session 11) after ")


@pytest.mark.parametrize(("start", "end"), [(5, 15), (15, 25), (12, 18), (5, 25)])
def test_two_processes_at_one_task_are_found(start: float, end: float) -> None:
    records = [*GOOD, *did(101, 1, start, end), at(60, Kind.REFUSED, 101, 1)]
    wrong = [each for each in judged(records, TASKS) if each.startswith("task 1 was with two processes at one time: ")]
    assert len(wrong) == 1
    assert "worker-1 (pid 101, session 11)" in wrong[0]
    assert "worker-2 (pid 102, session 12)" in wrong[0]


def test_touching_is_not_overlapping() -> None:
    assert judged([*GOOD, *did(101, 1, 5, 10, Kind.DROPPED)], TASKS) == []


def test_an_overlap_with_one_that_was_not_run_is_excused_and_counted() -> None:
    late = [*SESSIONS, *did(101, 1, 5, 15, Kind.DROPPED), at(16, Kind.SHARING, 101, 13)]
    records = [*late, *GOOD[2:4], *GOOD[4:]]
    tasks = [task(0, 13), *TASKS[1:]]
    assert judged(records, tasks) == []
    assert excused(records) == 1
    assert excused(GOOD) == 0


def test_a_completed_task_that_another_one_finished_must_be_told() -> None:
    records = [*GOOD, *did(101, 1, 1, 9)]
    assert judged(records, TASKS) == ["process 101 completed 1 tasks that others finished, and was told of 0"]
    assert judged([*records, at(60, Kind.REFUSED, 101, 1)], TASKS) == []


def test_a_task_of_a_killed_process_goes_to_another() -> None:
    made = _killed([task(0, 12), *TASKS[1:]])
    assert judge_tasks(made, killed=True) == []
    assert (made.left, dict(made.heirs), made.moved_at) == (frozenset({0, 2}), {2: 2}, 70)
    assert made.after == {1: Share(0, 0), 2: Share(2, 1)}


def test_a_task_that_a_dead_process_finished_after_it_left_it_behind_is_found() -> None:
    made = _killed([task(0, 11), *TASKS[1:]])
    assert "task 0 was left behind by process 101, and no other has finished it" in judge_tasks(made, killed=True)


def test_what_a_dead_process_had_said_before_is_its_own() -> None:
    """Its last report was on the way when it died."""
    made = seen([*SESSIONS, *did(101, 0, 10, 20), *did(102, 1, 10, 20)], [])
    made.killed = KILL
    made.take(KILL)
    made.see([task(0, 11, "started"), task(1, 12), task(2, 11, "assigned")], 26)
    assert made.left == {0, 2}
    made.see([task(0, 11), task(1, 12), task(2, 11, "assigned")], 27)
    assert made.left == {2}
    for record in did(102, 2, 90, 99):
        made.take(record)
    made.see(TASKS, 100)
    assert dict(made.heirs) == {2: 1}
    assert judge_tasks(made, killed=True) == []


def test_a_kill_that_met_nobody_with_tasks_is_found() -> None:
    made = seen(GOOD, TASKS)
    assert judge_tasks(made, killed=True) == ["no process was killed while it had tasks"]
    made.killed = KILL
    made.see(TASKS, 60)
    assert judge_tasks(made, killed=True) == ["no process was killed while it had tasks"]


def _killed(last: list[TaskInfo]) -> Sharing:
    """Process 101 completed task 0, and had task 2, when it was killed; the other one did both."""
    made = seen([*SESSIONS, *did(101, 0, 10, 20), *did(102, 1, 10, 20)], [])
    made.see([task(0, 11, "started"), task(1, 12), task(2, 11, "assigned")], 24)
    made.killed = KILL
    made.take(KILL)
    made.see([task(0, 11, "started"), task(1, 12), task(2, 11, "assigned")], 26)
    made.see([task(0, 12, "started"), task(1, 12), task(2, 11, "assigned")], 60)
    assert made.after is None
    made.see([task(0, 12, "started"), task(1, 12), task(2, 12, "assigned")], 70)
    for record in [*did(102, 0, 80, 90), *did(102, 2, 90, 99)]:
        made.take(record)
    made.see(last, 100)
    return made


def test_shares_are_seen() -> None:
    made = seen(SESSIONS, [task(0, None, "waiting"), task(1, 12, "started"), task(2, 11, "assigned")])
    assert made.first is None
    assert made.shares() == {1: Share(1, 0), 2: Share(1, 0)}
    made.see([task(0, 12), task(1, 12, "started"), task(2, 11, "assigned")], 10)
    assert made.first == {1: Share(1, 0), 2: Share(1, 1)}
    assert made.finished == 1


def test_a_kill_ends_what_was_under_way() -> None:
    (work,) = works([*SESSIONS, at(10, Kind.BEGUN, 101, 7), KILL])
    assert (work.session, work.number, work.start, work.end, work.how) == (11, 7, 10 * MS, 25 * MS, Kind.KILLED)


def test_what_is_done_belongs_to_the_session_in_which_it_was_begun() -> None:
    records = [SESSIONS[0], *did(101, 0, 1, 2), at(3, Kind.SHARING, 101, 13), *did(101, 1, 4, 5)]
    assert [work.session for work in works(records)] == [11, 13]
