"""The store of sessions when the server is another one: promoted, restored, copied; and what becomes of its tokens.

Here live tests of the epoch, of the grace after a change, and of durable commits. Theory: a change of the incarnation
is made by writing another one into our tables, as if they had been written elsewhere; a promotion and a restored dump
are real.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert.errors import Unavailable
from pgconcert.store import COUNTER_BITS, MAX_EPOCH, Look, LookAtSessions, Own, Refused, Renew, Take
from pgconcert.testing import eventually, rewrite
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import ask, expire, keeping, named, rows, sent, start, take
from tests.servers import Cluster, OwnServer, Server

EPOCH = "select epoch, base, incarnation = pgconcert.incarnation() from pgconcert.epoch"


def epoch_of(token: int) -> int:
    return token >> COUNTER_BITS


def come_from(url: str, *, data: str | None = None, timeline: int | None = None) -> None:
    """As if all had been written on another server, or on another timeline of this one."""
    there = "regexp_replace(pgconcert.incarnation(), '[.][0-9]+$', '')" if data is None else f"'{data}'"
    line = "substring(pgconcert.incarnation() from '[0-9]+$')" if timeline is None else f"'{timeline}'"
    with raw(url) as owner:
        for table in ("epoch", "session"):
            owner.execute(f"update pgconcert.{table} set incarnation = {there} || '.' || {line}".encode())


async def test_the_first_epoch(tables: str) -> None:
    """It is written once, by whoever comes first; nobody who comes at the same time gets an error."""
    stores = [keeping(tables) for _ in range(10)]
    opened = [await store.__aenter__() for store in stores]
    try:
        sessions = await asyncio.gather(*(start(store) for store in opened))
        assert len(set(sessions)) == 10
        assert rows(tables, EPOCH) == [(1, 0, True)]
        before = sent(opened[0])
        taken = await take(opened[0], named(), sessions[0])
        assert sent(opened[0]) - before == 1
        assert taken.token == (1 << COUNTER_BITS) + 1
    finally:
        for store in stores:
            await store.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("before", "epochs", "data", "timeline", "after"),
    [
        ("promoted", (0, 3), None, 0, (1 + 3, 3)),
        ("elsewhere", (4, 7), "other", 3, (7 + 1, 7)),
        ("fallen back", (4, 7), None, 9, (7 + 1, 7)),
    ],
    ids=["promoted", "elsewhere", "fallen back"],
)
async def test_epochs_grow(
    tables: str, before: str, epochs: tuple[int, int], data: str | None, timeline: int, after: tuple[int, int]
) -> None:
    """After a promotion the epoch is that of the timeline above the base; after any other change above the last."""
    async with keeping(tables) as store:
        session = await start(store)
        first = await take(store, named(), session)
        come_from(tables, data=data, timeline=timeline)
        base, epoch = (3, 3) if before == "promoted" else epochs
        with raw(tables) as owner:
            owner.execute("update pgconcert.epoch set base = %s, epoch = %s", [base, epoch])
        second = await take(store, named(), session)
        assert rows(tables, EPOCH) == [(*after, True)]
        assert epoch_of(second.token) == after[0] > epoch
        assert second.token > first.token
        third = await take(store, named(), session)
        assert third.token == second.token + 1
        # numbers of sessions are drawn apart from those of earlier epochs
        assert (await start(store)) % 2**15 == after[0]


async def test_too_many_epochs(tables: str) -> None:
    """When the epochs are used up, that is said, and nothing is granted."""
    async with keeping(tables) as store:
        session = await start(store)
        come_from(tables, data="other")
        with raw(tables) as owner:
            owner.execute("update pgconcert.epoch set epoch = %s", [MAX_EPOCH])
        with pytest.raises(Unavailable, match=r"the epoch of tokens in schema 'pgconcert' would be above 32,767"):
            await take(store, named(), session)


async def test_a_lost_epoch(tables: str) -> None:
    """If somebody has deleted the row, it is written again, and tokens that are there still grow."""
    async with keeping(tables) as store:
        session = await start(store)
        first = await take(store, named(), session)
        with raw(tables) as owner:
            owner.execute("delete from pgconcert.epoch")
        assert (await take(store, named(), session)).token == first.token + 1


async def test_grace(tables: str) -> None:
    """A session that was renewed elsewhere has one ttl, from when this server was first seen, though its time is over;
    its holder may renew it, learns by its revision to look at what it has, and has no grace any more."""
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, named(), theirs)
        expire(tables, theirs)
        come_from(tables, data="other")
        refused = await ask(store, Take(subject=named(), session=ours))
        assert isinstance(refused, Refused)
        assert refused.holder is not None
        assert 590 < refused.holder.expires_in <= 600
        assert refused.retry_in is not None
        assert 590 < refused.retry_in <= 600
        assert theirs in [session.id for session in await ask(store, LookAtSessions())]
        (entry,) = await ask(store, Look())
        assert entry.session is not None
        assert len(await ask(store, Own(theirs))) == 1
        assert await ask(store, Renew((theirs,))) == {theirs: 1}
        assert await ask(store, Renew((ours, theirs))) == {ours: 1, theirs: 1}
        expire(tables, theirs)
        await take(store, named(), ours)


async def test_grace_ends(tables: str) -> None:
    """After one ttl here, a session that was renewed elsewhere is over like any other."""
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, named(), theirs)
        expire(tables, theirs, by="1 hour")
        come_from(tables, data="other")
        assert isinstance(await ask(store, Take(subject=named(), session=ours)), Refused)
        with raw(tables) as owner:
            owner.execute("update pgconcert.epoch set seen_at = seen_at - interval '601 seconds'")
            owner.execute("update pgconcert.session set incarnation = pgconcert.incarnation() where id = %s", [ours])
        assert await ask(store, Renew((theirs,))) == {theirs: None}
        await take(store, named(), ours)


async def test_where_nobody_may_ask(tables: str, server: Server, unique: str) -> None:
    """Where even the owner of the tables may not ask for the system identifier, the rest of the identity does."""
    role = re.sub(r"\W", "_", unique)
    server.execute(f"create role {role}")
    try:
        with raw(tables) as owner:
            owner.execute(b"revoke execute on function pg_control_system() from public")
            owner.execute(f"alter function pgconcert.incarnation() owner to {role}".encode())
            owner.execute(f"grant usage, create on schema pgconcert to {role}".encode())
        async with keeping(tables) as store:
            session = await start(store)
            assert epoch_of((await take(store, named(), session)).token) == 1
        assert rows(tables, "select incarnation like '0.%%.1' from pgconcert.epoch") == [(True,)]
    finally:
        with raw(tables) as owner:
            owner.execute(b"grant execute on function pg_control_system() to public")
            owner.execute(f"drop owned by {role}".encode())
        server.execute(f"drop role {role}")


@pytest.mark.long
async def test_a_promotion(standby: Cluster, own_server: OwnServer, tables: str) -> None:
    """What was written in time goes on after a promotion, with larger tokens; sessions have grace there."""
    async with keeping(tables) as store:
        session = await start(store)
        first = await take(store, named(), session)
    await asyncio.to_thread(standby.catch_up)
    async with keeping(tables) as store:
        lost = await start(store)
    await asyncio.to_thread(standby.promote)
    promoted = rewrite(standby.url, dbname=conninfo_to_dict(tables)["dbname"])
    async with keeping(promoted) as store:
        expire(promoted, session)
        other = await start(store)
        assert other != lost
        assert isinstance(await ask(store, Take(subject=named(), session=other)), Refused)
        assert await ask(store, Renew((session,))) == {session: 1}
        second = await take(store, named(), session)
        assert epoch_of(second.token) == 2
        assert second.token > first.token


@pytest.mark.long
async def test_a_restored_dump(tables: str, server: Server) -> None:
    """A dump that was restored goes on above all tokens of the original, also those given after the dump."""
    if not isinstance(server, Cluster):
        pytest.skip("needs pg_dump, which is not among the programs of this server")
    async with keeping(tables) as store:
        session = await start(store)
        await take(store, named(), session)
        dump = await asyncio.to_thread(run, server, "pg_dump", "-d", tables)
        later = [await take(store, named(), session) for _ in range(5)]
    with server.fresh_database() as copy:
        await asyncio.to_thread(run, server, "psql", "-q", "-d", copy, given=dump)
        async with keeping(copy) as store:
            assert await ask(store, Renew((session,))) == {session: 1}
            assert (await take(store, named(), session)).token > later[-1].token
            assert rows(copy, EPOCH) == [(2, 1, True)]


def run(server: Cluster, program: str, *arguments: str, given: bytes = b"") -> bytes:
    """A program of the server."""
    return subprocess.run(
        [server.programs / program, *arguments], input=given, stdout=subprocess.PIPE, check=True
    ).stdout


@pytest.mark.long
@pytest.mark.parametrize("crash", ["server", "backend"])
async def test_a_crash(own_server: OwnServer, tables: str, crash: str) -> None:
    """Tokens grow over a crash of the server or of one of its processes, whatever role and database say of commits."""
    name = conninfo_to_dict(tables)["dbname"]
    own_server.execute(f"alter database {name} set synchronous_commit = off")
    tokens: list[int] = []
    async with keeping(tables) as store:
        session = await start(store)
        tokens += [(await take(store, named(), session)).token for _ in range(200)]
    if crash == "server":
        with own_server.down("immediate"):
            pass
    else:
        with raw(tables) as victim:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                victim.execute("select 1")
        eventually(lambda: answers(tables), 30.0, what="the server has recovered")
    async with keeping(tables) as store:
        assert await ask(store, Renew((session,))) == {session: 0}
        tokens += [(await take(store, named(), session)).token for _ in range(20)]
    assert tokens == sorted(set(tokens))


def answers(url: str) -> bool:
    """Whether the server lets us in."""
    try:
        return rows(url, "select 1") == [(1,)]
    except psycopg.OperationalError:
        return False
