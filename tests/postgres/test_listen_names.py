"""Names of channels on a real server: such that its encoding does not have, and such that nobody wants any more.

Here live tests of what the listen link makes of names, and of a link that is not proven yet. Theory: a name, a channel
that is over or an impatient caller concern whoever has to do with them; the link, which everybody shares, stays as it
is, which is seen by the links and events that there are not.
"""

import asyncio
from collections.abc import Iterator

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, StatementFailed
from pgconcert.events import ConnectFailed, LinkLost, LinkOpened, ListenerBounced
from pgconcert.postgres import listener as listener_module
from pgconcert.testing import eventually_async, rewrite
from tests.postgres.ears import Heard
from tests.postgres.messaging import messaging
from tests.postgres.scenes import raw, seen
from tests.servers import DATABASE_PREFIX, Server

UNSPELLABLE = ["日本", "Ωμέγα"]


@pytest.fixture
def latin1(server: Server) -> Iterator[str]:
    """A database in which most of the world's names cannot be written."""
    name = f"{DATABASE_PREFIX}latin1"
    server.execute(f"drop database if exists {name} with (force)")
    server.execute(f"create database {name} encoding LATIN1 template template0 locale 'C'")
    try:
        yield rewrite(server.url, dbname=name)
    finally:
        server.execute(f"drop database if exists {name} with (force)")


# a name that the database cannot spell


async def test_it_harms_nobody_else(latin1: str) -> None:
    """Wanted beside others, before and behind them: who wanted it is told that it cannot be, and the others hear."""
    async with messaging(latin1, reconnect_limit=1) as play:
        first = Heard(play.messenger, "first")
        await first.until_ready()
        heard = [Heard(play.messenger, f"good {n}") for n in range(5)]
        refused = [Heard(play.messenger, name) for name in UNSPELLABLE]
        heard += [Heard(play.messenger, name) for name in ("zzz", "grüße")]
        for one in heard:
            await one.until_ready()
        await eventually_async(lambda: all(one.errors for one in refused))
        for one in (first, *heard):
            await play.publish(one.channel, "x")
            await eventually_async(lambda one=one: one.payloads == ["x"])  # type: ignore[misc]
        for one in refused:
            assert one.story == ["failed"]
            assert isinstance(one.errors[0], ConfigurationError)
            assert repr(one.channel) in str(one.errors[0])
        assert first.story == ["ready"]
        assert not play.told(LinkLost)
        assert len(play.told(LinkOpened)) == 1


async def test_it_is_told_at_once_to_the_next(latin1: str) -> None:
    """The server is not asked again on the same link."""
    async with messaging(latin1) as play:
        name = UNSPELLABLE[0]
        one = Heard(play.messenger, name)
        await eventually_async(lambda: one.errors)
        await play.prove()
        link = play.backend._listener.keeper.link
        assert link is not None
        sent = link.statements
        assert [type(error) for error in Heard(play.messenger, name).errors] == [ConfigurationError]
        await play.prove()
        assert link.statements - sent == 1


async def test_a_fresh_link_finds_it_out_again(latin1: str, server: Server) -> None:
    """Its first LISTEN is for all of them, and all of the others are heard again."""
    async with messaging(latin1, reconnect_limit=1) as play:
        heard = [Heard(play.messenger, f"good {n}") for n in range(5)]
        refused = Heard(play.messenger, UNSPELLABLE[0])
        for one in heard:
            await one.until_ready()
        await eventually_async(lambda: refused.errors)
        server.kill_backend(play.pid())
        for one in heard:
            await one.until_ready(2)
            await play.publish(one.channel, "again")
        await eventually_async(lambda: all(one.payloads == ["again"] for one in heard))
        assert {*refused.story} == {"failed"}
        assert len(play.told(LinkOpened)) == 2


async def test_a_subscription_to_it_is_refused(latin1: str) -> None:
    """At its entry, without a limit of time; publishing there says so, too. Others of the process hear on."""
    async with AsyncCoordinator(latin1) as c, c.subscribe("good") as messages:
        lost = seen(c, LinkLost)
        for refused in (c.subscribe(UNSPELLABLE[0]), c.subscribe("good", UNSPELLABLE[1])):
            with pytest.raises(ConfigurationError, match="cannot hear the channel"):
                await asyncio.wait_for(refused.__aenter__(), 20)
        with pytest.raises(StatementFailed):
            await c.publish(UNSPELLABLE[0], "x")
        await c.publish("good", "x")
        assert (await messages.get(20)).text == "x"
        assert not lost


# a channel that is over


async def test_late_channels_leave_nothing_behind(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What still comes for a channel of one use is dropped, and the channel is forgotten with it."""
    monkeypatch.setattr(listener_module, "_LINGER", 0.0)
    async with messaging(database) as play:
        kept = Heard(play.messenger, "kept")
        await kept.until_ready()
        await play.publish("kept", "0")
        await eventually_async(lambda: kept.payloads == ["0"])
        listener = play.backend._listener
        known = len(listener._routes)
        with raw(database) as other:
            for n in range(1, 31):
                once = Heard(play.messenger, f"once {n}")
                await once.until_ready()
                with other.transaction():
                    # in one transaction: the late one has been heard when the other has
                    other.execute("select pg_notify(%s, 'late'), pg_notify('kept', %s)", (f"once {n}", str(n)))
                    once.leave()
                await eventually_async(lambda: len(kept.payloads) > n)  # noqa: B023 - waited for at once
                assert once.payloads == []
        assert len(listener._routes) <= known


# a link that is not proven yet


async def test_a_bounce_while_a_link_is_proven_does_nothing(database: str) -> None:
    """The proof belongs to the making: however often somebody bounces, it comes to its end."""
    async with messaging(database, reconnect_limit=1) as play:
        listener = play.backend._listener
        bounced: list[bool] = []

        def bounce() -> None:
            if not play.messenger.hearing().proven:
                bounced.append(listener.keeper.link is not None)
                play.messenger.bounce("impatient")
                asyncio.get_running_loop().call_soon(bounce)

        stop = play.events.subscribe(lambda event: bounce(), LinkOpened)
        heard = Heard(play.messenger, "proven")
        await heard.until_ready()
        stop()
        assert any(bounced), "there was a link, and it was being proven"
        assert heard.story == ["ready"]
        assert len(play.told(LinkOpened)) == 1
        assert not play.told(ListenerBounced)
        assert not play.told(LinkLost)


async def test_a_link_that_is_not_wanted_for_an_instant_is_no_failed_attempt(database: str) -> None:
    """Closed by us while it was being proven, and wanted again: another is made, however few attempts may fail."""
    async with messaging(database, reconnect_limit=1) as play:
        keeper = play.backend._listener.keeper
        opened = asyncio.Event()

        def again() -> None:
            keeper.unwant()
            keeper.want()
            opened.set()

        stop = play.events.subscribe(lambda event: asyncio.get_running_loop().call_soon(again), LinkOpened)
        heard = Heard(play.messenger, "wanted")
        await asyncio.wait_for(opened.wait(), 20)
        stop()
        await heard.until_ready()
        assert len(play.told(LinkOpened)) == 2
        assert not play.told(ConnectFailed)
