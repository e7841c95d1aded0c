"""What a session has, of a table: the pure part, which lets failed tasks rest here."""

from __future__ import annotations

from pgconcert.tasks.holdings import Holdings
from pgconcert.tasks.shift import NotDone, Report
from pgconcert.tasks.task import Task
from pgconcert.taskstore import Held, TaskRow, Turned


def handed(*names: str, assigned: tuple[str, ...] = (), rests: bool = True) -> tuple[Holdings, dict[str, Task]]:
    """A session that has started some tasks, and has others."""
    has = Holdings(rests=rests)
    has.learn(Turned(started=tuple(TaskRow(name, 0, {}) for name in names), assigned=assigned), ())
    return has, dict(has.hand)


def fail(has: Holdings, task: Task, retry_in: float, *, refused: tuple[str, ...] = ()) -> None:
    has.note(Report(failed=(NotDone(task, "no", retry_in),)))
    has.settle(Turned(refused=refused), 100.0)


def test_what_has_failed_rests_and_then_is_the_last_in_order_and_its_attempts_are_counted() -> None:
    has, tasks = handed("a", assigned=("b",))
    assert tasks["a"].attempt == 1
    fail(has, tasks["a"], 5.0)
    has.wake_rested(104.9)
    assert has.first(9) == ("b",)
    assert has.count == 2
    has.wake_rested(105.0)
    assert has.first(9) == ("b", "a")
    has.learn(Turned(started=(TaskRow("b", 0, {}), TaskRow("a", 0, {}))), ("b", "a"))
    assert {name: task.attempt for name, task in has.hand.items()} == {"a": 2, "b": 1}


def test_a_queue_lets_failed_tasks_rest_itself() -> None:
    has, tasks = handed("a", rests=False)
    fail(has, tasks["a"], 5.0)
    assert has.count == 0
    assert has.failures == {}


def test_what_failed_and_is_not_ours_does_not_rest_here() -> None:
    has, tasks = handed("a")
    fail(has, tasks["a"], 5.0, refused=("a",))
    assert has.resting == {}


def test_what_was_said_before_and_is_refused_counts_as_said() -> None:
    has, tasks = handed("a", "b")
    has.note(Report((tasks["a"],), (NotDone(tasks["b"], "no", 5.0),)))
    has.unanswered()
    has.settle(Turned(refused=("a", "b")), 100.0)
    assert has.refused == []
    assert has.resting == {"b": 105.0}
    has.recalled(())  # and nothing is ours
    assert has.resting == {}
    assert has.failures == {}


def test_what_rests_is_recalled_as_resting() -> None:
    has, tasks = handed("a", "c")
    fail(has, tasks["a"], 5.0)
    has.recalled(("b", "a"))
    assert has.first(9) == ("b",)
    assert has.resting == {"a": 105.0}


def test_what_was_not_started_is_with_somebody_else() -> None:
    has, tasks = handed("a")
    fail(has, tasks["a"], 0.0)
    has.wake_rested(100.0)
    has.learn(Turned(), ("a",))
    assert has.count == 0
    assert has.failures == {}


def test_reports_of_what_is_not_in_hand_say_nothing() -> None:
    has, tasks = handed("a")
    report = Report((tasks["a"],))
    has.note(report)
    has.note(report)
    has.settle(Turned(), 100.0)
    has.note(report)
    assert not has.owed
    has.note(Report(released=(Task("x"),)))
    assert not has.owed


def test_the_rows_agree_if_they_have_what_we_believe() -> None:
    has, _ = handed("a", assigned=("b",))
    assert has.agrees(Held(1, 1, 1))
    assert not has.agrees(Held(1, 0, 1))  # it moved away
    assert not has.agrees(Held(1, 0, 0))
    assert not has.agrees(Held(1, 0, 2))
    assert not has.agrees(Held(1, 2, 1))


def test_what_is_owed_when_the_session_is_lost_is_refused() -> None:
    has, tasks = handed("a", "b")
    has.note(Report((tasks["a"],), (), (tasks["b"],)))
    has.lose()
    assert has.refused == [tasks["a"]]


def test_at_the_end_all_in_hand_is_released() -> None:
    has, tasks = handed("a", "b")
    has.note(Report((tasks["a"],)))
    has.release_all()
    assert [*has.released] == ["b"]
    assert has.new == []


def test_what_is_recalled_was_not_finished_although_it_was_said_before() -> None:
    has, tasks = handed("a", "b")
    has.note(Report((tasks["a"], tasks["b"])))
    has.unanswered()
    has.settle(Turned(refused=("a", "b")), 100.0)
    assert has.refused == []
    has.recalled(("b",))
    assert has.refused == [tasks["b"]]
    has.recalled(("b",))
    assert has.refused == [tasks["b"]]
