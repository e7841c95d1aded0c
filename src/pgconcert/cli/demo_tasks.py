"""What happened to the tasks of a demo, and what follows from it. Pure: no clock, no process, no output.

Every process has a runner of one name, and writes *sharing* with the number of its session when it gets one. It writes
*begun* when it is handed a task, and then *completed* just before it says so to the server, or *dropped* if its work
was cancelled; *refused*, with their number, when the server did not take completed ones from it. Beside that there are
the looks of the director at the queue: to which session each task belongs, and in the end which one finished it.

What is proven is what is promised. Every task was finished, once, by a session whose process had completed it, and was
begun by nobody after that. No two processes were at one task at one time. What another one finished though it had been
completed was told to who had completed it, unless that was killed. Of the tasks that a killed process had, every one
was finished by another.

A process that is not run for a while may be at a task that has gone to another: its session is over, and it learns so
when it is run again, so it *drops* the task. Such an overlap is *excused*, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..taskstore import TaskInfo
from .demo_history import Kind, Record

__all__ = ["QUEUE_NAME", "Share", "Sharing", "Work", "excused", "judge_tasks", "works"]

QUEUE_NAME: Final = "demo"


class Share(NamedTuple):
    """Of one process: how many tasks it has, and how many it has finished."""

    has: int
    finished: int


@dataclass(frozen=True, slots=True)
class Work:
    """One task in the hands of one process. ``end`` is ``None`` while it lasts; ``how`` is the record that ended it."""

    worker: int
    pid: int
    session: int
    number: int
    start: int
    end: int | None
    how: Kind | None

    def __str__(self) -> str:
        return f"worker-{self.worker} (pid {self.pid}, session {self.session})"


@dataclass(slots=True)
class Sharing:
    """All there is to see. ``count`` tasks were put into the queue, numbered from 0; ``tasks`` are they, as last seen.

    ``first`` are the shares when all tasks had been picked up, ``then`` those when the ``killed`` process had died, and
    ``left`` the numbers of the tasks that it left behind; ``after`` are the shares when others had all of these.
    """

    processes: int
    count: int
    records: list[Record] = field(default_factory=list)
    tasks: Sequence[TaskInfo] = ()
    workers: dict[int, int] = field(default_factory=dict)
    """Whose each session is, or was."""
    begun: int = 0
    first: Mapping[int, Share] | None = None
    then: Mapping[int, Share] | None = None
    after: Mapping[int, Share] | None = None
    killed: Record | None = None
    left: frozenset[int] = frozenset()
    heirs: Counter[int] = field(default_factory=Counter)
    """How many of those were whose when others had all of them."""
    moved_at: int = 0

    def take(self, record: Record) -> None:
        """One more record."""
        self.records.append(record)
        if record.kind is Kind.SHARING:
            self.workers[record.number] = record.worker

    def see(self, tasks: Sequence[TaskInfo], at: int) -> None:
        """A look at the queue."""
        self.tasks = tasks
        if self.first is None and len(tasks) == self.count and all(task.state != "waiting" for task in tasks):
            self.first = self.shares()
        if self.killed is None or self.after is not None:
            return
        theirs = [task for task in tasks if self._worker(task) == self.killed.worker]
        still = frozenset(number_of(task) for task in theirs if task.state != "finished")
        self.left = self.left or still
        # what it had said last may have reached the server after its death
        self.left -= {number_of(task) for task in theirs if task.state == "finished"}
        if not still:
            self.after, self.moved_at = self.shares(), at
            self.heirs = Counter(self._worker(task) for task in tasks if number_of(task) in self.left)

    def shares(self) -> Mapping[int, Share]:
        """The share of each process, as last seen."""
        has = Counter(self._worker(task) for task in self.tasks if task.state in ("assigned", "started"))
        finished = Counter(self._worker(task) for task in self.tasks if task.state == "finished")
        return {worker: Share(has[worker], finished[worker]) for worker in range(1, self.processes + 1)}

    @property
    def finished(self) -> int:
        """How many are finished, as last seen."""
        return sum(task.state == "finished" for task in self.tasks)

    def _worker(self, task: TaskInfo) -> int:
        return self.workers.get(task.session, 0) if task.session is not None else 0


def number_of(task: TaskInfo) -> int:
    """The number with which it was put into the queue."""
    return int(task.payload)


def works(records: Iterable[Record]) -> list[Work]:
    """Everything that was begun. The records of one process must be in its order; processes may be mixed."""
    found: list[Work] = []
    sessions: dict[int, int] = {}
    under_way: dict[int, Record] = {}
    for record in records:
        begun = under_way.get(record.pid)
        if record.kind is Kind.SHARING:
            sessions[record.pid] = record.number
        elif record.kind is Kind.BEGUN:
            under_way[record.pid] = record
        elif begun is not None and record.kind in (Kind.COMPLETED, Kind.DROPPED, Kind.KILLED):
            del under_way[record.pid]
            found.append(_work(begun, sessions, max(begun.at, record.at), record.kind))
    found += [_work(begun, sessions, None, None) for begun in under_way.values()]
    return sorted(found, key=lambda work: work.start)


def _work(begun: Record, sessions: Mapping[int, int], end: int | None, how: Kind | None) -> Work:
    return Work(begun.worker, begun.pid, sessions.get(begun.pid, 0), begun.number, begun.at, end, how)


def _overlaps(records: Iterable[Record]) -> list[tuple[Work, Work]]:
    by_number: dict[int, list[Work]] = {}
    for work in works(records):
        by_number.setdefault(work.number, []).append(work)
    return [
        (earlier, later)
        for those in by_number.values()
        for place, earlier in enumerate(those)
        for later in those[place + 1 :]
        if earlier.end is None or later.start < earlier.end
    ]


def excused(records: Iterable[Record]) -> int:
    """How often a process was at a task that had gone to another, because it had not been run."""
    return sum(earlier.how is Kind.DROPPED for earlier, _ in _overlaps(records))


def judge_tasks(seen: Sharing, *, killed: bool) -> list[str]:
    """What is wrong with the tasks of a finished demo; nothing, if all promises were kept. ``killed``: a process that
    had tasks should have been killed."""
    made = works(seen.records)
    by_number: dict[int, list[Work]] = {}
    for work in made:
        by_number.setdefault(work.number, []).append(work)
    wrong: list[str] = []
    there = Counter(number_of(task) for task in seen.tasks)
    wrong += [f"task {number} was forgotten" for number in range(seen.count) if not there[number]]
    wrong += [f"task {number} is there {times} times" for number, times in there.items() if times > 1]
    finishers: dict[int, Work] = {}
    for task in seen.tasks:
        number = number_of(task)
        if task.state != "finished":
            wrong.append(f"task {number} was not finished: it is {task.state}")
            continue
        did = [
            work for work in by_number.get(number, ()) if work.session == task.session and work.how is Kind.COMPLETED
        ]
        if not did:
            wrong.append(f"task {number} was finished by session {task.session}, which had not completed it")
            continue
        finishers[number] = did[-1]
        later = [work for work in by_number[number] if work.end is None or work.start > (did[-1].end or 0)]
        wrong += [f"task {number} was begun by {work} after {did[-1]} had finished it" for work in later]
    wrong += [
        f"task {earlier.number} was with two processes at one time: {earlier} | {later}"
        for earlier, later in _overlaps(seen.records)
        if earlier.how is not Kind.DROPPED
    ]
    wrong += _untold(seen, made, finishers)
    if killed:
        wrong += _inheritance(seen, finishers)
    return wrong


def _untold(seen: Sharing, made: Iterable[Work], finishers: Mapping[int, Work]) -> list[str]:
    """Who completed what another one finished, and did not learn so."""
    in_vain = Counter(
        work.pid for work in made if work.how is Kind.COMPLETED and finishers.get(work.number, work) is not work
    )
    told: Counter[int] = Counter()
    for record in seen.records:
        if record.kind is Kind.REFUSED:
            told[record.pid] += record.number
    dead = seen.killed.pid if seen.killed is not None else 0
    return [
        f"process {pid} completed {count} tasks that others finished, and was told of {told[pid]}"
        for pid, count in in_vain.items()
        if told[pid] < count and pid != dead
    ]


def _inheritance(seen: Sharing, finishers: Mapping[int, Work]) -> list[str]:
    if seen.killed is None or not seen.left:
        return ["no process was killed while it had tasks"]
    dead = seen.killed.pid
    return [
        f"task {number} was left behind by process {dead}, and no other has finished it"
        for number in sorted(seen.left)
        if number not in finishers or finishers[number].pid == dead
    ]
