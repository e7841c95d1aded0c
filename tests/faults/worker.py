"""A process that competes for locks until it is told to end, and writes what it does into a shared history.

It gets its orders as JSON in its first argument. It says "ready", and begins when it is told "go" on its standard
input; "end", or the end of that input, tells it to begin nothing new and to finish what it waits for. Then it says
"done" with what it counted. An error that no fault explains ends it with a traceback, and the test with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pgconcert import AsyncCoordinator, LockLost, Unavailable
from pgconcert.acquiring import Acquirable
from pgconcert.events import Event
from pgconcert.messenger import Answer
from pgconcert.postgres import waiting
from pgconcert.postgres.messages import Publisher
from tests.faults.history import Diary, Kind

PROGRAM = Path(__file__)
NETWORK_TIMEOUT = 30.0
"""No network fails here, so what is lost was lost by the end of a session, and never because the server was busy."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told. Times in seconds; `cycles` 0 means until the end; `cancel` is the part of turns that is
    cancelled at a random moment. `wants` says what it competes for: one of `keys` locks, the same as a reader, one of
    `permits` of a semaphore, or a set of up to `together` of the `keys`. `recheck` replaces the re-check of waiters,
    and `mute` takes their wake-ups away."""

    url: str
    history: str
    keys: int = 3
    tasks: int = 4
    cycles: int = 0
    longest: float = 0.03
    cancel: float = 0.0
    engine: Literal["loop", "thread"] = "loop"
    recheck: float | None = None
    mute: bool = False
    wants: Literal["lock", "reader", "permit", "set"] = "lock"
    permits: int = 4
    together: int = 4

    def text(self) -> str:
        return json.dumps(asdict(self))


class Competitor:
    """The tasks of this process."""

    def __init__(self, orders: Orders, coordinator: AsyncCoordinator) -> None:
        self._orders = orders
        self._coordinator = coordinator
        self._diary = Diary(Path(orders.history))
        self._turns = 0
        self.ending = asyncio.Event()

    async def run(self) -> None:
        share = -(-self._orders.cycles // self._orders.tasks)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._orders.tasks):
                group.create_task(self._series(share))

    async def _series(self, share: int) -> None:
        done = 0
        while not self.ending.is_set() and not (share and done >= share):
            done += 1
            if random.random() >= self._orders.cancel:
                await self._turn()
                continue
            turn = asyncio.create_task(self._turn())
            asyncio.get_running_loop().call_later(random.uniform(0, 2 * self._orders.longest), turn.cancel)
            await asyncio.wait([turn])
            if not turn.cancelled():
                turn.result()

    async def _turn(self) -> None:
        wanted, keys = self._choose()
        turns = range(self._turns + 1, self._turns + 1 + len(keys))
        self._turns += len(keys)
        entered = False

        def write(kind: Kind, backend: int = 0) -> None:
            for key, turn in zip(keys, turns, strict=True):
                self._diary.write(kind, key=key, turn=turn, backend=backend)

        write(Kind.WAITING)
        try:
            async with wanted as hold:
                backend = self._lock_session()
                if not backend:
                    return  # the engine thread has just seen the end of it, and is about to say so
                entered = True
                if hold.permit is not None:
                    keys = [hold.permit]
                write(Kind.READING if hold.shared else Kind.ENTERED, backend)
                try:
                    await asyncio.sleep(random.uniform(0, self._orders.longest))
                finally:
                    write(Kind.TOLD if hold.lost else Kind.LEFT)
        except LockLost:
            pass
        except Unavailable:
            await asyncio.sleep(0.1)  # our very first session was cut: nobody had promised to wait
        finally:
            if not entered:
                write(Kind.GONE)

    def _choose(self) -> tuple[Acquirable, list[int]]:
        """What this turn wants, and its keys in the history."""
        orders, c = self._orders, self._coordinator
        if orders.wants == "permit":
            return c.semaphore("permits", orders.permits), [0]
        if orders.wants == "set":
            keys = random.sample(range(orders.keys), random.randint(1, orders.together))
            return c.lock_all([f"key {key}" for key in keys]), keys
        key = random.randrange(orders.keys)
        return c.lock(f"key {key}", shared=orders.wants == "reader"), [key]

    def _lock_session(self) -> int:
        return next((link.server_pid or 0 for link in self._coordinator.health().links if link.role == "lock"), 0)


def _disturb(orders: Orders) -> None:
    if orders.recheck is not None:
        name = "_RECHECK"
        assert hasattr(waiting, name)
        setattr(waiting, name, orders.recheck)
    if orders.mute:

        def say_nothing(self: Publisher, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
            asyncio.get_running_loop().call_soon(answer.set_result, True)

        Publisher.publish = say_nothing  # type: ignore[method-assign]


async def _main(orders: Orders) -> None:
    _disturb(orders)
    counted: Counter[str] = Counter()

    def count(event: Event) -> None:
        counted[type(event).__name__] += 1

    async with AsyncCoordinator(
        orders.url, engine=orders.engine, name="competitor", network_timeout=NETWORK_TIMEOUT
    ) as coordinator:
        coordinator.events.subscribe(count)
        competitor = Competitor(orders, coordinator)
        loop = asyncio.get_running_loop()

        go = asyncio.Event()

        def told() -> None:
            said = os.read(sys.stdin.fileno(), 4096)
            go.set()
            if not said or b"end" in said:
                loop.remove_reader(sys.stdin.fileno())
                competitor.ending.set()

        loop.add_reader(sys.stdin.fileno(), told)
        print("ready", flush=True)
        await go.wait()
        await competitor.run()
    print("done", json.dumps(counted), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Orders(**json.loads(sys.argv[1]))))
