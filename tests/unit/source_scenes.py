"""What tests of the shift over a `TaskSource` share: a source, a clock that stands still, and what was told.

Theory: `FakeSource` keeps the promise of a source and nothing else, and a clock that is moved by hand decides what is
over; so each test says exactly what happened, and looks at the calls that the source got.
"""

import asyncio
from collections.abc import Iterable

from pgconcert.clock import Clock, FakeClock
from pgconcert.events import Event, EventStream
from pgconcert.events.tasks import RunnerFailed
from pgconcert.tasks import sourceshift
from pgconcert.tasks.shift import NotDone, Report
from pgconcert.tasks.sources import TaskSource
from pgconcert.tasks.sourceshift import SourceShift
from pgconcert.tasks.task import Task
from pgconcert.testing import FakeSource

NOTHING = Report()


class Scene:
    """A shift at a source, a clock to move, and what was told."""

    def __init__(self, source: TaskSource, clock: Clock | None = None, most: int | None = None) -> None:
        self.source = source
        self.clock = clock or FakeClock()
        self.most = most
        self.found = 0
        self.trouble: Exception | None = None
        self.events = EventStream()
        self.failed: list[RunnerFailed] = []
        self.events.subscribe(self._read, RunnerFailed)

    async def find(self) -> TaskSource:
        self.found += 1
        if self.trouble is not None:
            raise self.trouble
        return self.source

    async def begin(self) -> SourceShift:
        return await sourceshift.begin(self.find, runner="r", most=self.most, clock=self.clock, events=self.events)

    def _read(self, event: Event) -> None:
        assert isinstance(event, RunnerFailed)
        self.failed.append(event)


def fake(tasks: Iterable[str] = (), most: int | None = None) -> tuple[FakeSource, FakeClock, Scene]:
    """A source, the clock that it and the shift live by, and the scene."""
    clock = FakeClock()
    source = FakeSource([*tasks], ttl=40.0, clock=clock)
    return source, clock, Scene(source, clock, most)


def ids(tasks: Iterable[Task]) -> list[str]:
    return [task.id for task in tasks]


def methods(source: FakeSource) -> list[str]:
    return [call.method for call in source.calls]


def not_done(task: Task, retry_in: float = 5.0) -> Report:
    return Report(failed=(NotDone(task, "no", retry_in),))


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)
