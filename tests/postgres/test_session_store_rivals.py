"""The store of sessions among rivals: rows that others have locked, and what changes while a statement is under way.

Here live tests of the statements against what a second transaction does at the same time. Theory: the rival is a
connection of the test. What a statement must not wait for, the rival has locked. To change something after a statement
has taken its snapshot and before it looks for locks, the test puts a gate there: the function that every statement
calls first waits for an advisory lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pgconcert.errors import Unavailable
from pgconcert.postgres.sessionstore import PostgresSessionStore
from pgconcert.store import (
    DeleteGroup,
    EndSession,
    Give,
    Given,
    Own,
    Refused,
    Renew,
    Request,
    RequestRelease,
    Revoke,
    Subject,
    Take,
    Taken,
    Unmark,
    Update,
)
from pgconcert.testing import eventually_async
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import ask, at_last, expire, keeping, named, rows, sent, start, take

GATE = """
    create or replace function pgconcert.incarnation() returns text language plpgsql set lock_timeout = 0 as $$
        begin
            perform pg_advisory_xact_lock_shared(7);
            return 'always.1';
        end
    $$
"""
# The second name is inserted when the test says so. Whoever waits for a row has the time that needs.
SLOW_INSERT = """
    create or replace function pgconcert.incarnation() returns text language plpgsql as $$
        begin
            perform set_config('lock_timeout', '0', true);
            perform pg_advisory_xact_lock_shared(7);
            return 'always.1';
        end
    $$;
    create function pgconcert.wait() returns trigger language plpgsql as $$
        begin
            if new.name = 'b' and new.session_id is not null then
                perform pg_advisory_xact_lock_shared(8);
            end if;
            return new;
        end
    $$;
    create trigger wait before insert on pgconcert.entry for each row execute function pgconcert.wait();
"""
MARKS = "select count(*)::int from pgconcert.waiting"
WAITING_TO_INSERT = "select count(*) from pg_locks where locktype = 'advisory' and objid = 8 and not granted"
WAITING_FOR_ANOTHER = """
    select count(*) from pg_locks join pg_stat_activity a using (pid)
     where locktype = 'transactionid' and not granted and a.datname = current_database()
"""
WAITING = "select count(*) from pg_locks where locktype = 'advisory' and objid = 7 and not granted"


@pytest.fixture
def gated(tables: str) -> str:
    """The same, with a gate in it that is open."""
    with raw(tables) as owner:
        owner.execute(GATE.encode())
    return tables


@asynccontextmanager
async def stopped(url: str, begin: Callable[[], asyncio.Future[Any]]) -> AsyncGenerator[asyncio.Future[Any]]:
    """What ``begin`` asks has its snapshot, and goes on when the block ends."""
    with raw(url) as rival:
        rival.execute("select pg_advisory_lock(7)")
        asked = begin()
        await eventually_async(lambda: rows(url, WAITING) == [(1,)], what="it stands before the gate")
        yield asked


def leave_marks(url: str, session: int, *names: str) -> None:
    """As if the session had waited for these names."""
    with raw(url) as other:
        other.execute(
            "insert into pgconcert.waiting (kind, namespace, name, session_id) "
            "select 'job', 'ns', n, %s from unnest(%s::text[]) n",
            [session, [*names]],
        )


def taking_both(store: PostgresSessionStore, session: int) -> asyncio.Future[list[Any]]:
    """Take two names in one statement: what waits for a link leaves together."""
    store.bounce("for a test")
    return asyncio.gather(*(ask(store, Take(subject=named(name), session=session)) for name in ("a", "b")))


# after the snapshot


async def test_a_late_renewal_keeps_what_it_has(gated: str) -> None:
    """A session that was over in the snapshot, but was renewed before its row was locked, is not robbed."""
    async with keeping(gated) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, named(), theirs)
        expire(gated, theirs)
        async with stopped(gated, lambda: ask(store, Take(subject=named(), session=ours))) as asked:
            expire(gated, theirs, by="-1 hour")
        assert await asked == Refused(retry_in=0.0)
        assert [owned.subject for owned in await ask(store, Own(theirs))] == [named()]
        assert rows(gated, "select count(*) from pgconcert.session where ended is not null") == [(0,)]


async def test_a_late_renewal_of_what_was_ended(gated: str) -> None:
    """A session that was alive in the snapshot, but was ended before its row was locked, is not renewed."""
    async with keeping(gated) as store:
        session = await start(store)
        async with stopped(gated, lambda: ask(store, Renew((session,)))) as asked:
            with raw(gated) as rival:
                rival.execute("update pgconcert.session set ended = clock_timestamp()")
        assert await asked == {}
        assert await ask(store, Renew((session,))) == {session: None}


@pytest.mark.parametrize("before", ["free", "dead", "ended", "new"])
async def test_a_session_that_is_newer_than_the_snapshot(gated: str, before: str) -> None:
    """What was taken meanwhile by a session that the snapshot does not know is not taken for dangling."""
    async with keeping(gated) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        if before != "new":
            await take(store, named(), theirs)
        if before == "free":
            await ask(store, Give(subject=named(), session=theirs))
        elif before == "dead":
            expire(gated, theirs)
        elif before == "ended":
            await ask(store, EndSession(theirs))
        async with stopped(gated, lambda: ask(store, Take(subject=named(), session=ours))) as asked:
            with raw(gated) as rival:
                rival.execute(
                    "insert into pgconcert.session (id, uuid, ttl, expires, incarnation, host, pid, application) "
                    "values (5, 'x', '1 hour', clock_timestamp() + interval '1 hour', 'always.1', 'h', 1, 'a')"
                )
                rival.execute(
                    "insert into pgconcert.entry (kind, namespace, name, session_id, token) "
                    "values ('job', 'ns', 'a', 5, 99) "
                    "on conflict (kind, namespace, name, member) do update set session_id = 5, token = 99"
                )
        assert await asked == Refused(retry_in=0.0)
        assert rows(gated, "select session_id, token from pgconcert.entry") == [(5, 99)]


async def test_what_dangles_is_free(tables: str) -> None:
    """An entry that names a session which is not there, in one and the same snapshot, is free."""
    async with keeping(tables) as store:
        ours, gone = await asyncio.gather(start(store), start(store))
        first = await take(store, named(), gone)
        with raw(tables) as rival:
            rival.execute("delete from pgconcert.session where id = %s", [gone])
        assert (await take(store, named(), ours)).token == first.token + 1


# locked rows


Made = Callable[[Subject, int, int], Request[Any]]


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (lambda name, own, token: Give(subject=name, session=own), Unavailable),
        (lambda name, own, token: Update(subject=name, session=own, token=token, data="1"), Unavailable),
        (lambda name, own, token: Revoke(name), Unavailable),
        (lambda name, own, token: RequestRelease(name), Unavailable),
        (lambda name, own, token: Take(subject=name, session=own), Refused(retry_in=0.0)),
    ],
    ids=["give", "update", "revoke", "request release", "take again"],
)
async def test_a_locked_entry(tables: str, asked: Made, refused: Any) -> None:
    """Nothing waits for a locked entry: it is tried some times, then it is said. Others of the batch are
    carried out."""
    async with keeping(tables) as store:
        session = await start(store)
        locked, other = await take(store, named("locked"), session), await take(store, named("other"), session)
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.entry where name = 'locked' for share")
            answers = await asyncio.gather(
                ask(store, asked(named("locked"), session, locked.token)),
                ask(store, asked(named("other"), session, other.token)),
                return_exceptions=True,
            )
            if isinstance(refused, Refused):
                assert answers[0] == refused
            else:
                assert isinstance(answers[0], Unavailable)
                assert "was tried 5 times: a row was locked by others" in str(answers[0])
            assert not isinstance(answers[1], BaseException)
            assert session in await ask(store, Renew((session,)))
        after = await ask(store, asked(named("locked"), session, locked.token))
        assert after is True or after == Given(ours=True, waited=False) or isinstance(after, Taken)


@pytest.mark.parametrize("how", [Revoke, RequestRelease])
async def test_a_revision_with_its_entry(tables: str, how: Callable[[Subject], Request[bool]]) -> None:
    """Where the row of the holder's session is locked, the entry is left alone too; when it is not, both change."""
    async with keeping(tables) as store:
        session = await start(store)
        await take(store, named(), session)
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.session for no key update")
            with pytest.raises(Unavailable, match="was tried 5 times"):
                await ask(store, how(named()))
            assert rows(tables, "select session_id, release_requested from pgconcert.entry") == [(session, False)]
        assert await ask(store, how(named()))
        assert await ask(store, Renew((session,))) == {session: 1}


async def test_a_locked_session(tables: str) -> None:
    """A session whose row is locked is neither renewed nor found to be over nor robbed; the others are renewed."""
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, named(), theirs)
        expire(tables, theirs)
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.session where id = %s for no key update", [theirs])
            assert await ask(store, Take(subject=named(), session=ours)) == Refused(retry_in=0.0)
            assert await ask(store, Renew((ours,))) == {ours: 0}
        await take(store, named(), ours)
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.session where id = %s for no key update", [ours])
            assert await ask(store, Renew((ours, theirs))) == {theirs: None}


async def test_the_locked_mark_of_a_session_that_ends(tables: str) -> None:
    """A session ends at once, whoever has its mark locked; what it leaves behind goes with the purge."""
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, named(), theirs)
        assert isinstance(await ask(store, Take(subject=named(), session=ours, mark=True)), Refused)
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.waiting for update")
            before = sent(store)
            assert await ask(store, EndSession(ours))
            assert sent(store) == before + 1
            assert rows(tables, MARKS) == [(1,)]
        await eventually_async(lambda: not store.purge.running)
        store.purge.begin()
        await eventually_async(lambda: not store.purge.running, what="the purge is over")
        assert rows(tables, MARKS) == [(0,)]


async def test_withdrawing_a_locked_mark(tables: str) -> None:
    """It is tried some times, then it is said; others of the batch are carried out."""
    async with keeping(tables) as store:
        session = await start(store)
        leave_marks(tables, session, "locked", "other")
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.waiting where name = 'locked' for update")
            answers = await asyncio.gather(
                *(ask(store, Unmark(named(name), session)) for name in ("locked", "other", "none")),
                return_exceptions=True,
            )
            assert isinstance(answers[0], Unavailable)
            assert "the withdrawal was tried 5 times: a row was locked by others" in str(answers[0])
            assert answers[1:] == [True, False]
        assert await ask(store, Unmark(named("locked"), session))
        assert rows(tables, MARKS) == [(0,)]


@pytest.mark.parametrize("there", [True, False], ids=["free", "new"])
async def test_taking_with_a_locked_mark(tables: str, there: bool) -> None:
    """What is won loses its mark. So nothing is won whose mark is locked, unless it is to be kept."""
    names = [named("locked"), named("other"), named("kept")]
    async with keeping(tables) as store:
        session = await start(store)
        if there:
            await asyncio.gather(*(take(store, name, session) for name in names))
            await asyncio.gather(*(ask(store, Give(subject=name, session=session)) for name in names))
        leave_marks(tables, session, "locked", "other", "kept")
        with raw(tables) as rival, rival.transaction():
            rival.execute("select from pgconcert.waiting where name <> 'other' for update")
            before = sent(store)
            refused, taken, kept = await asyncio.gather(
                ask(store, Take(subject=names[0], session=session)),
                ask(store, Take(subject=names[1], session=session)),
                ask(store, Take(subject=names[2], session=session, keep_mark=True)),
            )
            assert refused == Refused(retry_in=0.0, marked=True)
            assert isinstance(taken, Taken)
            assert isinstance(kept, Taken)
            assert sent(store) <= before + 2
        await take(store, names[0], session)
        assert rows(tables, "select name from pgconcert.waiting") == [("kept",)]


async def test_a_group_that_is_locked(tables: str) -> None:
    """A group that somebody has locked is not deleted now, and that is said."""
    group = named("g", "group")
    async with keeping(tables) as store:
        with raw(tables) as rival:
            rival.execute("insert into pgconcert.entry (kind, namespace, name) values ('group', 'ns', 'g')")
            with rival.transaction():
                rival.execute("select from pgconcert.entry for share")
                with pytest.raises(Unavailable, match="was tried 5 times"):
                    await ask(store, DeleteGroup(group))
        assert await ask(store, DeleteGroup(group)) == "deleted"


async def test_an_insert_in_the_way(tables: str) -> None:
    """The first take of a name waits a moment for somebody else's, which has not committed, but not for ever."""
    async with keeping(tables) as store:
        session = await start(store)
        with raw(tables) as rival:
            with rival.transaction(force_rollback=True):
                rival.execute("insert into pgconcert.entry (kind, namespace, name) values ('job', 'ns', 'a')")
                answers = await asyncio.gather(
                    ask(store, Take(subject=named("a"), session=session)),
                    ask(store, Take(subject=named("b"), session=session)),
                    return_exceptions=True,
                )
                assert isinstance(answers[0], Unavailable)
                assert isinstance(answers[1], Taken)
        await take(store, named("a"), session)


# many at once


async def test_inserts_come_before_changes(gated: str) -> None:
    """One statement inserts two names. Another, which has the second name in its snapshot already, waits for the first
    name; it must not have changed the second by then, for the insert of that would wait for it."""
    async with keeping(gated) as one, keeping(gated) as two:
        sessions = await asyncio.gather(start(one), start(two))
        with raw(gated) as owner:
            owner.execute(SLOW_INSERT.encode())
            owner.execute("select pg_advisory_lock(7), pg_advisory_lock(8)")
            first = taking_both(one, sessions[0])
            await eventually_async(lambda: rows(gated, WAITING) == [(1,)], what="the first has its snapshot")
            owner.execute("insert into pgconcert.entry (kind, namespace, name) values ('job', 'ns', 'b')")
            owner.execute("select pg_advisory_unlock(7)")
            await eventually_async(lambda: rows(gated, WAITING_TO_INSERT) == [(1,)], what="it has inserted one name")
            second = taking_both(two, sessions[1])
            await eventually_async(lambda: rows(gated, WAITING_FOR_ANOTHER) == [(1,)], what="the second waits for that")
            before = sent(one), sent(two)
            owner.execute("select pg_advisory_unlock(8)")
        assert [isinstance(answer, Taken) for answer in await first] == [True, False]
        assert [isinstance(answer, Taken) for answer in await second] == [False, True]
        assert (sent(one), sent(two)) == before, "nothing had to be asked again"


async def test_two_names_of_a_dead_session(tables: str) -> None:
    """Two takers of two names of one dead session, at the same moment: both have theirs, as soon as the row of that
    session is locked no more."""

    async def taken(store: PostgresSessionStore, name: str, session: int) -> None:
        while isinstance(answer := await at_last(store, Take(subject=named(name), session=session)), Refused):
            assert (answer.retry_in, answer.over) == (0, False)

    async with keeping(tables) as one, keeping(tables) as two:
        first, second = await asyncio.gather(start(one), start(two))
        for _ in range(20):
            dead = await start(one)
            await take(one, named("a"), dead)
            await take(one, named("b"), dead)
            expire(tables, dead)
            await asyncio.gather(taken(one, "a", first), taken(two, "b", second))
            await ask(one, Give(subject=named("a"), session=first))
            await ask(two, Give(subject=named("b"), session=second))


async def test_batches_in_opposite_orders(tables: str) -> None:
    """Names that are new, and taken, given and revoked in opposite orders by several at once: no deadlock, no error."""
    names = [named(f"n{number:02}") for number in range(40)]
    async with keeping(tables) as one, keeping(tables) as two, keeping(tables) as three:
        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        sessions = await asyncio.gather(*(start(store) for store in (one, two, three)))

        async def turmoil(store: PostgresSessionStore, session: int, order: int) -> int:
            won = 0
            for _ in range(5):
                answers = await asyncio.gather(
                    *(at_last(store, Take(subject=name, session=session, mark=True)) for name in names[::order])
                )
                won += sum(isinstance(answer, Taken) for answer in answers)
                await asyncio.gather(*(at_last(store, Give(subject=name, session=session)) for name in names[::-order]))
            return won

        won = await asyncio.gather(
            turmoil(one, sessions[0], 1), turmoil(two, sessions[1], -1), turmoil(three, sessions[2], 1)
        )
        assert sum(won) >= len(names)
        assert rows(tables, "select sum(token & ((1::bigint << 48) - 1))::int from pgconcert.entry") == [(sum(won),)]
        assert rows(tables, deadlocks) == [(0,)]
