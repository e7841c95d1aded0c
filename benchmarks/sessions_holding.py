"""A process of ours in the benchmark of sessions that holds much, waits in a crowd, or is killed.

What may live here: what such a process answers to. What is asked of it, and what the answers mean, stands in
`sessions_scenarios.py`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from candidate import Address
from turns import confessing

CROWD = "crowd"
PATIENT = 600.0
"""The network's patience, in seconds: so long that the statements which are counted are those of sessions alone."""


@dataclass(frozen=True)
class Beats:
    """What went over the link of sessions in a time."""

    seconds: float
    statements: int
    intervals: float
    lost: int


@dataclass(frozen=True)
class Passed:
    """What one process of a crowd did: when it had the lock (CLOCK_MONOTONIC, in nanoseconds), and its statements."""

    taken: tuple[int, ...]
    statements: int


def host_holder(address: Address, pipe: Any) -> None:
    """The whole life of such a process."""
    with confessing(pipe, "pgconcert"):
        asyncio.run(serve(address, pipe))


async def serve(address: Address, pipe: Any) -> None:
    from pgconcert import AsyncCoordinator

    async with AsyncCoordinator(address.url, network_timeout=PATIENT) as c:
        pipe.send(("ok", None))
        holds: list[Any] = []
        crowd: list[asyncio.Task[int]] = []
        before = 0
        while True:
            verb, *arguments = await asyncio.to_thread(pipe.recv)
            match verb:
                case "hold":
                    holds += await hold(c, *arguments)
                    value: Any = len(holds)
                case "beats":
                    value = await beats(c, holds, *arguments)
                case "take":
                    name, ttl = arguments
                    holds.append(await c.job_lock(name, ttl=ttl).acquire())
                    value = time.monotonic_ns()
                case "drop":
                    await asyncio.gather(*(hold.release() for hold in holds))
                    holds.clear()
                    value = None
                case "gather":
                    crowd = await gather_crowd(c, *arguments)
                    before = statements(c)
                    value = None
                case "crowd":
                    taken = await asyncio.gather(*crowd)
                    value = Passed(tuple(taken), statements(c) - before)
                case _:
                    break
            pipe.send(("ok", value))
    pipe.send(("ok", None))


async def hold(c: Any, count: int, ttl: float) -> list[Any]:
    """Acquire `count` job locks at once."""
    return list(await asyncio.gather(*(c.job_lock(f"held:{number}", ttl=ttl).acquire() for number in range(count))))


async def beats(c: Any, holds: list[Any], seconds: float) -> Beats:
    """Hold, for a time."""
    sent, began = statements(c, "work"), time.monotonic()
    await asyncio.sleep(seconds)
    sent, took = statements(c, "work") - sent, time.monotonic() - began
    (session,) = c.health().sessions
    return Beats(took, sent, took / session.interval, sum(hold.lost for hold in holds))


async def gather_crowd(c: Any, waiters: int, ttl: float) -> list[asyncio.Task[int]]:
    """Let so many tasks wait for one name, each to have it once; they are there when this returns."""

    async def pass_through() -> int:
        async with c.job_lock(CROWD, ttl=ttl):
            return time.monotonic_ns()

    tasks = [asyncio.create_task(pass_through()) for _ in range(waiters)]
    await asyncio.sleep(1.0)  # refused, marked, listening and asleep
    return tasks


def statements(c: Any, role: str | None = None) -> int:
    """Statements of one link, or of all, so far."""
    return sum(link.statements for link in c.health().links if role in (None, link.role))
