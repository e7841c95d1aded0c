"""The listen link when somebody wants another, and when there is none: bounces, and giving up.

Here live tests of `Keeper.bounce` and `reconnect_limit`, through the port for messages. Theory: what must not happen is
made visible by making it endless (a pause of days) or by counting it (attempts, links, events).
"""

import pytest

from pgconcert.errors import GivenUp, Unavailable
from pgconcert.events import (
    ConnectFailed,
    LinkLost,
    LinkOpened,
    ListenerBounced,
    ListenerDeaf,
    ListenerReady,
)
from pgconcert.postgres import keeper as keeper_module
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.ears import Heard
from tests.postgres.messaging import Numbered, flood, messaging
from tests.postgres.scenes import raw
from tests.servers import Server

_NOWHERE = "postgresql://127.0.0.1:1/x"


# bounce


async def test_bounce(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounce replaces the link at once, without the pause after a loss; asked often, it is done once."""
    monkeypatch.setattr(keeper_module, "_FIRST_DELAY", 1e6)
    async with messaging(database) as play:
        ears = [Heard(play.messenger, f"bounced {n}") for n in range(3)]
        for ear in ears:
            await ear.until_ready()
        before = play.pid()
        for _ in range(10):
            play.messenger.bounce("a test wants it")
        assert all(ear.hearing for ear in ears), "nothing happens within the call"
        for ear in ears:
            await ear.until_ready(2)
        assert play.pid() != before
        assert len(play.told(LinkOpened)) == 2
        assert [str(event) for event in play.told(ListenerBounced)] == ["the listen link is replaced: a test wants it"]
        assert not play.told(LinkLost)
        assert not play.told(ListenerDeaf)
        (first, second) = [event for event in play.told(ListenerReady) if isinstance(event, ListenerReady)]
        assert first.initial
        assert first.deaf_for is None
        assert not second.initial
        assert second.deaf_for is not None
        assert second.channels == 3


async def test_bounce_while_connecting_does_nothing(database: str) -> None:
    """There is nothing to replace: a link that is being made is fresh."""
    async with messaging(database) as play:
        play.messenger.bounce("there is none")
        heard = Heard(play.messenger, "early")
        play.messenger.bounce("it is being made")
        await heard.until_ready()
        play.messenger.bounce("now")
        await eventually_async(lambda: not heard.hearing)
        play.messenger.bounce("it is being made again")
        await heard.until_ready(2)
        assert await play.prove() > 0
        assert len(play.told(LinkOpened)) == 2
        assert len(play.told(ListenerBounced)) == 1


async def test_a_bounce_that_is_overtaken_by_a_loss(database: str, server: Server) -> None:
    """A bounce concerns the link that was up when it was asked for, and no later one."""
    async with messaging(database) as play:
        heard = Heard(play.messenger, "overtaken")
        await heard.until_ready()
        link = play.backend._listener.keeper.link
        assert link is not None
        play.messenger.bounce("too late")
        link.close("a test wanted it")
        await heard.until_ready(2)
        await play.prove()
        assert not play.told(ListenerBounced)
        assert len(play.told(LinkOpened)) == 2


async def test_bounces_lose_nothing_unreported(database: str) -> None:
    """A bounce under flood is a window like any other: told, and short."""
    async with messaging(database) as play:
        ear = Numbered(play.messenger, "bouncing")
        with flood(database, "bouncing"):
            await ear.until_ready()
            for n in range(1, 11):
                await ear.until(ear.last + 20)
                play.messenger.bounce("again")
                await ear.until_ready(n + 1)
        assert ear.unreported() == []


# giving up


async def test_reconnect_limit_at_the_start() -> None:
    """After exactly so many attempts every ear is told, and nobody tries any more; wanting again begins anew."""
    async with messaging(_NOWHERE, reconnect_limit=3) as play:
        ears = [Heard(play.messenger, f"limit {n}") for n in range(2)]
        await eventually_async(lambda: play.state() == "given up")
        assert len(play.told(ConnectFailed)) == 3
        for ear in ears:
            assert [type(error) for error in ear.errors] == [Unavailable, Unavailable, GivenUp]
            assert "tried 3 times in vain (reconnect_limit=3)" in str(ear.errors[-1])
        assert not play.backend.health().ready
        late = Heard(play.messenger, "limit late")
        await eventually_async(lambda: play.state() == "given up" and len(late.errors) == 3)
        assert len(play.told(ConnectFailed)) == 6


@pytest.mark.long
async def test_reconnect_limit_counts_in_a_row(proxy: FaultProxy, server: Server, database: str) -> None:
    """A link that was proven ends the row: failures before it do not count."""
    async with messaging(proxy.url(server.over_tcp(database)), reconnect_limit=2) as play:
        heard = Heard(play.messenger, "row")
        await heard.until_ready()
        stop = play.events.subscribe(lambda event: proxy.accept(), ConnectFailed)
        for n in range(3):
            proxy.refuse()
            proxy.cut()
            await heard.until_ready(n + 2)
        assert len(play.told(ConnectFailed)) == 3
        stop()
        proxy.refuse()
        proxy.cut()
        await eventually_async(lambda: play.state() == "given up")
        assert isinstance(heard.errors[-1], GivenUp)
        assert len(play.told(ConnectFailed)) == 5
        proxy.accept()
        again = Heard(play.messenger, "row")
        await again.until_ready()
        assert heard.hearing


async def test_reconnect_limit_counts_links_that_hear_nothing(server: Server) -> None:
    """A link whose proof does not come back is a failed attempt like any other."""
    with server.fresh_database() as url:
        with raw(url) as admin:
            admin.execute("alter function pg_catalog.pg_notify(text, text) rename to pg_notify_in_earnest")
            admin.execute("create function pg_catalog.pg_notify(text, text) returns void language sql as 'select'")
        async with messaging(url, network_timeout=0.3, reconnect_limit=2) as play:
            heard = Heard(play.messenger, "swallowed")
            await eventually_async(lambda: play.state() == "given up")
            assert isinstance(heard.errors[-1], GivenUp)
            assert len(play.told(LinkOpened)) == 2
            assert len(play.told(ListenerDeaf)) == 2


async def test_for_ever_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit it is tried again and again, and each failure is told."""
    monkeypatch.setattr(keeper_module, "_LAST_DELAY", 0.01)
    async with messaging(_NOWHERE) as play:
        heard = Heard(play.messenger, "ever")
        await eventually_async(lambda: len(heard.errors) >= 30)
        assert {type(error) for error in heard.errors} == {Unavailable}
