"""What the tests of job locks look at: the rows on the server, by a connection of their own.

Here live helpers without assertions of their own.
"""

from __future__ import annotations

from typing import NamedTuple

from pgconcert import AsyncCoordinator
from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually_async
from tests.postgres.scenes import raw


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


async def until_marked(url: str, name: str, count: int = 1) -> None:
    """Wait until so many sessions are known to wait for a job lock."""
    await eventually_async(lambda: marks(url, name) >= count, what=f"{count} sessions wait for the job lock {name!r}")


def listens(coordinator: AsyncCoordinator) -> bool:
    """Whether it is proven to hear."""
    hearing = coordinator.health().hearing
    return hearing is not None and hearing.proven
