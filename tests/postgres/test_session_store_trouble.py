"""The store of sessions in trouble: links that die, tables or rights that are missing, one bad request among good ones.

Here live tests of `postgres/sessionstore.py` and `postgres/desk.py` that disturb it, and of the purge. What it does in
peace stands in `test_session_store.py`.
"""

from __future__ import annotations

import asyncio
import re

import pytest

from pgconcert.errors import ConfigurationError, CoordinatorClosed, SchemaMissing, StatementFailed, Unavailable
from pgconcert.postgres.schemafiles import quoted
from pgconcert.store import (
    EndSession,
    Give,
    Look,
    LookAtSessions,
    Own,
    Refused,
    Renew,
    RequestRelease,
    StartSession,
    Take,
    Terms,
)
from pgconcert.testing import FaultProxy, eventually_async, rewrite
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import LONG, ask, expire, keeping, make_old, named, rows, sent, start, take
from tests.servers import Server

# links


@pytest.mark.parametrize("server_did_it", [True, False])
async def test_cut_before_the_answer(proxy: FaultProxy, server: Server, tables: str, server_did_it: bool) -> None:
    """What was under way is settled at once; what was not sent goes out on the next link. Asked again, a take whose
    answer was lost is answered."""
    async with keeping(proxy.url(server.over_tcp(tables))) as store:
        session = await start(store)
        proxy.pause("to_client" if server_did_it else "to_server")
        under_way = ask(store, Take(subject=named("sent"), session=session))
        waiting = [ask(store, Take(subject=named(f"n{number}"), session=session)) for number in range(3)]
        if server_did_it:
            await eventually_async(lambda: rows(tables, "select count(*) from pgconcert.entry") == [(1,)])
        proxy.cut()
        proxy.resume()
        with pytest.raises(Unavailable, match="the link died before the server confirmed the take"):
            await under_way
        await asyncio.gather(*waiting)
        again = await take(store, named("sent"), session)
        assert again.token % 2**48 == 1 + server_did_it


async def test_bounce(tables: str) -> None:
    """A link that is replaced on purpose fails what was under way; the next request has another link."""
    async with keeping(tables) as store:
        store.bounce("there is none")
        session = await start(store)
        before = store.keeper.health().server_pid
        under_way = ask(store, Renew((session,)))
        store.bounce("no answer came in time")
        with pytest.raises(Unavailable, match="no answer came in time"):
            await under_way
        assert await ask(store, Renew((session,))) == {session: 0}
        assert store.keeper.health().server_pid != before


async def test_no_server(server: Server) -> None:
    """Without a server whoever asks is told why; with nobody left who asks, nothing is tried."""
    nowhere = rewrite(server.tcp_url, port=1, host="127.0.0.1", hostaddr=None)
    async with keeping(nowhere) as store:
        answers = await asyncio.gather(start(store), ask(store, Look()), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 2
        await eventually_async(lambda: store.keeper.health().state in ("idle", "given up"))


async def test_close(tables: str) -> None:
    """Whoever waits when the store is closed is told, and whoever comes later."""
    async with keeping(tables) as store:
        session = await start(store)
        with raw(tables) as rival, rival.transaction():
            await take(store, named(), session)
            rival.execute("select from pgconcert.entry for share")
            resting = ask(store, Give(subject=named(), session=session))
            await eventually_async(lambda: sent(store) > 3)
            under_way = ask(store, LookAtSessions())
            await store.close()
            with pytest.raises((CoordinatorClosed, Unavailable)):
                await resting
            with pytest.raises((CoordinatorClosed, Unavailable)):
                await under_way
        with pytest.raises(CoordinatorClosed):
            await ask(store, Look())


# tables and rights


async def test_no_tables(server: Server) -> None:
    """What is missing is named with the command that makes it, whatever was asked."""
    with server.fresh_database() as url:
        async with keeping(url) as store:
            for request in (Renew((1,)), Take(subject=named(), session=1), Look(), Terms(subject=named()), Own(1)):
                with pytest.raises(SchemaMissing, match="pgconcert schema apply"):
                    await ask(store, request)
            with pytest.raises(SchemaMissing):
                await start(store)


async def test_no_rights(server: Server, tables: str, unique: str) -> None:
    """A role without rights is told which statements grant them."""
    role = re.sub(r"\W", "_", unique)
    server.execute(f"create role {quoted(role)} login password 'x'")
    try:
        async with keeping(rewrite(server.over_tcp(tables), user=role, password="x")) as store:
            with pytest.raises(ConfigurationError, match=f'grant usage on sequence .* to "{role}"'):
                await start(store)
    finally:
        server.execute(f"drop role {quoted(role)}")


async def test_one_bad_request(tables: str) -> None:
    """The request that the server refuses gets its error, and its neighbours in the same statement do not notice."""
    async with keeping(tables) as store:
        session = await start(store)
        await ask(store, LookAtSessions())
        answers = await asyncio.gather(
            *(
                ask(store, Take(subject=named("\0" if number == 7 else f"n{number}"), session=session))
                for number in range(20)
            ),
            return_exceptions=True,
        )
        (bad,) = [answer for answer in answers if isinstance(answer, BaseException)]
        assert isinstance(bad, StatementFailed)
        assert answers[7] is bad
        uuids = ["fine", "bad\0", "fine too"]
        starts = [StartSession(uuid=uuid, ttl=LONG, host="h", pid=1, application="a") for uuid in uuids]
        numbers = await asyncio.gather(*(ask(store, start) for start in starts), return_exceptions=True)
        assert [isinstance(number, int) for number in numbers] == [True, False, True]
        alive = {one.id: one.uuid for one in await ask(store, LookAtSessions())}
        assert [alive[number] for number in numbers if isinstance(number, int)] == ["fine", "fine too"]


async def test_a_preferred_refusal_asks_for_release(tables: str) -> None:
    """A preferred candidate that is refused has asked the holder to give way before it is answered, but once only, and
    not one that is preferred itself."""
    election = named("e", "election")
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, election, theirs)
        for _ in range(3):
            assert isinstance(await ask(store, Take(subject=election, session=ours, preferred=True)), Refused)
            assert await ask(store, Renew((theirs,))) == {theirs: 1}
        assert [owned.release_requested for owned in await ask(store, Own(theirs))] == [True]
        await ask(store, Give(subject=election, session=theirs))
        await take(store, election, theirs, preferred=True)
        assert isinstance(await ask(store, Take(subject=election, session=ours, preferred=True)), Refused)
        assert await ask(store, Renew((theirs,))) == {theirs: 1}
        assert await ask(store, RequestRelease(election))
        assert await ask(store, Renew((theirs,))) == {theirs: 2}


# the purge


async def test_purge(tables: str) -> None:
    """What nobody needs is deleted, and only that; tokens go on growing, those of forgotten members as well."""
    job, election, member, left = named(), named("e", "election"), named("g", "member", "m"), named("g", "member", "l")
    kept = named("g", "member", "k")
    async with keeping(tables) as store:
        alive, old, overdue = await asyncio.gather(start(store), start(store), start(store))
        tokens = {}
        for subject in (job, member):
            for _ in range(3):
                tokens[subject] = (await take(store, subject, old)).token
        for _ in range(3):
            await take(store, election, old)
            await ask(store, Give(subject=election, session=old))
        await take(store, election, old)
        await take(store, left, alive)
        await ask(store, Give(subject=left, session=alive))
        await take(store, kept, alive)
        await ask(store, Take(subject=kept, session=old, mark=True))
        await take(store, named("held"), alive)
        await ask(store, Take(subject=named("held"), session=old, mark=True))
        make_old(tables, old)
        expire(tables, overdue, by="2 minutes")
        with raw(tables) as other:
            other.execute("update pgconcert.entry set given_at = given_at - interval '11 minutes'")

        async def purged() -> None:
            store.purge.begin()
            await eventually_async(lambda: not store.purge.running, what="the purge is over")

        await purged()
        await purged()
        assert rows(tables, "select id, ended is not null from pgconcert.session order by id") == [
            (alive, False),
            (overdue, True),
        ]
        assert rows(tables, "select count(*) from pgconcert.waiting") == [(0,)]
        entries = await ask(store, Look())
        assert [entry.subject for entry in entries] == sorted([job, election, kept, named("held")])
        (term,) = await ask(store, Terms(subject=election, after=0))
        assert term.how == "lost"
        assert term.until is not None
        assert (await take(store, job, alive)).token == tokens[job] + 1
        assert (await take(store, member, alive)).token > tokens[member]
        assert not await ask(store, EndSession(overdue))


async def test_purge_of_many(tables: str) -> None:
    """More than fits one statement goes in several; what others have locked stays until later."""
    async with keeping(tables) as store:
        session = await start(store)
        with raw(tables) as rival:
            rival.execute(
                "insert into pgconcert.session (id, uuid, ttl, expires, ended, incarnation, host, pid, application) "
                "select n, 'x', '1 s', now() - interval '1 hour', now() - interval '1 hour', 'x', 'h', 1, 'a' "
                "from generate_series(1, 1200) n"
            )
            with rival.transaction():
                rival.execute("select from pgconcert.session where id = 1100 for share")
                await eventually_async(lambda: not store.purge.running, what="the purge of a first session is over")
                store.purge.begin()
                await eventually_async(lambda: not store.purge.running, what="the purge is over")
            assert rows(tables, "select id from pgconcert.session order by id") == [(1100,), (session,)]
