"""What one client gets: replay and live messages joined, gaps told, nothing twice.

Here live tests of `Feed` in a world in memory, with a client that is a list and sources that are lists. Theory: the
hard moments are between the proof of listening and the end of a replay, so sources here publish while they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError
from pgconcert.contrib.starlette import Missed, ServerEvent, TooOld
from pgconcert.contrib.starlette.feed import Feed, number
from pgconcert.testing import eventually_async


class ListClient:
    """Keeps what it gets: texts of events as "id data", gaps as they are."""

    def __init__(self) -> None:
        self.got: list[str | Missed] = []
        self.opened = asyncio.Event()
        self.idles = 0
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def open(self) -> None:
        self.opened.set()

    async def event(self, event: ServerEvent) -> None:
        await self.may_read.wait()
        self.got.append(f"{event.id} {event.data}")

    async def missed(self, missed: Missed) -> None:
        self.got.append(missed)

    async def idle(self) -> None:
        self.idles += 1

    async def reads(self, *expected: str) -> None:
        await eventually_async(lambda: len(self.got) >= len(expected), what=f"{len(expected)} events")
        assert self.got == list(expected)


class ListSource:
    """Events by number; `between` is awaited after each that is read."""

    def __init__(self, *numbers: int, between: Callable[[int], Awaitable[object]] | None = None) -> None:
        self.numbers = [*numbers]
        self.between = between
        self.asked: list[str] = []
        self.closed = 0

    async def since(self, last_id: str) -> AsyncIterator[tuple[str, str]]:
        self.asked.append(last_id)
        try:
            for one in [one for one in self.numbers if one > int(last_id)]:
                yield str(one), f"old {one}"
                if self.between is not None:
                    await self.between(one)
        finally:
            self.closed += 1


def feed_of(c: AsyncCoordinator, *channels: str, **options: Any) -> Feed:
    given: dict[str, Any] = {"encode": None, "replay": None, "order": number, "after": None, "where": None}
    given |= {"capacity": 100, "overflow": "drop_oldest", "keep_alive": 15.0, "timeout": 5.0}
    return Feed(c, channels or ("orders",), **(given | options))


@contextlib.asynccontextmanager
async def fed(c: AsyncCoordinator, client: ListClient, *channels: str, **options: Any) -> AsyncIterator[None]:
    """The client has been let in, and is fed while the block lasts."""
    running = asyncio.create_task(feed_of(c, *channels, **options).run(client))
    try:
        async with asyncio.timeout(30):
            await client.opened.wait()
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_live(unique: str) -> None:
    """Without a replay every message comes, with the id that it has."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client):
        await c.publish("orders", "a", id="7")
        await c.publish("orders", "b")
        await c.publish("orders", "c", id="3")
        await client.reads("7 a", "None b", "3 c")


async def test_replay_then_live(unique: str) -> None:
    """What is published while the replay runs comes after it; what the replay saw as well comes once."""
    async with AsyncCoordinator(f"memory://{unique}") as c:

        async def meanwhile(one: int) -> None:
            if one == 5:
                for other in (5, 6, 7, 8):
                    await c.publish("orders", f"live {other}", id=str(other))

        source, client = ListSource(4, 5, 6, 7, between=meanwhile), ListClient()
        async with fed(c, client, replay=source, after="4"):
            await client.reads("5 old 5", "6 old 6", "7 old 7", "8 live 8")
        assert source.asked == ["4"]
        assert source.closed == 1


async def test_what_the_client_had_from_another_process(unique: str) -> None:
    """Messages up to its last id that come here late are left out, until the first newer one."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, replay=ListSource(), after="9"):
        for one in (8, 9, 10):
            await c.publish("orders", "live", id=str(one))
        await client.reads("10 live")


async def test_a_source_that_commits_in_another_order(unique: str) -> None:
    """A late one is sent, without its id: the client would else ask for what it has."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, replay=ListSource(1, 2), after="1"):
        for one in (2, 4, 3, 5):
            await c.publish("orders", "live", id=str(one))
        await client.reads("2 old 2", "4 live", "None live", "5 live")


async def test_a_late_one_after_the_replay_is_not_lost(unique: str) -> None:
    """The replay gave 6 and not 5, which was not committed yet: it comes live, and must not be left out."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, replay=ListSource(6), after="4"):
        await c.publish("orders", "live", id="5")
        await client.reads("6 old 6", "None live")


@pytest.mark.parametrize("after", ["", "x", "-1", "9223372036854775808", "1" * 5000, "٣"])
async def test_an_id_that_is_none(unique: str, after: str) -> None:
    """The source is not asked, the client is told, and goes on live."""
    source, client = ListSource(1), ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, replay=source, after=after):
        await c.publish("orders", "a", id="7")
        await eventually_async(lambda: len(client.got) == 2)
    assert source.asked == []
    assert isinstance(client.got[0], Missed)
    assert (client.got[0].reason, client.got[0].count, client.got[0].replayed) == ("unknown", None, False)
    assert client.got[1] == "7 a"


async def test_no_replay_for_a_last_id(unique: str) -> None:
    """A client that comes back to a source without replay is told of a gap."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, after="7"):
        await eventually_async(lambda: bool(client.got))
        assert isinstance(client.got[0], Missed)
        assert client.got[0].reason == "unknown"


async def test_too_old(unique: str) -> None:
    """What is not kept any more is a gap, and live messages follow."""

    class Forgetful:
        async def since(self, last_id: str) -> AsyncIterator[tuple[str, str]]:
            raise TooOld
            yield

    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, replay=Forgetful(), after="7"):
        await c.publish("orders", "a", id="8")
        await eventually_async(lambda: len(client.got) == 2)
    assert isinstance(client.got[0], Missed)
    assert (client.got[0].reason, client.got[0].replayed) == ("too old", False)
    assert client.got[1] == "8 a"


async def test_an_id_that_never_was(unique: str) -> None:
    """Ids may begin anew, as after a restore: what comes then is lower than what the client says, and it gets that."""

    class Restored:
        async def since(self, last_id: str) -> AsyncIterator[tuple[str, str]]:
            raise TooOld
            yield

    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, replay=Restored(), after="900"):
        for one in (4, 5, 901):
            await c.publish("orders", "live", id=str(one))
        await eventually_async(lambda: "901 live" in client.got)
    assert client.got[1:] == ["4 live", "5 live", "901 live"]


async def test_a_slow_client_is_told_how_many(unique: str) -> None:
    """Its queue is bounded; what fell out is counted, and another client has everything."""
    slow, quick = ListClient(), ListClient()
    slow.may_read.clear()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, slow, capacity=3), fed(c, quick):
        await c.publish("orders", "0")
        await eventually_async(lambda: len(quick.got) == 1)
        for one in range(1, 11):
            await c.publish("orders", str(one))
        await eventually_async(lambda: len(quick.got) == 11)
        slow.may_read.set()
        await eventually_async(lambda: len(slow.got) == 5)
    gap = slow.got[1]
    assert isinstance(gap, Missed)
    assert (gap.reason, gap.count, gap.channels, gap.replayed) == ("overflow", 7, ("orders",), False)
    assert [one for one in slow.got if one is not gap] == ["None 0", "None 8", "None 9", "None 10"]
    assert quick.got == [f"None {one}" for one in range(11)]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_a_queue_that_overflows_in_a_long_replay(unique: str, overflow: str) -> None:
    """More is published while it runs than is remembered of it: each event comes once all the same."""
    count = 1200
    async with AsyncCoordinator(f"memory://{unique}") as c:

        async def meanwhile(one: int) -> None:
            await c.publish("orders", f"old {one}", id=str(one))

        source, client = ListSource(*range(1, count + 1), between=meanwhile), ListClient()
        async with fed(c, client, replay=source, after="0", capacity=3, overflow=overflow):
            await eventually_async(lambda: f"{count} old {count}" in client.got)
            source.between = None
            await c.publish("orders", "end", id=str(count + 1))
            await eventually_async(lambda: client.got[-1] == f"{count + 1} end")
    events = [one for one in client.got if isinstance(one, str)]
    assert events == [f"{n} old {n}" for n in range(1, count + 1)] + [f"{count + 1} end"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_a_slow_client_of_a_source_that_replays(unique: str, overflow: str) -> None:
    """It is told of the gap, and then gets what fell out, once and in order."""
    source, client = ListSource(), ListClient()
    client.may_read.clear()
    async with (
        AsyncCoordinator(f"memory://{unique}") as c,
        fed(c, client, replay=source, capacity=3, overflow=overflow),
    ):
        for one in range(1, 11):
            source.numbers.append(one)
            await c.publish("orders", f"old {one}", id=str(one))
        client.may_read.set()
        await eventually_async(lambda: "10 old 10" in client.got)
        await c.publish("orders", "end", id="11")
        await eventually_async(lambda: client.got[-1] == "11 end")
    gaps = [one for one in client.got if isinstance(one, Missed)]
    assert gaps
    assert all(gap.replayed and gap.reason == "overflow" for gap in gaps)
    assert [one for one in client.got if isinstance(one, str)] == [f"{n} old {n}" for n in range(1, 11)] + ["11 end"]


async def test_a_message_that_cannot_be_encoded(unique: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is a gap of one for the client, a line in the log, and the stream goes on."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client):
        await c.publish("orders", b"\xff")
        await c.publish("orders", "a")
        await eventually_async(lambda: len(client.got) == 2)
    assert isinstance(client.got[0], Missed)
    assert (client.got[0].reason, client.got[0].count, client.got[0].channels) == ("encode", 1, ("orders",))
    assert client.got[1] == "None a"
    (record,) = [one for one in caplog.records if one.name == "pgconcert.contrib.starlette"]
    assert "'orders' could not be encoded" in record.getMessage()


async def test_own_events(unique: str) -> None:
    """`encode` chooses name, id and data, or leaves a message out; several channels can be told apart."""
    named, chosen = ListClient(), ListClient()
    names: list[str | None] = []

    class Naming(ListClient):
        async def event(self, event: ServerEvent) -> None:
            names.append(event.event)
            await super().event(event)

    named = Naming()

    def encode(message: Any) -> ServerEvent | None:
        return None if message.text == "no" else ServerEvent(message.text.upper(), "x")

    async with (
        AsyncCoordinator(f"memory://{unique}") as c,
        fed(c, named, "orders", "jobs"),
        fed(c, chosen, encode=encode),
    ):
        await c.publish("orders", "no")
        await c.publish("jobs", "yes", id="1")
        await c.publish("orders", "last")
        await named.reads("None no", "1 yes", "None last")
        await chosen.reads("x LAST")
    assert names == ["orders", "jobs", "orders"]


async def test_a_source_that_raises(unique: str) -> None:
    """What it raises ends the feed and comes out; the subscription has ended."""

    class Broken:
        async def since(self, last_id: str) -> AsyncIterator[tuple[str, str]]:
            yield "8", "a"
            raise OSError("no such table")

    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, asyncio.timeout(30):
        with pytest.raises(OSError, match="no such table"):
            await feed_of(c, replay=Broken(), after="7").run(client)
        assert client.got == ["8 a"]
        assert not c._messages().broker._routes


async def test_cancelled_while_a_source_is_read(unique: str) -> None:
    """The client goes in the middle of a replay: the source is closed, at once."""
    stuck = asyncio.Event()

    async def between(one: int) -> None:
        stuck.set()
        await asyncio.Event().wait()

    source, client = ListSource(1, 2, between=between), ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c:
        async with fed(c, client, replay=source, after="0"):
            await stuck.wait()
        assert source.closed == 1
        assert not c._messages().broker._routes


async def test_a_client_that_goes_while_it_is_sent_something(unique: str) -> None:
    """The source is closed before the feed is over, not when somebody collects it."""
    source, client = ListSource(1, 2), ListClient()
    client.may_read.clear()
    async with AsyncCoordinator(f"memory://{unique}") as c:
        async with fed(c, client, replay=source, after="0"):
            await eventually_async(lambda: bool(source.asked))
        assert source.closed == 1


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_and_once_more(unique: str, steps: int) -> None:
    """Wherever it is, and although it is cancelled again while it ends: no subscription is left."""
    async with AsyncCoordinator(f"memory://{unique}") as c:
        running = asyncio.create_task(feed_of(c).run(ListClient()))
        for _ in range(steps):
            await asyncio.sleep(0)
        while not running.done():
            running.cancel()
            await asyncio.sleep(0)
        assert running.cancelled()
        await eventually_async(lambda: not c._messages().broker._routes, what="nothing listens")


async def test_the_coordinator_is_closed(unique: str) -> None:
    """The feed ends without an error."""
    client = ListClient()
    c = AsyncCoordinator(f"memory://{unique}")
    await c.open()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(feed_of(c).run(client))
        await client.opened.wait()
        await c.close()


async def test_silence(unique: str) -> None:
    """Whoever hears nothing for `keep_alive` seconds is told so, again and again."""
    client = ListClient()
    async with AsyncCoordinator(f"memory://{unique}") as c, fed(c, client, keep_alive=0.01):
        await eventually_async(lambda: client.idles >= 3)
    assert client.got == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep_alive": 0}, "keep_alive must be"),
        ({"replay": 7}, "replay must be an object with since"),
        ({"timeout": -1}, "timeout must be"),
        ({"capacity": 0}, "capacity must be"),
        ({"overflow": "never"}, "overflow must be"),
    ],
)
async def test_wrong_arguments(unique: str, wrong: dict[str, Any], words: str) -> None:
    """They are refused when the feed is made, before anything is sent."""
    async with AsyncCoordinator(f"memory://{unique}") as c:
        with pytest.raises(ConfigurationError, match=words):
            feed_of(c, **wrong)
