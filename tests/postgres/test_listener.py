"""The LISTEN link on a real server: proof, reconciliation, reconnect, lingering, names, end.

Here live tests of `postgres/listener.py` alone. Theory: what counts is what the server has registered and what arrives,
so the tests notify from a connection of their own and ask the link itself for `pg_listening_channels()`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from pgconcert.events import LinkLost
from pgconcert.postgres import listener as listener_module
from pgconcert.postgres.listener import Listener, Registration
from pgconcert.testing import eventually_async
from tests.postgres.scenes import QUIET, ask, context, raw
from tests.servers import OwnServer, Server


class Heard:
    """A registration with what came of it."""

    def __init__(self, listener: Listener, channel: str) -> None:
        self.payloads: list[str] = []
        self.times_ready = 0
        self.registration: Registration = listener.add(
            channel, lambda note: self.payloads.append(note.payload.decode()), self._ready
        )

    def _ready(self) -> None:
        self.times_ready += 1

    async def ready(self, times: int = 1) -> None:
        """Wait until it has become ready so often."""
        await eventually_async(lambda: self.times_ready >= times, what=f"ready {times} times")


@asynccontextmanager
async def listening(url: str, network_timeout: float = QUIET) -> AsyncGenerator[Listener]:
    """A listener that ends with the block."""
    listener = Listener(context(url, network_timeout=network_timeout))
    try:
        yield listener
    finally:
        await listener.close()


async def channels(listener: Listener) -> set[bytes | None]:
    """What the server has registered for the link, the proof left out."""
    link = listener.keeper.link
    assert link is not None
    return {row[0] for row in await ask(link, "select pg_listening_channels()") if b":proof:" not in (row[0] or b"")}


async def test_ready_means_heard(database: str) -> None:
    """A notification sent after the channel is ready arrives, every time."""
    async with listening(database) as listener:
        with raw(database) as other:
            for n in range(20):
                heard = Heard(listener, f"proof {n}")
                await heard.ready()
                other.execute("select pg_notify(%s, 'x')", (f"proof {n}",))
                await eventually_async(heard.payloads.copy)
                assert heard.payloads == ["x"]


async def test_a_hundred_channels_cost_one_transaction(database: str, server: Server) -> None:
    """However many channels are wanted, connecting sends as many transactions as for one, and so does reconnecting."""

    async def transactions(count: int) -> tuple[int, int]:
        async with listening(database) as listener:
            heard = [Heard(listener, f"many {n}") for n in range(count)]
            await heard[-1].ready()
            first = listener.keeper.link
            assert first is not None
            sent = first.answers
            server.kill_backend(first.pid)
            for one in heard:
                await one.ready(2)
            second = listener.keeper.link
            assert second is not None
            assert second is not first
            sent_again = second.answers
            assert len(await channels(listener)) == count
            return sent, sent_again

    # the last of them, which gives up the channel of the proof, may or may not be answered yet
    assert await transactions(100) == pytest.approx(await transactions(1), abs=1)


async def test_channels_added_together_travel_together(database: str) -> None:
    """Channels wanted while a LISTEN is under way leave in one transaction behind it."""
    async with listening(database) as listener:
        await Heard(listener, "first").ready()
        link = listener.keeper.link
        assert link is not None
        before = link.answers
        heard = [Heard(listener, f"later {n}") for n in range(100)]
        for one in heard:
            await one.ready()
        assert link.answers - before == 2


async def test_reconnect(database: str, server: Server) -> None:
    """After the link died everything is heard again, and everybody is told once more, when it is true."""
    async with listening(database) as listener:
        lost: list[object] = []
        listener.keeper.context.events.subscribe(lost.append, LinkLost)
        heard = [Heard(listener, f"again {n}") for n in range(5)]
        for one in heard:
            await one.ready()
        link = listener.keeper.link
        assert link is not None
        server.kill_backend(link.pid)
        await eventually_async(lambda: lost)
        for one in heard:
            await one.ready(2)
            assert one.registration.ready
        with raw(database) as other:
            for n in range(5):
                other.execute("select pg_notify(%s, 'after')", (f"again {n}",))
        await eventually_async(lambda: all(one.payloads == ["after"] for one in heard))
        assert {one.times_ready for one in heard} == {2}


async def test_not_ready_while_down(database: str, server: Server) -> None:
    """From the instant the link is gone until it is proven anew, no registration calls itself ready."""
    async with listening(database) as listener:
        heard = Heard(listener, "down")
        await heard.ready()
        states: list[bool] = []
        listener.keeper.context.events.subscribe(
            lambda event: asyncio.get_running_loop().call_soon(lambda: states.append(heard.registration.ready)),
            LinkLost,
        )
        link = listener.keeper.link
        assert link is not None
        server.kill_backend(link.pid)
        await heard.ready(2)
        assert states == [False]


async def test_unlisten_lingers(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel nobody wants is heard for a while, in which wanting it again costs nothing; then it is given up."""
    async with listening(database) as listener:
        kept = Heard(listener, "kept")
        gone = Heard(listener, "gone")
        await gone.ready()
        await kept.ready()
        link = listener.keeper.link
        assert link is not None
        listener.remove(gone.registration)
        before = link.statements
        back = Heard(listener, "gone")
        assert back.times_ready == 1, "ready at once"
        assert link.statements == before
        monkeypatch.setattr(listener_module, "_LINGER", 0.05)
        listener.remove(back.registration)
        assert not back.registration.ready

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
        await one.ready()
        await two.ready()
        with raw(database) as other:
            other.execute("select pg_notify('both', 'a')")
            await eventually_async(lambda: one.payloads == two.payloads == ["a"])
            listener.remove(one.registration)
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
        await heard.ready()
        assert await channels(listener) == {name.encode()}
        with raw(database) as other:
            other.execute("select pg_notify(%s, 'found')", (name,))
        await eventually_async(lambda: heard.payloads == ["found"])


async def test_link_ends_when_nothing_is_wanted(database: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing is wanted any more the session ends; wanting again opens another."""
    monkeypatch.setattr(listener_module, "_LINGER", 0.05)
    async with listening(database) as listener:
        heard = Heard(listener, "short")
        await heard.ready()
        link = listener.keeper.link
        assert link is not None
        listener.remove(heard.registration)
        await eventually_async(lambda: link.pid not in {session.pid for session in server.sessions()})
        assert listener.keeper.health().state == "idle"
        await Heard(listener, "short again").ready()


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
            await eventually_async(lambda: len(lost) >= 2)
            reasons = {event.reason for event in lost if isinstance(event, LinkLost)}
            assert reasons == {"a notification to ourselves did not come back"}
            assert heard.times_ready == 0
            assert not heard.registration.ready


async def test_server_restart(own_server: OwnServer, database: str) -> None:
    """A server that goes away and comes back finds its listener again."""
    async with listening(database) as listener:
        heard = Heard(listener, "restart")
        await heard.ready()
        with own_server.down():
            await eventually_async(lambda: not heard.registration.ready)
        await heard.ready(2)
        with raw(database) as other:
            other.execute("notify restart, 'back'")
        await eventually_async(lambda: heard.payloads == ["back"])
