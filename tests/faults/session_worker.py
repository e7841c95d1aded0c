"""A process that competes for job locks and writes under their guard, until it is told to end.

It gets its orders as JSON in its first argument, says "ready" when it is at work, writes down what it believed and did
as it goes, ends when it is told "end", and says "done". An error that no fault explains ends it with a traceback.

Theory: whoever holds a job lock here writes again and again, in a thread that no loss cancels and over a connection
that no fault touches; and once more some time after it has released or lost it. About half of the time it asks the
server without asking itself first whether it still holds anything. What it *believes* is that it held
the lock until the last instant after which its hold did not count as lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psycopg

from pgconcert import AsyncCoordinator, transaction
from pgconcert.errors import GuardRefused, SessionLost, Unavailable
from pgconcert.jobs import AsyncJobHold
from pgconcert.postgres.guard import guard_sql
from pgconcert.postgres.schemafiles import DEFAULT
from tests.faults.takeover_history import Belief

PROGRAM: Final = Path(__file__)


@dataclass(frozen=True, slots=True)
class Orders:
    """``url`` leads to the server through whatever may break, ``straight`` past it. ``ttl`` in seconds."""

    url: str
    straight: str
    folder: str
    names: int = 2
    tasks: int = 3
    ttl: float = 1.0

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class Competitor:
    """The tasks of this process."""

    def __init__(self, orders: Orders, coordinator: AsyncCoordinator) -> None:
        self._orders = orders
        self._coordinator = coordinator
        self.ending = False
        self.beliefs: list[Belief] = []
        self.done: Counter[str] = Counter()
        self._late: set[asyncio.Future[None]] = set()

    async def run(self) -> None:
        """One task, until the end."""
        while not self.ending:
            name = f"n{random.randrange(self._orders.names)}"
            try:
                async with self._coordinator.job_lock(name, ttl=self._orders.ttl) as hold:
                    await self._work(name, hold)
            except SessionLost:
                self.done["lost"] += 1
            except Unavailable:
                self.done["unavailable"] += 1
                await asyncio.sleep(0.1)

    async def _work(self, name: str, hold: AsyncJobHold) -> None:
        since = until = time.time()
        session, token = hold.session_id, hold.token
        writing: asyncio.Future[None] | None = None
        end = time.monotonic() + random.choice([0.0, random.uniform(0, 2 * self._orders.ttl)])
        try:
            while True:
                now = time.time()
                if not hold.lost:
                    until = now
                if writing is None or writing.done():
                    writing = asyncio.ensure_future(asyncio.to_thread(self._write, name, session, token, hold))
                    writing.add_done_callback(self._written)
                if time.monotonic() >= end or self.ending:
                    await asyncio.shield(writing)
                    return
                await asyncio.sleep(0.01)
        finally:
            self.beliefs.append(Belief(f"job {name} ", session, token, since, until, 0.0))
            self.tell()
            self._late.add(asyncio.ensure_future(self._write_late(name, session, token, hold)))

    def tell(self) -> None:
        """Write down what we have done and believed so far, for we may be killed at any time."""
        path = Path(self._orders.folder, f"{os.getpid()}.new")
        path.write_text(json.dumps({"beliefs": self.beliefs, "revoked": [], "done": self.done}))
        path.rename(path.with_suffix(".json"))

    async def end(self) -> None:
        """Wait for the last who come too late."""
        await asyncio.gather(*self._late)
        self.tell()

    async def _write_late(self, name: str, session: int, token: int, hold: AsyncJobHold) -> None:
        await asyncio.sleep(random.uniform(0, self._orders.ttl))
        await asyncio.to_thread(self._write, name, session, token, hold)

    def _written(self, writing: asyncio.Future[None]) -> None:
        if not writing.cancelled():
            writing.result()

    def _write(self, name: str, session: int, token: int, hold: AsyncJobHold) -> None:
        """What only the holder may do. In a thread."""
        try:
            with psycopg.connect(self._orders.straight, application_name="writes", connect_timeout=5) as connection:
                if random.random() < 0.5:
                    transaction.guard(connection, hold)
                else:
                    values = ["job", "", name, "", session, token]
                    if psycopg.RawCursor(connection).execute(guard_sql(DEFAULT).encode(), values).fetchone() is None:
                        connection.rollback()
                        raise GuardRefused(name, "the server says so")
                time.sleep(random.choice([0.0, random.uniform(0, 0.1)]))
                connection.execute("insert into written (name, token) values (%s, %s)", [name, token])
            self.done["written"] += 1
        except GuardRefused:
            self.done["refused"] += 1
        except psycopg.OperationalError:
            self.done["not written"] += 1


async def main(orders: Orders) -> None:
    async with AsyncCoordinator(orders.url, name="session-worker", network_timeout=1.0, connect_timeout=1.0) as c:
        competitor = Competitor(orders, c)
        running = asyncio.gather(*(asyncio.ensure_future(competitor.run()) for _ in range(orders.tasks)))
        print("ready", flush=True)
        told = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
        await asyncio.wait([told, running], return_when=asyncio.FIRST_COMPLETED)
        competitor.ending = True
        await running
        await competitor.end()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Orders(**json.loads(sys.argv[1]))))
