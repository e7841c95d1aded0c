"""What cases of tasks speak with: a hand, which is a runner with a session of its own at a queue. No case stands here.

Theory. As for sessions (``desks.py``): a hand that is to live has a long time to live, one that is to die a short one,
and what it must have done before is done again with a longer life when that came too late. What a store locks this
instant is passed over, so a pick-up may give less than there is while others are at it; alone it gives everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from ...store import EndSession, Subject, Take, Taken
from ...taskstore import (
    Enqueue,
    Failure,
    LookAtQueues,
    LookAtTasks,
    NewTask,
    Pick,
    QueueInfo,
    QueuePlace,
    TaskInfo,
    TaskRow,
    TaskState,
    Turn,
    Turned,
)
from ..leaks import eventually_async
from .desks import LONG, Desk, desk, desks
from .suite import Stage

__all__ = [
    "ALL",
    "NONSENSE",
    "Hand",
    "crew",
    "dying_hand",
    "enqueue",
    "failures",
    "hand",
    "hands",
    "held",
    "ids",
    "info",
    "queue",
    "shown",
]

ALL = Pick(None, 1000)
"""A pick-up of everything that we may have, all of it started."""

NONSENSE = ("no such task", "", "1e3", "-1", "0", str(10**30))
"""Ids that no task has."""


def queue(name: str = "queue", retention: float = 0.0) -> QueuePlace:
    """A queue that nobody else uses."""
    return QueuePlace(secrets.token_hex(8), name, retention)


def ids(rows: Sequence[TaskRow]) -> list[str]:
    """Which tasks these are."""
    return [row.id for row in rows]


def failures(names: Sequence[str], retry_in: float = LONG) -> tuple[Failure, ...]:
    """These have failed, and rest so long."""
    return tuple(Failure(name, f"error of {name}", retry_in) for name in names)


class Hand:
    """A runner at a queue: its session and its entry."""

    def __init__(self, desk: Desk, place: QueuePlace, session: int, runner: Subject) -> None:
        self.desk = desk
        self.place = place
        self.session = session
        self.runner = runner

    async def turn(self, pick: Pick | None = None, **what: Any) -> Turned:
        """A turn of a session that lives."""
        turned = await self.tried(pick, **what)
        assert not turned.over, f"session {self.session} lives, and its turn says that it is over"
        return turned

    async def tried(self, pick: Pick | None = None, **what: Any) -> Turned:
        """A turn, whether it lives or not."""
        return await self.desk.ask(
            Turn(**{"place": self.place, "runner": self.runner, "session": self.session, "pick": pick, **what})
        )

    async def take(self, count: int = 1000, start: int = 1000) -> list[str]:
        """Pick up what is there, at most so many in all: which, started or not, in order."""
        turned = await self.turn(Pick(count, start))
        return [*ids(turned.started), *turned.assigned]

    async def take_in_time(self, *wanted: str) -> dict[str, int]:
        """Pick up until these are ours: the attempt of each."""
        got: dict[str, int] = {}

        async def all_here() -> bool:
            got.update({row.id: row.attempt for row in (await self.turn(ALL)).started})
            return got.keys() >= {*wanted}

        await eventually_async(all_here, 20, what=f"session {self.session} gets {wanted}")
        return got

    async def finish(self, *names: str) -> None:
        """Finish what is ours."""
        turned = await self.turn(finished=names)
        assert not turned.refused, f"these are ours, and were refused: {turned.refused}"

    async def end(self) -> None:
        """End its session."""
        assert await self.desk.ask(EndSession(self.session))


async def enqueue(desk: Desk, place: QueuePlace, count: int, **how: Any) -> list[str]:
    """Put so many tasks there: their ids."""
    return [*await desk.ask(Enqueue(place=place, tasks=tuple(NewTask(b"%d" % n, **how) for n in range(count))))]


async def hand(at: Desk, place: QueuePlace, ttl: float = LONG, name: str = "runner") -> Hand:
    """A runner of this name."""
    runner = Subject("runner", place.namespace, name, secrets.token_hex(16))
    session = await at.start(ttl)
    await at.take(runner, session)
    return Hand(at, place, session, runner)


async def hands(stage: Stage, place: QueuePlace, count: int = 2) -> list[Hand]:
    """Several, each with a coordinator of its own."""
    return [await hand(one, place) for one in await desks(stage, count)]


async def dying_hand(at: Desk, place: QueuePlace, count: int, start: int) -> tuple[Hand, list[str]]:
    """A runner, of another name than the others, that has taken so many tasks and will soon be over. Nobody else may be
    at that queue."""
    ttl = 0.25
    while True:
        runner = Subject("runner", place.namespace, "dying", secrets.token_hex(16))
        session = await at.start(ttl)
        dying = Hand(at, place, session, runner)
        if isinstance(await at.ask(Take(subject=runner, session=session)), Taken):
            turned = await dying.tried(Pick(count, start))
            if not turned.over:
                taken = [*ids(turned.started), *turned.assigned]
                assert len(taken) == count, f"{count} tasks were there, and {taken} were picked up"
                return dying, taken
        await at.ask(EndSession(session))
        ttl *= 2


async def info(at: Desk, place: QueuePlace) -> QueueInfo:
    """How many tasks of each state."""
    (found,) = await at.ask(LookAtQueues(namespace=place.namespace, name=place.name))
    return found


async def shown(at: Desk, place: QueuePlace, state: TaskState | None = None) -> dict[str, TaskInfo]:
    """What anybody may see of the tasks, in order."""
    return {task.id: task for task in await at.ask(LookAtTasks(place=place, state=state, limit=1000))}


async def held(at: Desk, place: QueuePlace, *some: Hand) -> list[list[str]]:
    """What each of these has, in order."""
    tasks = await shown(at, place)
    return [[name for name, task in tasks.items() if task.session == one.session] for one in some]


async def crew(stage: Stage, place: QueuePlace) -> tuple[Desk, Hand]:
    """A desk, and a runner at it."""
    at = await desk(stage)
    return at, await hand(at, place)
