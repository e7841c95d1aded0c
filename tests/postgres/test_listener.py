"""The LISTEN link on a real server: proof, reconciliation, reconnect, lingering, names, end.

Here live tests of `postgres/listener.py` alone. Theory: what counts is what the server has registered and what arrives,
so the tests notify from a connection of their own and ask the link itself for `pg_listening_channels()`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from pgconcert.errors import Unavailable
from pgconcert.events import LinkLost
from pgconcert.postgres import listener as listener_module
from pgconcert.postgres.listener import Listener
from pgconcert.testing import eventually_async
from tests.postgres.ears import Heard
from tests.postgres.scenes import QUIET, ask, context, raw
from tests.servers import OwnServer, Server


@asynccontextmanager
async def listening(url: str, network_timeout: float = QUIET) -> AsyncGenerator[Listener]:
    """A listener that ends with the block."""
    listener = Listener(context(url, network_timeout=network_timeout))
    try:
        yield listener
    finally:
        await listener.close()


async def channels(listener: Listener) -> set[bytes | None]:
    """What the server has registered for the link, our own channels left out."""
    link = listener.keeper.link
    assert link is not None
    return {
        row[0]
        for row in await ask(link, "select pg_listening_channels()")
        if not (row[0] or b"").startswith(b"pgconcert:")
    }


async def test_ready_means_heard(database: str) -> None:
    """A notification sent after the channel is ready arrives, every time."""
    async with listening(database) as listener:
        with raw(database) as other:
            for n in range(20):
                heard = Heard(listener, f"proof {n}")
                await heard.until_ready()
                other.execute("select pg_notify(%s, 'x')", (f"proof {n}",))
                await eventually_async(heard.payloads.copy)
                assert heard.payloads == ["x"]


async def test_a_hundred_channels_cost_one_transaction(database: str, server: Server) -> None:
    """However many channels are wanted, connecting sends as many transactions as for one, and so does reconnecting."""

    async def transactions(count: int) -> tuple[int, int]:
        async with listening(database) as listener:
            heard = [Heard(listener, f"many {n}") for n in range(count)]
            await heard[-1].until_ready()
            first = listener.keeper.link
            assert first is not None
            sent = first.answers
            server.kill_backend(first.pid)
            for one in heard:
                await one.until_ready(2)
            second = listener.keeper.link
            assert second is not None
            assert second is not first
            sent_again = second.answers
            assert len(await channels(listener)) == count
            return sent, sent_again

    assert await transactions(100) == await transactions(1)


async def test_channels_added_together_travel_together(database: str) -> None:
    """Channels wanted while a LISTEN is under way leave in one transaction behind it."""
    async with listening(database) as listener:
        await Heard(listener, "first").until_ready()
        link = listener.keeper.link
        assert link is not None
        before = link.answers
        heard = [Heard(listener, f"later {n}") for n in range(100)]
        for one in heard:
            await one.until_ready()
        assert link.answers - before == 2


async def test_reconnect(database: str, server: Server) -> None:
    """After the link died everything is heard again, and everybody is told once more, when it is true."""
    async with listening(database) as listener:
        lost: list[object] = []
        listener.keeper.context.events.subscribe(lost.append, LinkLost)
        heard = [Heard(listener, f"again {n}") for n in range(5)]
        for one in heard:
            await one.until_ready()
        link = listener.keeper.link
        assert link is not None
        server.kill_backend(link.pid)
        await eventually_async(lambda: lost)
        for one in heard:
            await one.until_ready(2)
            assert one.hearing
        with raw(database) as other:
            for n in range(5):
                other.execute("select pg_notify(%s, 'after')", (f"again {n}",))
        await eventually_async(lambda: all(one.payloads == ["after"] for one in heard))
        assert {one.times_ready for one in heard} == {2}


async def test_not_ready_while_down(database: str, server: Server) -> None:
    """From the instant the link is gone until it is proven anew, no registration calls itself ready."""
    async with listening(database) as listener:
        heard = Heard(listener, "down")
        await heard.until_ready()
        states: list[bool] = []
        listener.keeper.context.events.subscribe(
            lambda event: asyncio.get_running_loop().call_soon(lambda: states.append(heard.hearing)),
            LinkLost,
        )
        link = listener.keeper.link
        assert link is not None
        server.kill_backend(link.pid)
        await heard.until_ready(2)
        assert states == [False]


async def test_unlisten_lingers(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel nobody wants is heard for a while, in which wanting it again costs nothing; then it is given up."""
    async with listening(database) as listener:
        kept = Heard(listener, "kept")
        gone = Heard(listener, "gone")
        await gone.until_ready()
        await kept.until_ready()
        link = listener.keeper.link
        assert link is not None
        gone.leave()
        before = link.statements
        back = Heard(listener, "gone")
        assert back.times_ready == 1, "ready at once"
        assert link.statements == before
        monkeypatch.setattr(listener_module, "_LINGER", 0.05)
        back.leave()

        async def given_up() -> bool:
            return await channels(listener) == {b"kept"}

        await eventually_async(given_up)
        with raw(database) as other:
            other.execute("select pg_notify('gone', ''), pg_notify('kept', 'k')")
        await eventually_async(lambda: kept.payloads == ["k"])
        assert gone.payloads == back.payloads == []


async def test_two_registrations_of_one_channel(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets every notification, and the channel stays until the last has gone."""
    monkeypatch.setattr(listener_module, "_LINGER", 0.0)
    async with listening(database) as listener:
        one, two = Heard(listener, "both"), Heard(listener, "both")
        await one.until_ready()
        await two.until_ready()
        with raw(database) as other:
            other.execute("select pg_notify('both', 'a')")
            await eventually_async(lambda: one.payloads == two.payloads == ["a"])
            one.leave()
            other.execute("select pg_notify('both', 'b')")
            await eventually_async(lambda: two.payloads == ["a", "b"])
        assert one.payloads == ["a"]


@pytest.mark.parametrize(
    "name",
    ['a "quoted" name', "Über; drop table x", "select", "UPPER", "a.b:c/d", "\\", "''", " ", "x" * 63, "é" * 31],
)
async def test_odd_names(database: str, name: str) -> None:
    """Any text is a channel, exactly as written."""
    async with listening(database) as listener:
        heard = Heard(listener, name)
        await heard.until_ready()
        assert await channels(listener) == {name.encode()}
        with raw(database) as other:
            other.execute("select pg_notify(%s, 'found')", (name,))
        await eventually_async(lambda: heard.payloads == ["found"])


async def test_link_ends_when_nothing_is_wanted(database: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing is wanted any more the session ends; wanting again opens another."""
    monkeypatch.setattr(listener_module, "_LINGER", 0.05)
    async with listening(database) as listener:
        heard = Heard(listener, "short")
        await heard.until_ready()
        link = listener.keeper.link
        assert link is not None
        heard.leave()
        await eventually_async(lambda: link.pid not in {session.pid for session in server.sessions()})
        await eventually_async(lambda: listener.keeper.health().state == "idle", what="its keeper has come to rest")
        await Heard(listener, "short again").until_ready()


async def test_swallowed_notifications_are_found_out(server: Server) -> None:
    """A link on which notifications do not come back is never called ready: it is closed, and the next one tried."""
    with server.fresh_database() as url:
        with raw(url) as admin:
            # replacing it would not do: the server knows its built-in functions by number
            admin.execute("alter function pg_catalog.pg_notify(text, text) rename to pg_notify_in_earnest")
            admin.execute("create function pg_catalog.pg_notify(text, text) returns void language sql as 'select'")
        async with listening(url, network_timeout=0.4) as listener:
            lost: list[object] = []
            listener.keeper.context.events.subscribe(lost.append, LinkLost)
            heard = Heard(listener, "swallowed")
            reason = "a notification to ourselves did not come back within network_timeout=0.4 s"

            def swallowed() -> list[LinkLost]:  # a busy server may be late with other answers as well
                return [event for event in lost if isinstance(event, LinkLost) and event.reason == reason]

            await eventually_async(lambda: len(swallowed()) >= 2, 30, what=reason)
            assert set(heard.story) == {"failed"}
            assert {type(error) for error in heard.errors} == {Unavailable}


async def test_server_restart(own_server: OwnServer, database: str) -> None:
    """A server that goes away and comes back finds its listener again."""
    async with listening(database) as listener:
        heard = Heard(listener, "restart")
        await heard.until_ready()
        with own_server.down():
            await eventually_async(lambda: not heard.hearing)
        await heard.until_ready(2)
        with raw(database) as other:
            other.execute("notify restart, 'back'")
        await eventually_async(lambda: heard.payloads == ["back"])
