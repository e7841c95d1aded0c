"""What an attack on sessions with a server has found, so that it stays mended, and what it could not break.

Here live names that a server does not take like others: of schemas, and of what hangs on a session.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from pgconcert import AsyncCoordinator, AsyncJobHold, ConfigurationError, StatementFailed
from pgconcert.postgres.schemafiles import checked
from pgconcert.testing import rewrite
from tests.postgres.jobscenes import row
from tests.postgres.scenes import raw
from tests.servers import Server


@pytest.fixture(scope="module")
def latin(server: Server) -> Iterator[str]:
    """A database in which most names of the world cannot be written."""
    name = f"pgconcert_test_{secrets.token_hex(6)}"
    server.execute(f"create database {name} encoding 'latin1' locale 'C' template template0")
    try:
        yield rewrite(server.url, dbname=name)
    finally:
        server.execute(f"drop database if exists {name} with (force)")


@pytest.mark.parametrize("schema", ["$q$", "$q$; drop table x; --", "a pgconcert.b", "$1", "%s {0}"])
async def test_schemas_whose_names_look_like_sql(database: str, schema: str) -> None:
    async with AsyncCoordinator(database, schema=schema, migrate=True) as c, c.job_lock("x") as hold:
        assert hold.token > 0
        async with c.election("x").lead() as leadership, c.group("x").join(member_id="one"):
            assert leadership.session_id == hold.session_id
            assert await c.groups() == ["x"]


def test_a_schema_whose_name_would_end_our_quotes() -> None:
    with pytest.raises(ConfigurationError, match=r"must not contain '\$pgc'"):
        checked("a$pgct$b")


async def test_a_name_that_the_database_cannot_write_harms_no_neighbour(latin: str) -> None:
    """They leave together; who can be written gets it, and what is held goes on."""
    async with AsyncCoordinator(latin, migrate=True) as c:
        held = await c.job_lock("held").acquire()

        async def tried(name: str) -> AsyncJobHold | None:
            return await c.job_lock(name).try_acquire()

        outcomes = await asyncio.gather(*map(tried, ["a", "漢", "é", "😀", "b"]), return_exceptions=True)
        holds = [outcome for outcome in outcomes if isinstance(outcome, AsyncJobHold)]
        assert [hold.key for hold in holds] == ["a", "é", "b"]
        assert [type(outcome) for outcome in outcomes if outcome not in holds] == [StatementFailed] * 2
        with pytest.raises(StatementFailed, match="LATIN1"):
            await c.election("漢").leader()
        async with c.group("é").join(member_id="é", capabilities="漢"):
            (member,) = await c.group("é").members()
            assert (member.member_id, member.capabilities) == ("é", "漢")
        held.check()
        assert row(latin, "held").session == held.session_id
        for hold in [held, *holds]:
            await hold.release()
        with raw(latin) as look:
            assert look.execute("select count(*) from pgconcert.entry where session_id is not null").fetchone() == (0,)
