"""What a session has at a store, as far as we know: pure bookkeeping, told the answers and the time.

Theory. The rows say what belongs to our session; here is what we know of them. Of every task that is ours::

    assigned --start--> in hand --finished, released--> owed --answered--> gone, or refused
       ^  ^                |
       |  +-- rested ------+-- failed --> owed --answered--> resting (a table), or gone (a queue)
       +------ recalled: what the rows say, and we did not know

What is *owed* stays owed until an answer comes. What was said without an answer (``said``) and is refused when it is
said again counts as done, because nobody takes from a session that lives what it has started. Unless it is recalled
next: a recall that was carried out late has made it assigned again, so it was not finished, and is *refused* after all.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ..taskstore import Failure, Held, Turned
from .shift import Report
from .task import Task

__all__ = ["Holdings"]


class Holdings:
    """See the module. ``rests``: what has failed stays with its session, and rests here (a table)."""

    __slots__ = (
        "assigned",
        "died",
        "doubtful",
        "failed",
        "failures",
        "finished",
        "hand",
        "new",
        "refused",
        "released",
        "resting",
        "rests",
        "said",
    )

    def __init__(self, *, rests: bool) -> None:
        self.rests = rests
        self.assigned: dict[str, None] = {}
        """Not started, in order."""
        self.hand: dict[str, Task] = {}
        """Started, and not reported."""
        self.new: list[Task] = []
        """What of it was not handed out yet."""
        self.resting: dict[str, float] = {}
        """Until when."""
        self.failures: dict[str, int] = {}
        """How often tasks have failed, where their rows do not say it."""
        self.finished: dict[str, Task] = {}
        self.failed: dict[str, tuple[Task, Failure]] = {}
        self.released: dict[str, Task] = {}
        self.said: set[str] = set()
        self.doubtful: dict[str, Task] = {}
        """What was said again and refused, and counts as done, until it is known what is ours."""
        self.refused: list[Task] = []
        self.died: list[str] = []

    @property
    def owed(self) -> bool:
        """Whether there is something to say."""
        return bool(self.finished or self.failed or self.released)

    @property
    def count(self) -> int:
        """How many tasks are ours, but for those that are owed."""
        return len(self.hand) + len(self.assigned) + len(self.resting)

    def note(self, report: Report) -> None:
        """Take a report over."""
        for task in report.finished:
            if self.hand.pop(task.id, None) is not None:
                self.finished[task.id] = task
        for task, error, retry_in in report.failed:
            if self.hand.pop(task.id, None) is not None:
                self.failed[task.id] = task, Failure(task.id, error, retry_in)
        for task in report.released:
            if self.hand.pop(task.id, None) is not None:
                self.released[task.id] = task

    def release_all(self) -> None:
        """What is in hand is released."""
        self.released |= self.hand
        self.hand.clear()
        self.new.clear()

    def first(self, count: int) -> tuple[str, ...]:
        """The first of those that are assigned."""
        return tuple(islice(self.assigned, max(count, 0)))

    def wake_rested(self, now: float) -> None:
        """Those that have rested may be started again."""
        for name in [name for name, due in self.resting.items() if due <= now]:
            del self.resting[name]
            self.assigned[name] = None

    def unanswered(self) -> None:
        """What is owed may have been said without an answer."""
        self.said.update(self.finished, self.failed, self.released)

    def learn(self, answer: Turned, start: tuple[str, ...]) -> None:
        """What came of a request to start these, and what is ours besides."""
        started = {row.id for row in answer.started}
        for name in start:
            del self.assigned[name]
            if name not in started:
                self.failures.pop(name, None)  # it is with somebody else
        for row in answer.started:
            task = Task(row.id, row.payload, attempt=row.attempt or self.failures.get(row.id, 0) + 1)
            self.hand[row.id] = task
            self.new.append(task)
        self.assigned |= dict.fromkeys(answer.assigned)

    def settle(self, answer: Turned, now: float) -> None:
        """All that was owed is answered."""
        self.settle_finished(answer, [*self.finished])
        for name, (task, failure) in self.failed.items():
            if self.rests and (name not in answer.refused or name in self.said):
                self.resting[name] = now + failure.retry_in
                self.failures[name] = task.attempt
        self.failed.clear()
        self.released.clear()
        self.said.clear()

    def settle_finished(self, answer: Turned, names: Iterable[str]) -> None:
        """Of these it is answered that they are finished."""
        for name in names:
            task = self.finished.pop(name)
            self.failures.pop(name, None)
            if name in answer.refused and name not in self.said:
                self.refused.append(task)
            elif name in answer.refused:
                self.doubtful[name] = task

    def cannot_finish(self, name: str, error: str, retry_in: float) -> None:
        """It was completed, and it cannot be said: so it has failed."""
        self.failed[name] = self.finished.pop(name), Failure(name, error, retry_in)

    def recalled(self, names: Iterable[str]) -> None:
        """What is ours besides what is in hand, in order."""
        ours = dict.fromkeys(names)
        self.refused += [task for name, task in self.doubtful.items() if name in ours]
        self.doubtful.clear()
        self.resting = {name: due for name, due in self.resting.items() if name in ours}
        self.assigned = {name: None for name in ours if name not in self.resting}
        self.failures = {name: n for name, n in self.failures.items() if name in ours or name in self.hand}

    def agrees(self, held: Held) -> bool:
        """Whether the rows have what we believe: nothing that we do not know; nothing less, which was moved away."""
        return held.started <= len(self.hand) and held.assigned + held.started == self.count

    def lose(self) -> None:
        """The session is lost: what is owed will never be heard."""
        self.refused += self.finished.values()
        self.finished.clear()
