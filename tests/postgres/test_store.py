"""The store on a real server: payloads that come back, claims that one has, and what is told when it cannot be.

Here live tests of `postgres/store.py` and its statements. Theory: rows are counted by another connection; what a link
does is disturbed by the proxy between sending and answer, or by a session that holds a lock on purpose.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pgconcert.errors import (
    ConfigurationError,
    PgconcertError,
    SchemaMissing,
    StatementFailed,
    Unavailable,
)
from pgconcert.postgres.schema import ensure
from pgconcert.postgres.schemafiles import grants, quoted, script
from pgconcert.postgres.store import Store
from pgconcert.testing import rewrite
from tests.poolers import PgBouncer
from tests.postgres.scenes import context, raw, until_idle
from tests.postgres.store_scenes import (
    CLAIMS,
    PAYLOADS,
    claim,
    claimed,
    count,
    fetch,
    make_old,
    spill,
    statements,
    storing,
    until_purged,
)
from tests.processes import Worker
from tests.servers import Server

MEGABYTE = 1 << 20


# payloads


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256)), b"\xff" * 10_000, "ü€😀".encode() * 5000], ids=len)
async def test_comes_back(tables: str, payload: bytes) -> None:
    async with storing(tables) as store:
        number = await spill(store, payload)
        assert number > 0
        assert await fetch(store, number) == payload


async def test_sixteen_megabytes(tables: str) -> None:
    """A large one comes back, twice for two readers, and the small one beside it too."""
    large = bytes(range(256)) * 16 * 4096
    assert len(large) == 16 * MEGABYTE
    async with storing(tables) as store:
        numbers = await asyncio.gather(spill(store, b"small"), spill(store, large), spill(store, b"another"))
        found = await asyncio.gather(*(fetch(store, number) for number in (*numbers, numbers[1])))
        assert [
            payload == wanted for payload, wanted in zip(found, (b"small", large, b"another", large), strict=True)
        ] == [True] * 4
    with raw(tables) as connection:
        stored = connection.execute(
            "select octet_length(payload) from pgconcert.message_payload order by id"
        ).fetchall()
    assert stored == [(5,), (16 * MEGABYTE,), (7,)]


async def test_many_at_once(tables: str) -> None:
    """Five hundred at once have numbers of their own, and cost a handful of statements."""
    payloads = [b"%d:" % n + b"x" * n for n in range(500)]
    async with storing(tables) as store:
        await spill(store, b"warm")
        await until_purged(store)
        before = statements(store)
        numbers = await asyncio.gather(*(spill(store, payload) for payload in payloads))
        assert statements(store) - before <= 4
        assert len(set(numbers)) == 500
        assert await asyncio.gather(*(fetch(store, number) for number in numbers)) == payloads
        assert statements(store) - before <= 4 + 500 / 8 + 2
    assert count(tables, PAYLOADS) == 501


async def test_what_is_not_there(tables: str) -> None:
    """Gone, expired, never there, or a number that no row can have: all the same, and quick."""
    async with storing(tables) as store:
        gone, expired, there = await asyncio.gather(spill(store, b"a"), spill(store, b"b", 0.0), spill(store, b"c"))
        with raw(tables) as other:
            other.execute("delete from pgconcert.message_payload where id = %s", [gone])
        asked = [gone, expired, there, 10**9, 0, -1, 2**63 - 1, 2**63, 10**40]
        assert await asyncio.gather(*(fetch(store, number) for number in asked)) == [None, None, b"c"] + [None] * 6


async def test_time_to_live(tables: str) -> None:
    """The server's clock says when a payload expires."""
    async with storing(tables) as store:
        await asyncio.gather(spill(store, b"a", 3600), spill(store, b"b", 0.5), spill(store, b"c", 7))
    seconds = "extract(epoch from expires - clock_timestamp())"
    with raw(tables) as other:
        rows = other.execute(f"select {seconds}::float from {PAYLOADS} order by id".encode()).fetchall()
    assert 3500 < rows[0][0] <= 3600
    assert rows[1][0] <= 0.5
    assert -60 < rows[2][0] <= 7


async def test_one_that_the_server_refuses(tables: str) -> None:
    """A request that the server refuses gets its error; its neighbours in the same statement do not notice."""
    async with storing(tables) as store:
        await spill(store, b"warm")
        answers = [spill(store, b"%d" % n, 1e300 if n == 7 else 60.0) for n in range(20)]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        (bad,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert isinstance(bad, StatementFailed)
        assert outcomes[7] is bad
        for n, number in enumerate(outcomes):
            if isinstance(number, int):
                assert await fetch(store, number) == b"%d" % n
    assert count(tables, PAYLOADS) == 20


# claims


async def test_one_of_many(tables: str) -> None:
    """Of all who ask for one message one has it, in one statement and in several; scopes are apart."""
    async with storing(tables) as one, storing(tables) as two:
        answers = await asyncio.gather(*(claimed(store, "m") for _ in range(50) for store in (one, two)))
        assert sum(answers) == 1
        assert not await claim(one, "m")
        assert await claim(one, "m", "invoices")
        assert await claim(two, "invoices", "m")
    assert count(tables, CLAIMS) == 3


async def test_the_same_in_different_orders(tables: str) -> None:
    """Three stores claim the same 500 in different orders: no cycle of waits, each exactly once."""
    names = [f"message {n}" for n in range(500)]
    async with storing(tables) as one, storing(tables) as two, storing(tables) as three:
        outcomes = await asyncio.gather(
            *(claimed(one, name) for name in names),
            *(claimed(two, name) for name in reversed(names)),
            *(claimed(three, name) for name in sorted(names)),
        )
    won = Counter(name for name, mine in zip(names + names[::-1] + sorted(names), outcomes, strict=True) if mine)
    assert won == dict.fromkeys(names, 1)


CLAIMER = """
import asyncio, sys
from pgconcert.postgres.store import Store
from tests.postgres.scenes import context
from tests.postgres.store_scenes import claimed

async def main():
    url, order = sys.argv[1:]
    store = Store(context(url), "pgconcert")
    loop = asyncio.get_running_loop()
    await claimed(store, f"warm {order}")
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    won = []
    for start in range(0, 500, 50):
        names = [str(n) for n in range(start, start + 50)][:: int(order)]
        mine = await asyncio.gather(*(claimed(store, name) for name in names))
        won += [name for name, is_mine in zip(names, mine) if is_mine]
    print("won", *won, flush=True)
    await store.close()

asyncio.run(main())
"""


def test_two_processes(tables: str, worker: Callable[..., Worker]) -> None:
    """Two processes claim the same five hundred at the same time: each is handled by exactly one."""
    workers = [worker(CLAIMER, tables, order) for order in ("1", "-1")]
    for each in workers:
        each.expect("ready", 50.0)
    for each in workers:
        each.send("go")
    won = [name for each in workers for name in each.expect("won", 50.0).split()]
    assert Counter(won) == {str(n): 1 for n in range(500)}
    assert [each.wait(50.0) for each in workers] == [0, 0]


async def test_odd_names(tables: str) -> None:
    """Texts that come from others, as strange as they like, are kept apart and claimed once."""
    names = [
        "",
        "a\0b",
        "a\0c",
        "\ud800",
        "\udfff",
        "x" * 100_000,
        "x" * 100_001,
        '"',
        "\\",
        "{a,b}",
        "NULL",
        "é€😀",
        "'",
        "a b",
    ]
    async with storing(tables) as store:
        assert await asyncio.gather(*(claim(store, name) for name in names)) == [True] * len(names)
        assert await asyncio.gather(*(claim(store, name) for name in names)) == [False] * len(names)
        assert await asyncio.gather(*(claim(store, "id", name) for name in names)) == [True] * len(names)
    assert count(tables, CLAIMS) == 2 * len(names)


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_one_in_the_way(tables: str, end: str) -> None:
    """A claim that an open transaction holds up is told so after a while; others, in the same statement and after it,
    are answered; and how that transaction ends decides about the next attempt."""
    async with storing(tables) as store:
        await claim(store, "warm")
        with raw(tables) as other:
            other.execute("begin")
            other.execute("insert into pgconcert.message_claim (scope, id) values ('orders', '5')")
            answers = [claim(store, str(n)) for n in range(10)]
            outcomes = await asyncio.gather(*answers, return_exceptions=True)
            stuck = outcomes.pop(5)
            assert outcomes == [True] * 9
            assert isinstance(stuck, Unavailable)
            assert "5 times, and others were in the way" in str(stuck)
            other.execute(end.encode())
        assert await claim(store, "5") == (end == "rollback")


# what is missing


@pytest.mark.parametrize("schema", ["pgconcert", "con cert"])
async def test_no_tables(server: Server, schema: str) -> None:
    """Every request is told the command; when it was run, the same store works."""
    with server.fresh_database() as url:
        async with storing(url, schema) as store:
            for answer in (spill(store, b"x"), claim(store, "x"), fetch(store, 1)):
                with pytest.raises(SchemaMissing, match=f'missing or old in schema "{schema}"') as missing:
                    await answer
                assert ("pgconcert schema apply --schema 'con cert' (" in str(missing.value)) == (schema == "con cert")
                assert "make them with: pgconcert schema apply" in str(missing.value)
            await ensure(context(url), schema)
            number = await spill(store, b"x")
            assert await fetch(store, number) == b"x"
            assert await claim(store, "x")


async def test_old_tables(tables: str) -> None:
    """A column that is not there yet is said in the same way."""
    with raw(tables) as owner:
        owner.execute("alter table pgconcert.message_claim rename column scope to domain")
    async with storing(tables) as store:
        outcomes = await asyncio.gather(*(claim(store, str(n)) for n in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [SchemaMissing] * 3


async def test_rights(server: Server, tables: str, unique: str) -> None:
    """A role without rights is told what to grant; with exactly that, everything works, the purge too."""
    role = re.sub(r"\W", "_", unique)
    server.execute(f"create role {quoted(role)} login password 'x'")
    try:
        async with storing(rewrite(server.over_tcp(tables), user=role, password="x")) as store:
            for answer in (spill(store, b"x"), claim(store, "x"), fetch(store, 1)):
                with pytest.raises(ConfigurationError, match=f"role {role} may not work with the tables") as refused:
                    await answer
                assert not isinstance(refused.value, SchemaMissing)
                assert str(refused.value).endswith("let their owner run: " + "; ".join(grants("pgconcert", role)))
            with raw(tables) as owner:
                for grant in grants("pgconcert", role):
                    owner.execute(grant.encode())
            make_old(tables)
            number = await spill(store, b"x")
            assert await fetch(store, number) == b"x"
            assert await claim(store, "x")
            await until_purged(store)
            assert (count(tables, PAYLOADS), count(tables, CLAIMS)) == (1, 1)
    finally:
        with raw(tables) as owner:
            owner.execute(f"drop owned by {quoted(role)}".encode())
        server.execute(f"drop role {quoted(role)}")


# through poolers


@pytest.mark.needs("pgbouncer")
async def test_through_a_transaction_pooler(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """All of it works on sessions that change with every statement, and leaves no trace on them."""
    with raw(database) as owner:
        owner.execute(script().encode())
    pooler = pgbouncer("transaction", pool_size=3)
    async with storing(pooler.url) as one, storing(pooler.url) as two:
        assert await claim(one, "warm")
        assert await claim(two, "warmer")
        names = [str(n) for n in range(100)]
        won = await asyncio.gather(*(claimed(store, name) for name in names for store in (one, two)))
        assert sum(won) == 100
        payloads = [b"%d" % n * 1000 for n in range(20)]
        numbers = await asyncio.gather(*(spill(one, payload) for payload in payloads))
        assert await asyncio.gather(*(fetch(two, number) for number in numbers)) == payloads
        with raw(database) as other:
            other.execute("begin")
            other.execute("insert into pgconcert.message_claim (scope, id) values ('orders', 'stuck')")
            with pytest.raises(Unavailable, match="others were in the way"):
                await claim(one, "stuck")
            other.execute("rollback")
        for health in (one.keeper.health(), two.keeper.health()):
            assert health.through == "transaction pooler"
    with raw(pooler.url) as other:
        assert other.execute("select current_setting('lock_timeout')").fetchone() == ("0",)
        assert other.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
    with raw(database) as owner:
        until_idle(owner)
        owner.execute("drop schema pgconcert cascade")


@pytest.mark.parametrize("schema", ["", "x" * 64, "a\0b", 5])
async def test_a_schema_that_can_be_none(schema: Any) -> None:
    with pytest.raises(PgconcertError, match=r"^schema must be"):
        Store(context("host=nowhere"), schema)
