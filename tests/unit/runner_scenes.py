"""What tests of the runner share: a source that does what the test says, a runner on it, and plain taskers.

Here live helpers without assertions of their own. Theory: a `Script` stands for whatever opens shifts, a
`ScriptedShift` for a session there. Both keep the port of `tasks/shift.py` and write down what they were asked; a test
may hold an answer back (`gate`), let the next questions fail (`errors`), and lose the shift (`lose`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pgconcert.acquiring import Register
from pgconcert.errors import SessionLost
from pgconcert.events import Event, EventStream
from pgconcert.keys import KeySpace
from pgconcert.sessions.register import SessionRegister
from pgconcert.sessions.timing import timing
from pgconcert.tasks.opening import Opened, Opening
from pgconcert.tasks.runner import AsyncRunner
from pgconcert.tasks.shift import Handed, Report
from pgconcert.tasks.sources import QueueTasks
from pgconcert.tasks.task import Task
from pgconcert.tasks.tasker import Make, Tasker
from pgconcert.testing import eventually_async


class Asked(NamedTuple):
    """One turn."""

    report: Report
    room: int
    pick: bool


class ScriptedShift:
    """One session at a scripted source."""

    def __init__(self, script: Script, session: int) -> None:
        self.session = session
        self.lost: str | None = None
        self.script = script
        self.asked: list[Asked] = []
        self.ends: list[Report] = []
        self.errors: deque[BaseException] = deque()
        """What the next turns raise; their reports are kept."""
        self.end_error: BaseException | None = None
        self.gate: asyncio.Event | None = None
        """While there is one that is not set, no turn is answered."""
        self.refuses: set[str] = set()
        self.next_in: float | None = None
        self.hand: dict[str, Task] = {}
        self._kept: list[Report] = []
        self._told: list[Callable[[str], None]] = []

    def when_lost(self, told: Callable[[str], None]) -> None:
        self._told.append(told)

    def lose(self, reason: str = "the test said so") -> None:
        self.lost = reason
        for told in self._told:
            told(reason)

    async def turn(self, report: Report, room: int, *, pick: bool) -> Handed:
        self.asked.append(Asked(report, room, pick))
        self._kept.append(report)
        script = self.script
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.popleft()
        if self.lost is not None:
            raise SessionLost(f"session {self.session}", self.lost)
        refused = self._said()
        tasks = [script.tasks.popleft() for _ in range(min(room, len(script.tasks)))]
        self.hand.update((task.id, task) for task in tasks)
        return Handed(tuple(tasks), refused, more=bool(script.tasks), next_in=self.next_in, share=7, sessions=3)

    async def end(self, report: Report) -> Handed:
        self.ends.append(report)
        self._kept.append(report)
        if self.end_error is not None:
            raise self.end_error
        if self.lost is not None:
            kept, self._kept = self._kept, []
            return Handed(refused=tuple(task for one in kept for task in one.finished))
        refused = self._said()
        self.script.tasks.extendleft(reversed(self.hand.values()))
        self.hand.clear()
        return Handed(refused=refused)

    def _said(self) -> tuple[Task, ...]:
        script = self.script
        refused: list[Task] = []
        kept, self._kept = self._kept, []
        for report in kept:
            for task in report.finished:
                del self.hand[task.id]
                if task.id in self.refuses:
                    refused.append(task)
                else:
                    script.done.append(task.id)
            for failed in report.failed:
                del self.hand[failed.task.id]
                script.failed.append((failed.task.id, failed.error, failed.retry_in))
            for task in report.released:
                del self.hand[task.id]
                script.released.append(task.id)
                script.tasks.appendleft(task)
        return tuple(refused)


class Script(Opening):
    """A source. ``tasks`` are free; those that came to something are in ``done``, ``failed`` and ``released``."""

    def __init__(self, tasks: Iterable[str] = ()) -> None:
        self.tasks = deque(Task(name, name.encode()) for name in tasks)
        self.done: list[str] = []
        self.failed: list[tuple[str, str, float]] = []
        self.released: list[str] = []
        self.shifts: list[ScriptedShift] = []
        self.errors: deque[BaseException] = deque()
        """What the next attempts to begin raise."""
        self.finder_errors: deque[BaseException] = deque()
        self.moves = False
        """Whether the finder says at the next tick that the tasks are elsewhere."""
        self.looks = 0
        self.make: Make | None = None
        self.gate: asyncio.Event | None = None
        self.prepare: Callable[[ScriptedShift], None] = lambda _: None
        self.step = "start session"

    def add(self, *names: str) -> None:
        self.tasks.extend(Task(name, name.encode()) for name in names)

    async def begin(self) -> Opened:
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.popleft()
        shift = ScriptedShift(self, len(self.shifts) + 1)
        self.prepare(shift)
        self.shifts.append(shift)
        return Opened(shift, None, None, self.make)

    async def has_moved(self, opened: Opened) -> bool:
        self.looks += 1
        if self.finder_errors:
            raise self.finder_errors.popleft()
        moves, self.moves = self.moves, False
        return moves

    @property
    def shift(self) -> ScriptedShift:
        """The latest."""
        return self.shifts[-1]


class Scene:
    """A runner on a script, and what it told. Made inside a running loop."""

    def __init__(self, script: Script, tasker: Tasker, **settings: Any) -> None:
        self.script = script
        self.events: list[Event] = []
        stream = EventStream()
        stream.subscribe(self.events.append)
        register = Register(None, asyncio.get_running_loop(), lambda: "")  # type: ignore[arg-type]
        of = SessionRegister(register, None, KeySpace(""), stream)  # type: ignore[arg-type]
        chosen: dict[str, Any] = {
            "tick": 60.0,
            "jitter": 0.0,
            "tasks_per_session": None,
            "batch": 100,
            "concurrency": 1,
            "per_task": False,
            "timing": timing(40.0),
            **settings,
        }
        self.runner = _Scripted(of, "w", tasker, QueueTasks("q"), **chosen)
        self.runner.script = script

    def told(self, kind: type[Event]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, true: Callable[[], object], what: str = "") -> None:
        await eventually_async(lambda: bool(true()), 30.0, what=what or None)


class _Scripted(AsyncRunner):
    script: Script

    def _opening(self) -> Opening:
        return self.script


async def nothing(_: Any) -> None:
    """A tasker that completes all."""


async def for_ever(_: Any) -> None:
    """A tasker that ends only when it is cancelled."""
    await asyncio.Event().wait()
