"""Promises about messages that no other test of this folder holds to account, by whole coordinators over real servers.

Here live one test for each such promise: the life of a large payload, what is said without our tables, giving up, pings
that cross to other programs, and what their absence finds out. What the seeds' catalogues ask stands in
`test_catalogue_messages.py` and `test_catalogue_connections.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import psycopg
import pytest

from pgconcert import (
    PING_CHANNEL,
    AsyncCoordinator,
    Coordinator,
    Gap,
    GivenUp,
    Message,
    PayloadTooLarge,
    PublishManyFailed,
    RequestFailed,
    send_listener_ping,
)
from pgconcert.events import ConnectFailed, Event, ListenerReady, PingsMissing
from pgconcert.pubsub.envelope import parse
from pgconcert.testing import eventually_async
from tests.postgres.scenes import QUIET, ask, raw, role_pids, seen, statements
from tests.postgres.store_scenes import PAYLOADS, count
from tests.servers import Server


async def next_note(connection: psycopg.AsyncConnection[Any]) -> psycopg.Notify:
    """The next notification of a bare driver."""
    async for note in connection.notifies(timeout=20, stop_after=1):
        return note
    raise AssertionError("nothing came")


@contextlib.asynccontextmanager
async def bare(url: str, *channels: str) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """A program that listens and knows nothing of us."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for channel in channels:
            await connection.execute(f'listen "{channel}"'.encode())
        yield connection


# plain text, and large payloads


async def test_a_large_payload_is_there_before_it_is_announced_and_goes_with_its_time(tables: str) -> None:
    """Who hears the announcement finds the row, as long as `spill_ttl` says; when it is gone there is a gap in its
    place, and what comes behind it arrives."""
    async with (
        AsyncCoordinator(tables) as c,
        AsyncCoordinator(tables, spill_ttl=100) as sender,
        bare(tables, "large") as other,
        c.subscribe("large", gaps="yield") as messages,
    ):
        await sender.publish("large", "x" * 20_000, headers={"kind": "large"})
        wire = (await next_note(other)).payload
        spill = parse(wire.encode()).spill
        assert spill is not None
        row = f"id = {spill.number}"
        assert count(tables, PAYLOADS, row) == 1
        assert (
            count(tables, PAYLOADS, f"{row} and expires between now() + interval '60 s' and now() + interval '101 s'")
            == 1
        )
        first = await messages.get(20)
        assert isinstance(first, Message)
        assert (first.text, dict(first.headers)) == ("x" * 20_000, {"kind": "large"})
        with raw(tables) as owner:
            owner.execute(f"delete from {PAYLOADS} where {row}".encode())
        async with c.subscribe("large", gaps="raise") as strict:
            await other.execute("select pg_notify('large', %s)", [wire])
            await sender.publish("large", "behind it")
            gap, behind = await messages.get(20), await messages.get(20)
            with pytest.raises(Exception, match="1 messages are missing on 'large' \\(payload"):
                await strict.get(20)
            assert (await strict.get(20)).text == "behind it"
        assert isinstance(gap, Gap)
        assert (gap.reason, gap.count, gap.channels) == ("payload", 1, ("large",))
        assert isinstance(behind, Message)
        assert behind.text == "behind it"
        assert messages.statistics.gaps == {"payload": 1}


async def test_without_our_tables_it_is_said_what_to_do(server: Server) -> None:
    """A large message, one of several, and a large reply: each says so to whoever can do something about it."""
    with server.fresh_database() as url:
        async with AsyncCoordinator(url) as c, c.subscribe("a") as messages:
            with pytest.raises(PayloadTooLarge, match=r"9000 bytes .* 7999 .* pgconcert schema apply"):
                await c.publish("a", "x" * 9000)
            with pytest.raises(
                PublishManyFailed, match=r"^1 of 3 messages were not published; the first: .* 9000"
            ) as failed:
                await c.publish_many([("a", "0"), ("a", "x" * 9000), ("a", "2")])
            assert [(place, type(error)) for place, error in failed.value.failures.items()] == [(1, PayloadTooLarge)]
            assert [(await messages.get(20)).text for _ in range(2)] == ["0", "2"]
            async with c.listen({"ask": lambda message: "x" * 9000}):
                with pytest.raises(
                    RequestFailed, match=r"the reply could not be sent: .* 9000 .* pgconcert schema apply"
                ):
                    await c.request("ask", timeout=20)


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_give_up_after_exactly_so_many_attempts(limit: int) -> None:
    """`GivenUp` says how often, and why; the next entry begins anew."""
    told = rf"tried {limit} times? in vain \(reconnect_limit={limit}\).* 127\.0\.0\.1:1"
    with Coordinator("postgresql://127.0.0.1:1/nobody", reconnect_limit=limit) as c:
        attempts: list[Event] = []
        c.events.subscribe(attempts.append, ConnectFailed)
        for entries in (1, 2):
            with pytest.raises(GivenUp, match=told), c.subscribe("a"):
                pass
            assert len(attempts) == entries * limit


# pings


async def test_our_pings_reach_listeners_of_other_programs_and_theirs_us(database: str) -> None:
    """An empty payload on `listener_ping`, over our own link or over a connection that was given."""
    async with bare(database, PING_CHANNEL) as other, await psycopg.AsyncConnection.connect(database) as given:
        await given.set_autocommit(True)
        frequent: dict[str, Any] = {"ping_interval": 0.05, "ping_grace": 60}
        async with AsyncCoordinator(database, **frequent) as c, c.subscribe("a"):
            note = await next_note(other)
            assert (note.channel, note.payload) == (PING_CHANNEL, "")
            assert [note.pid] == role_pids(c, "publish")
        async with (
            AsyncCoordinator(database, ping_connection=given, **frequent) as c,
            c.subscribe(PING_CHANNEL) as pings,
        ):
            assert (await pings.get(20)).pid == given.info.backend_pid
            assert statements(c, "publish") == 0
        async with AsyncCoordinator(database, ping_connection=None) as c, c.subscribe(PING_CHANNEL) as pings:
            with psycopg.connect(database) as connection:
                send_listener_ping(connection)
            assert (await pings.get(20)).payload == b""
            await send_listener_ping(given)
            assert (await pings.get(20)).pid == given.info.backend_pid


async def test_missing_pings_find_out_a_deaf_link(database: str) -> None:
    """The pings of somebody else stop, because the link is deaf: the proof fails, the link is replaced, and a gap says
    so; with the pulse of our own far away."""
    async with AsyncCoordinator(
        database, ping_interval=0.1, ping_grace=0.5, ping_connection=None, network_timeout=QUIET
    ) as c:
        missing, ready = seen(c, PingsMissing), seen(c, ListenerReady)
        async with c.subscribe("a", gaps="yield") as messages:
            backend: Any = c.backend
            await ask(backend._listener.keeper.link, "unlisten *")
            backend._listener._echoes._timeout = 0.5  # of proofs alone: a server may be slow to answer
            await eventually_async(lambda: any(event.deaf for event in missing), 30)
            backend._listener._echoes._timeout = QUIET
            await eventually_async(lambda: len(ready) == 2, 30)
            gap = await messages.get(20)
            assert isinstance(gap, Gap)
            assert gap.reason == "reconnect"
            with raw(database) as other:
                other.execute("notify a, 'heard'")
            message = await messages.get(20)
            assert isinstance(message, Message)
