"""What the tests of job locks look at: the rows on the server, by a connection of their own.

Here live helpers without assertions of their own.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from pgconcert import AsyncCoordinator
from pgconcert.events import LinkOpened
from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually_async
from tests.postgres.scenes import raw, seen, statements


class Row(NamedTuple):
    """A job lock as the server has it. ``expires`` is that of the session on which it hangs."""

    session: int | None
    token: int
    since: float | None
    expires: float | None


def make_tables(url: str) -> None:
    """Our tables."""
    with raw(url) as owner:
        owner.execute(script().encode())


_NEVER = Row(None, 0, None, None)


def row(url: str, name: str) -> Row:
    """The row of a job lock; with token 0 if it was never taken."""
    with raw(url) as look:
        found = look.execute(
            "select e.session_id, e.token, extract(epoch from e.since)::float8, extract(epoch from s.expires)::float8 "
            "from pgconcert.entry e left join pgconcert.session s on s.id = e.session_id "
            "where e.kind = 'job' and e.name = %s",
            [name],
        ).fetchone()
    return _NEVER if found is None else Row(*found)


def expires(url: str, session: int) -> float:
    """When the time of a session is over, by the server's clock."""
    with raw(url) as look:
        found = look.execute(
            "select extract(epoch from expires)::float8 from pgconcert.session where id = %s", [session]
        ).fetchone()
    assert found is not None
    return float(found[0])


def marks(url: str, name: str) -> int:
    """How many sessions wait for a job lock."""
    with raw(url) as look:
        found = look.execute(
            "select count(*) from pgconcert.waiting where kind = 'job' and name = %s", [name]
        ).fetchone()
    assert found is not None
    return int(found[0])


async def until_renewed(url: str, session: int, by: float = 0.0) -> None:
    """Wait until the time of a session was moved by more than so many seconds from now on."""
    before = expires(url, session)
    await eventually_async(lambda: expires(url, session) > before + by, 20.0, what=f"session {session} is renewed")


async def beats(coordinator: AsyncCoordinator, url: str, session: int, interval: float) -> tuple[int, float]:
    """How many statements some renewals of a session cost, and how many are due in that time; of a stretch in which
    the link was not replaced, as it is when the machine is late with an answer."""
    opened = seen(coordinator, LinkOpened)
    while True:
        links, before, began = len(opened), statements(coordinator, "work"), time.monotonic()
        for _ in range(4):
            await until_renewed(url, session)
        sent = statements(coordinator, "work") - before
        if links == len(opened):
            return sent, (time.monotonic() - began) / interval


async def until_marked(url: str, name: str, count: int = 1) -> None:
    """Wait until so many sessions are known to wait for a job lock."""
    await eventually_async(lambda: marks(url, name) >= count, what=f"{count} sessions wait for the job lock {name!r}")


async def until_quiet(coordinator: AsyncCoordinator) -> None:
    """Wait until it has heard what was notified so far, and has asked what it asks on account of that."""
    messenger: Any = coordinator.backend.messenger
    for _ in range(2):
        heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        messenger.prove(heard)  # comes back behind all others
        await heard
        await asyncio.sleep(0.1)
        await coordinator.election("nobody's").leader()  # leaves behind, or with, whatever was asked before


def listens(coordinator: AsyncCoordinator) -> bool:
    """Whether it is proven to hear."""
    hearing = coordinator.health().hearing
    return hearing is not None and hearing.proven
