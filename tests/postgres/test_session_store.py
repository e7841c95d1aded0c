"""The store of sessions on a real server: what its statements cost, and what they write.

Here live tests of `postgres/sessionstore.py` and its statements that look at the server; what every store must do is
said by the conformance suite. Theory: rows are counted by another connection, statements by the link.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert.postgres.schemafiles import grants, quoted, script
from pgconcert.store import (
    COUNTER_BITS,
    CreateGroup,
    DeleteGroup,
    EndSession,
    Give,
    Given,
    Look,
    LookAtSessions,
    Own,
    Refused,
    Renew,
    RequestRelease,
    Revoke,
    Take,
    Taken,
    Terms,
    Unmark,
)
from pgconcert.testing import eventually_async, rewrite
from tests.poolers import PgBouncer
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import ask, at_last, expire, keeping, make_old, named, rows, sent, start, take
from tests.servers import Server


async def test_many_takes_are_one_statement(tables: str) -> None:
    """Names that are asked for together are taken by one statement, given back by one, and looked at by one."""
    names = [named(f"n{number}") for number in range(300)]
    async with keeping(tables) as store:
        session = await start(store)
        before = sent(store)
        taken = await asyncio.gather(*(take(store, name, session) for name in names))
        assert sent(store) - before == 2  # the first alone, at once
        assert {one.token & (2**COUNTER_BITS - 1) for one in taken} == {1}
        before = sent(store)
        given = await asyncio.gather(*(ask(store, Give(subject=name, session=session)) for name in names))
        assert given == [Given(ours=True, waited=False)] * 300
        # with its look at marks
        assert sent(store) - before == 2


async def test_all_sessions_are_renewed_by_one_statement(tables: str) -> None:
    async with keeping(tables) as store:
        sessions = await asyncio.gather(*(start(store) for _ in range(200)))
        expire(tables, sessions[17])
        before = sent(store)
        renewed = await ask(store, Renew((*sessions, 5)))
        assert sent(store) - before == 1
        assert renewed == {**dict.fromkeys(sessions, 0), sessions[17]: None, 5: None}


async def test_one_subject_twice_is_two_statements(tables: str) -> None:
    """No statement carries one subject twice; each asker has the answer that is its own."""
    async with keeping(tables) as store:
        sessions = await asyncio.gather(*(start(store) for _ in range(5)))
        asked = [ask(store, Take(subject=named(), session=session)) for session in sessions]
        answers = await asyncio.gather(*asked)
        assert [type(answer) for answer in answers] == [Taken] + [Refused] * 4


async def test_losers_write_nothing(tables: str) -> None:
    """Whoever is refused, even a thousand times, changes no row, once it has left its mark."""
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        await take(store, named(), theirs)
        await ask(store, Take(subject=named(), session=ours, mark=True))
        versions = "select xmin::text, xmax::text, ctid::text from pgconcert."
        before = [rows(tables, versions + table) for table in ("entry", "session", "waiting")]
        for _ in range(50):
            refused = await ask(store, Take(subject=named(), session=ours, mark=True))
            assert isinstance(refused, Refused)
            assert refused.marked
        assert [rows(tables, versions + table) for table in ("entry", "session", "waiting")] == before


MOVED = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'session'"


async def test_a_renewal_stays_on_its_page(tables: str) -> None:
    """Heartbeats leave the indexes alone: their new versions stay on the page of the old ones."""
    async with keeping(tables) as store:
        session = await start(store)
    on_page = 0
    # who looks at the database for long (autovacuum on a busy machine) keeps old versions on the page, which fills
    for times in range(1, 6):
        before = rows(tables, MOVED)[0][1]
        async with keeping(tables) as store:
            for _ in range(300):
                await ask(store, Renew((session,)))
        await eventually_async(lambda times=times: rows(tables, MOVED)[0][0] == 300 * times, 30)  # type: ignore[misc]
        if (on_page := rows(tables, MOVED)[0][1] - before) == 300:
            break
    assert on_page == 300


async def test_what_is_shown(tables: str) -> None:
    """Entries by every set of filters, in order; sessions that live."""
    async with keeping(tables) as store:
        session = await start(store, data='{"x": "ü"}')
        (shown,) = await ask(store, LookAtSessions())
        assert (shown.id, shown.ttl, shown.data, shown.pid, shown.identity) == (session, 600.0, '{"x": "ü"}', 7, "u.h")
        subjects = [
            named("b"),
            named("a"),
            named("g", "member", "m2"),
            named("g", "member", "m1"),
            named("e", "election"),
        ]
        for subject in subjects:
            await take(store, subject, session, data=f'"{subject.name}"')
        for look, found in (
            (Look(), sorted(subjects)),
            (Look(kind="job"), [named("a"), named("b")]),
            (Look(namespace="ns", name="g"), [named("g", "member", "m1"), named("g", "member", "m2")]),
            (Look(kind="member", namespace="ns", name="g", member="m1"), [named("g", "member", "m1")]),
            (Look(member="m2"), [named("g", "member", "m2")]),
            (Look(namespace="other"), []),
        ):
            entries = await ask(store, look)
            assert [entry.subject for entry in entries] == found
            for entry in entries:
                assert entry.session is not None
                assert (entry.session.id, entry.data) == (session, f'"{entry.subject.name}"')


@pytest.mark.parametrize(
    "text", ['"', "\\", "{a,b}", "NULL", "ü€😀", "a b\tc\n", "$1::text", "pgconcert.entry", "x" * 1000], ids=ascii
)
async def test_odd_names(tables: str, text: str) -> None:
    """Whatever a name is made of, it comes back as it is."""
    async with keeping(tables) as store:
        session = await start(store, data=text)
        subject = named(text)
        await take(store, subject, session, data=text)
        (entry,) = await ask(store, Look(name=text))
        assert (entry.subject, entry.data) == (subject, text)
        assert entry.session is not None
        assert entry.session.data == text


async def test_longest_names_fit_their_index(tables: str) -> None:
    """A member with all its names as long as they may be can be taken, marked and given."""
    async with keeping(tables) as store:
        ours, theirs = await asyncio.gather(start(store), start(store))
        noise = "".join(chr(0x4E00 + number * 37 % 20000) for number in range(333))
        subject = named(noise, "member", noise[:66])._replace(namespace=noise[100:166])
        await take(store, subject, ours)
        await ask(store, Take(subject=subject, session=theirs, mark=True))
        assert await ask(store, Give(subject=subject, session=ours)) == Given(ours=True, waited=True)


async def test_another_schema(server: Server) -> None:
    """Tables of another name, however odd, do the same."""
    odd = 'we "ird"; -- x\'y %s  $ z'
    with server.fresh_database() as url:
        with raw(url) as owner:
            owner.execute(script(odd).encode())
        async with keeping(url, odd) as store:
            session = await start(store)
            await take(store, named("e", "election"), session)
            assert await ask(store, Renew((session,))) == {session: 0}
            assert await ask(store, RequestRelease(named("e", "election")))
            assert await ask(store, Revoke(named("e", "election")))
            assert len(await ask(store, Terms(subject=named("e", "election")))) == 1
            assert await ask(store, CreateGroup(named("g", "group")))
            assert await ask(store, DeleteGroup(named("g", "group"))) == "deleted"
            assert not await ask(store, Unmark(named("e", "election"), session))
            assert await ask(store, EndSession(session))


async def test_through_a_transaction_pooler(server: Server, database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Behind a pooler of transactions nothing is prepared, and no session is given settings; each transaction is
    durable and short all the same, whatever role and database say."""
    name = conninfo_to_dict(database)["dbname"]
    with raw(database) as owner:
        owner.execute(script().encode())
        owner.execute(SPY.encode())
        for setting in ("synchronous_commit = off", "lock_timeout = 0", "default_transaction_isolation = serializable"):
            owner.execute(f"alter database {name} set {setting}".encode())
    pooler = pgbouncer("transaction", pool_size=2)
    async with keeping(pooler.url) as store, keeping(database) as direct:
        one, two = await asyncio.gather(start(store), start(direct))
        names = [named(f"n{number}") for number in range(20)]
        answers = await asyncio.gather(
            *(
                at_last(at, Take(subject=each, session=session))
                for each in names
                for at, session in ((store, one), (direct, two))
            )
        )
        assert sum(isinstance(answer, Taken) for answer in answers) == 20
        assert await ask(store, Renew((one,))) == {one: 0}
        mine = [owned.subject for owned in await ask(store, Own(one))]
        gifts = await asyncio.gather(*(ask(store, Give(subject=each, session=one)) for each in mine))
        assert [gift.ours for gift in gifts] == [True] * len(mine)
        expire(database, two)
        await asyncio.gather(*(take(store, each, one) for each in names))
    assert rows(database, "select distinct what from spied") == [("on 100ms",)]
    with raw(database) as other:
        assert other.execute("show synchronous_commit").fetchone() == ("off",)


SPY = """
    create table public.spied (what text);
    create function public.spy() returns trigger language plpgsql as $$
        begin
            insert into public.spied
            select current_setting('synchronous_commit') || ' ' || current_setting('lock_timeout')
             where current_setting('application_name') <> 'somebody else';
            return null;
        end
    $$;
    create trigger spy after insert or update on pgconcert.entry for each row execute function public.spy();
    create trigger spy after insert or update on pgconcert.session for each row execute function public.spy();
"""


async def test_terms(tables: str) -> None:
    """Who led, when, and how it ended; one whose session is over has ended, though nobody has noticed."""
    election = named("e", "election")
    async with keeping(tables) as store:
        one, two = await asyncio.gather(start(store), start(store))
        first = await take(store, election, one, data="1")
        await ask(store, Give(subject=election, session=one, how="resigned"))
        second = await take(store, election, two)
        await ask(store, Revoke(election))
        third = await take(store, election, two)
        expire(tables, two)
        terms = await ask(store, Terms(subject=election, after=0))
        assert [(term.token, term.leader.id, term.how) for term in terms] == [
            (first.token, one, "resigned"),
            (second.token, two, "revoked"),
            (third.token, two, "lost"),
        ]
        assert terms[0].data == "1"
        assert terms[2].until is not None
        assert await ask(store, Terms(subject=election, after=second.token)) == terms[2:]
        fourth = await take(store, election, one)
        assert [term.token for term in await ask(store, Terms(subject=election))] == [fourth.token]
        again = await take(store, election, one)
        assert [term.how for term in await ask(store, Terms(subject=election, after=third.token))] == ["released", None]
        assert again.token == fourth.token + 1


async def test_rights(server: Server, tables: str, unique: str) -> None:
    """A role that may make nothing, with what is granted, does everything, the purge and a new epoch as well."""
    role = re.sub(r"\W", "_", unique)
    server.execute(f"create role {quoted(role)} login password 'x'")
    try:
        with raw(tables) as owner:
            owner.execute(b"revoke execute on all functions in schema pgconcert from public")
            for grant in grants("pgconcert", role):
                owner.execute(grant.encode())
        async with keeping(rewrite(server.over_tcp(tables), user=role, password="x")) as store:
            session = await start(store)
            await take(store, named("e", "election"), session)
            assert await ask(store, Renew((session,))) == {session: 0}
            make_old(tables, session)
            store.purge.begin()
            await eventually_async(lambda: not store.purge.running, what="the purge is over")
            assert rows(tables, "select ended is not null from pgconcert.session") == [(True,)]
    finally:
        with raw(tables) as owner:
            owner.execute(f"drop owned by {quoted(role)}".encode())
        server.execute(f"drop role {quoted(role)}")
