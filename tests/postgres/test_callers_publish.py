"""`transaction.publish` on connections of every kind: what is sent when, in which form, and what stays behind.

Here live tests of `transaction/publishing.py` and of its statements. Theory: a coordinator listens, and hears all there
is to hear; the last message of a test is one that everybody waits for, so whatever should not come would have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgconcert import (
    AsyncCoordinator,
    ChannelInvalid,
    ConfigurationError,
    Coordinator,
    Message,
    PayloadInvalid,
    PayloadTooLarge,
    send_listener_ping,
)
from pgconcert.messenger import PING_CHANNEL
from pgconcert.postgres.schemafiles import identifier, script
from pgconcert.transaction import publish
from tests.postgres.callers import BLOCKING, KINDS, Caller, caller, kinds
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.postgres.test_messages_promises import bare, next_note

END = "the end"
LARGE = "ö" * 5000
KEPT = "select count(*) from pgconcert.message_payload"

some_kinds = kinds("psycopg", "sqlalchemy-psycopg2", "asyncpg", "django")


@dataclass
class Order:
    text: str


class Heard:
    """What comes on `orders`."""

    def __init__(self, c: AsyncCoordinator, subscription: Any) -> None:
        self.c = c
        self._subscription = subscription

    async def all(self) -> list[Message]:
        """Everything that was sent up to now."""
        await self.c.publish("orders", END)
        found: list[Message] = []
        while True:
            message = await self._subscription.get(20)
            assert isinstance(message, Message)
            if message.payload == END.encode():
                return found
            found.append(message)

    async def texts(self) -> list[str]:
        return [message.text for message in await self.all()]


@asynccontextmanager
async def hearing(url: str) -> AsyncGenerator[Heard]:
    async with AsyncCoordinator(url) as c, c.subscribe("orders", gaps="yield") as subscription:
        yield Heard(c, subscription)


@pytest.mark.parametrize("kind", KINDS)
async def test_with_the_transaction_or_not_at_all(emptied: str, kind: str) -> None:
    """B10: at the commit, in order; equal ones once, unless each has an id; nothing of what was rolled back."""
    async with hearing(emptied) as heard, caller(kind, emptied) as conn:
        await conn.begin()
        await conn.say(publish, "orders", "never")
        await conn.rollback()
        await conn.begin()
        await conn.say(publish, "orders", "first")
        await conn.savepoint("here")
        await conn.say(publish, "orders", "gone with its savepoint")
        await conn.say(publish, "orders", LARGE + "gone too")
        await conn.rollback_to("here")
        for payload in ("twice", b"twice"):
            await conn.say(publish, "orders", payload)
        for _ in range(2):
            await conn.say(publish, "orders", "both", unique=True)
        await conn.say(publish, "orders", json={"to": "ü"}, headers={"a": "ä"})
        await conn.say(publish, "orders", bytes(range(256)))
        await conn.say(publish, "orders", LARGE, headers={"size": "large"})
        await conn.say(publish, "orders", "it's :last %s $1 \\")
        assert await heard.all() == []
        await conn.commit()
        messages = await heard.all()
        assert rows(emptied, KEPT) == [(1,)]
    assert [message.payload for message in messages] == [
        *(b"first", b"twice", b"both", b"both", '{"to":"ü"}'.encode(), bytes(range(256)), LARGE.encode()),
        b"it's :last %s $1 \\",
    ]
    assert len({message.id for message in messages[2:4]} - {None}) == 2
    assert [dict(message.headers) for message in messages[4:7]] == [{"a": "ä"}, {}, {"size": "large"}]


@some_kinds
async def test_without_a_transaction(emptied: str, kind: str) -> None:
    """In autocommit mode it is sent at once, large or not; so is a ping."""
    async with hearing(emptied) as heard, caller(kind, emptied, autocommit=True) as conn:
        async with bare(emptied, PING_CHANNEL) as other:
            await conn.say(publish, "orders", "at once")
            await conn.say(publish, "orders", LARGE)
            await conn.say(send_listener_ping)
            assert (await next_note(other)).pid == await conn.pid()
        assert await heard.texts() == ["at once", LARGE]


@some_kinds
async def test_too_large_without_our_tables(database: str, kind: str) -> None:
    """It is said what is missing, and the transaction is sound."""
    async with hearing(database) as heard, caller(kind, database) as conn:
        await conn.begin()
        await conn.say(publish, "orders", "before")
        with pytest.raises(
            PayloadTooLarge, match=r"^a payload of 10000 bytes .* larger ones need our tables: .* apply"
        ):
            await conn.say(publish, "orders", LARGE)
        await conn.say(publish, "orders", "after")
        await conn.commit()
        assert await heard.texts() == ["before", "after"]


async def test_what_other_programs_hear(database: str) -> None:
    """A text travels as it is, also one that the encoding of this connection does not have."""
    async with bare(database, "orders") as other, await psycopg.AsyncConnection.connect(database) as conn:
        await conn.execute("set client_encoding = latin1")
        await conn.execute("set search_path = nowhere")
        await publish(conn, "orders", "1 €")
        await conn.commit()
        note = await next_note(other)
        assert (note.payload, note.pid) == ("1 €", conn.info.backend_pid)


async def test_an_id_that_is_given_stays(emptied: str) -> None:
    """`unique` is `id=True`, where no id was given: equal messages with equal ids are equal."""
    async with hearing(emptied) as heard, await psycopg.AsyncConnection.connect(emptied) as conn:
        given: list[dict[str, Any]] = [
            {"id": "mine"},
            {"id": "mine", "unique": True},
            {"id": True},
            {"unique": True},
            {},
        ]
        for options in given:
            for payload in ("x", LARGE):
                await publish(conn, "orders", payload, **options)
        await conn.commit()
        ids = [message.id for message in await heard.all() if message.text == "x"]
    assert (ids[0], len(ids), ids[3]) == ("mine", 4, None)
    assert len({*ids}) == 4


WRONG: list[tuple[type[Exception], dict[str, Any]]] = [
    *((PayloadInvalid, {"payload": wrong}) for wrong in ("\ud800", 5)),
    (PayloadInvalid, {"json": {1, 2}}),
    *((PayloadInvalid, {"id": wrong}) for wrong in (None, "ä")),
    (PayloadInvalid, {"headers": {"a": 1}}),
    (ConfigurationError, {"json": 1, "payload": "x"}),
    (ConfigurationError, {"unique": 1}),
    (ConfigurationError, {"schema": ""}),
    *((ConfigurationError, {"spill_ttl": wrong}) for wrong in (0, True, float("nan"))),
]


def test_what_is_refused_before_anything_is_sent(emptied: str) -> None:
    """As `c.publish` refuses it; the transaction does not even begin."""
    with psycopg.connect(emptied) as conn:
        wrong: Any
        for wrong in ("", "x" * 64, "pgconcert:reply:x", None):
            with pytest.raises(ChannelInvalid):
                publish(conn, wrong, "x")
        for kind, options in WRONG:
            with pytest.raises(kind):
                publish(conn, "orders", **options)
        with pytest.raises(PayloadTooLarge, match="larger than the largest of all"):
            publish(conn, "orders", b"x" * (64 * 2**20 + 1))
        assert conn.info.transaction_status == TransactionStatus.IDLE
    for wrong in (None, 5, "no alias", emptied):
        with pytest.raises(ConfigurationError, match=r"^transaction\.publish "):
            publish(wrong, "orders")


def test_another_schema_and_its_time(tables: str) -> None:
    """The row is where, and for as long as, was said."""
    with raw(tables) as owner:
        owner.execute(script('of: "us" % $1').encode())
    with psycopg.connect(tables) as conn:
        publish(conn, "orders", LARGE, schema='of: "us" % $1', spill_ttl=7500.5)
    kept = """select extract(epoch from expires - now())::float8 from "of: ""us"" % $1".message_payload"""
    ((seconds,),) = rows(tables, kept)
    assert 7400 < seconds <= 7500.5
    assert rows(tables, KEPT) == [(0,)]


def test_who_may_not_use_our_tables(emptied: str, unique: str) -> None:
    """It is said what to grant, the transaction goes on, and what fits a notification needs no table."""
    role = identifier(unique)
    with raw(emptied) as owner:
        owner.execute(f"create role {role}".encode())
        try:
            with psycopg.connect(emptied) as conn:
                conn.execute(f"set role {role}".encode())
                publish(conn, "orders", "small")
                for grant in ("select 1", f"grant usage on schema pgconcert to {role}"):
                    owner.execute(grant.encode())
                    with pytest.raises(ConfigurationError, match=r"permission denied for table .* grant "):
                        publish(conn, "orders", LARGE)
                owner.execute(f"grant insert, select on pgconcert.message_payload to {role}".encode())
                publish(conn, "orders", LARGE)
        finally:
            owner.execute(f"drop owned by {role}".encode())
            owner.execute(f"drop role {role}".encode())
    assert rows(emptied, KEPT) == [(1,)]


# a fan-out


@some_kinds
async def test_values_of_a_fan_out(emptied: str, kind: str) -> None:
    """They go with the transaction, whatever their size; a blocking connection serves both worlds."""
    large = Order("x" * 9000)
    async with AsyncCoordinator(emptied) as c, caller(kind, emptied) as conn:
        orders = c.fanout("orders", Order)
        async with orders.subscribe() as listener:
            await conn.begin()
            if kind in BLOCKING:
                await _with_threads(conn, emptied, Order("1"), large)
            else:
                await orders.publish(Order("1"), connection=conn.conn)
                await orders.publish(large, connection=conn.conn)
            assert listener.statistics.received == 0
            await conn.commit()
            assert [await listener.get(20) for _ in range(2)] == [Order("1"), large]


async def _with_threads(conn: Caller, url: str, *values: Order) -> None:
    def publish_all() -> None:
        with Coordinator(url) as c:
            for value in values:
                c.fanout("orders", Order).publish(value, connection=conn.conn)

    await conn.call(publish_all)


async def test_an_awaited_connection_is_refused_by_threads(database: str) -> None:
    """Nobody there could await it, and nothing was sent."""
    async with await psycopg.AsyncConnection.connect(database) as conn:

        def refused() -> None:
            with Coordinator(database) as c, pytest.raises(ConfigurationError, match="nobody here awaits it"):
                c.fanout("orders", Order).publish(Order("1"), connection=conn)

        await asyncio.to_thread(refused)
        assert conn.info.transaction_status == TransactionStatus.IDLE


@kinds("sqlalchemy", "asyncpg", among=("psycopg", "sqlalchemy", "asyncpg", "sqlalchemy-asyncpg"))
async def test_pings_on_a_connection_of_the_callers(database: str, kind: str) -> None:
    """They are sent there, from a thread where that blocks."""
    async with caller(kind, database, autocommit=True) as conn:
        pid = await conn.pid()
        async with (
            AsyncCoordinator(database, ping_connection=conn.conn, ping_interval=0.05, ping_grace=60) as c,
            c.subscribe(PING_CHANNEL) as pings,
        ):
            assert (await pings.get(20)).pid == pid
