"""What tests of the shift over a store share: engines in a still world, shifts on them, a queue.

Here live helpers without assertions of their own, except what must be true of every end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

from pgconcert.clock import FakeClock
from pgconcert.errors import StatementFailed
from pgconcert.memory import World
from pgconcert.messenger import Answer
from pgconcert.sessions.register import SessionRegister
from pgconcert.sessions.timing import timing
from pgconcert.store import Request
from pgconcert.tasks.membership import join
from pgconcert.tasks.pace import rest
from pgconcert.tasks.shift import Handed, NotDone, Report
from pgconcert.tasks.storeshift import StoreShift
from pgconcert.tasks.task import Task
from pgconcert.taskstore import Enqueue, LookAtTasks, NewTask, QueuePlace, TaskInfo, Turn
from tests.unit.ears import turns
from tests.unit.session_scenes import KEYS, House, Observer, opened, pass_time

T = TypeVar("T")

PLACE = QueuePlace("", "mail", 3600.0)
TEN = timing(10.0)
NOTHING = Report()


class Poison(Observer):
    """A store at which some tasks cannot be finished."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.bad: set[str] = set()

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        if self._is_bad(request):
            self.asked.append(request)
            answer.set_exception(StatementFailed("a trigger says no", "P0001"))
        else:
            super().ask(request, answer)

    def _is_bad(self, request: Request[Any]) -> bool:
        return isinstance(request, Turn) and bool(self.bad & {*request.finished})


class Shop:
    """A world with a queue, and whoever works there."""

    def __init__(self) -> None:
        self.clock = FakeClock(100.0)
        self.world = World("shifts", self.clock)
        self.houses: list[House] = []
        self.shifts: list[StoreShift] = []
        self.moved: list[int] = []

    async def house(self) -> House:
        house = await opened(self.world)
        house.store = house.engine.store = house.engine.heart.store = Poison(house.backend.store)
        self.houses.append(house)
        return house

    async def shift(self, house: House | None = None, *, most: int | None = None, every: float = 5.0) -> StoreShift:
        """A new session of the runner *w*; in a house of its own, unless one is given."""
        house = house or await self.house()
        of = SessionRegister(house.register, house.engine, KEYS, house.engine.events)
        membership = await join(of, "w", uuid4().hex, TEN, "queue mail")
        shift = StoreShift(
            of,
            PLACE,
            membership,
            most=most,
            every=every,
            rest=lambda failures: rest(5.0, failures, lambda: 0.0),
            moved=self.moved.append,
        )
        self.shifts.append(shift)
        return shift

    async def add(self, count: int, attempts: int = 20) -> tuple[str, ...]:
        """Put tasks into the queue."""
        new = tuple(NewTask(b"%d" % number, attempts=attempts) for number in range(count))
        return await self.houses[0].look(Enqueue(place=PLACE, tasks=new))

    async def tasks(self) -> dict[str, TaskInfo]:
        """All that there are, by id."""
        found = await self.houses[0].look(LookAtTasks(place=PLACE, limit=10_000))
        return {one.id: one for one in found}

    async def states(self) -> list[str]:
        return sorted(one.state for one in (await self.tasks()).values())

    async def owned(self, shift: StoreShift, state: str) -> list[str]:
        """What a session has in the rows."""
        return [one.id for one in (await self.tasks()).values() if (one.session, one.state) == (shift.session, state)]


@asynccontextmanager
async def shop() -> AsyncIterator[Shop]:
    """A world. At the end all is to be had."""
    one = Shop()
    await one.house()
    yield one
    for shift in one.shifts:
        await shift.end(Report())
    # whoever comes gets everything: nothing is forgotten
    await pass_time(one.clock, 11.0)
    last = await one.shift(every=0.0)
    await last.turn(Report(), 10_000, pick=True)
    tasks = await one.tasks()
    ours = [task for task in tasks.values() if task.state == "started" and task.session == last.session]
    assert len(tasks) == len(ours) + sum(task.state in ("scheduled", "finished", "dead") for task in tasks.values())
    await last.end(Report())
    for house in one.houses:
        await house.close()


def finished(*tasks: Task) -> Report:
    return Report(finished=tasks)


def failed(*tasks: Task, retry_in: float = 1.0) -> Report:
    return Report(failed=tuple(NotDone(task, "no", retry_in) for task in tasks))


def released(*tasks: Task) -> Report:
    return Report(released=tasks)


def ids(handed: Handed) -> list[str]:
    return [task.id for task in handed.tasks]


async def lost_on_the_way(house: House, doing: Any, *kinds: type[Request[Any]]) -> asyncio.Future[Any]:
    """Do something whose questions are carried out, and whose answers never come."""
    store = house.store
    store.keeps = {*kinds}
    future: asyncio.Future[Any] = asyncio.ensure_future(doing)
    await turns(8)
    store.keeps = set()
    store.lose()
    await turns(8)
    return future
