"""Publishing on a real server: every message has a fate, and its own.

Here live tests of `postgres/messages.py` alone. Theory: the listener of the tests is another connection, so that what
is counted is what the server delivered.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from pgconcert.errors import PgconcertError, PublishUncertain, StatementFailed, Unavailable
from pgconcert.postgres.messages import Publisher
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.scenes import QUIET, Ear, ask, context, link_to
from tests.servers import Server


@asynccontextmanager
async def publishing(url: str) -> AsyncGenerator[Publisher]:
    """A publisher that ends with the block."""
    publisher = Publisher(context(url, network_timeout=QUIET))
    try:
        yield publisher
    finally:
        await publisher.close()


@asynccontextmanager
async def hearing(url: str, channel: str) -> AsyncGenerator[Ear]:
    """Everything that arrives on a channel."""
    link, ear = await link_to(url)
    await ask(link, f"listen {channel}")
    yield ear
    link.close()


def publish(publisher: Publisher, channel: str, payload: str) -> asyncio.Future[bool]:
    """Hand in a message; the future is its fate."""
    fate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    publisher.publish(channel.encode(), payload.encode(), fate)
    return fate


async def test_equal_messages_all_arrive(database: str) -> None:
    """100 tasks that publish the same 100 texts deliver 10,000 messages: none is merged with its equal."""
    async with publishing(database) as publisher, hearing(database, "equal") as ear:

        async def talk() -> None:
            for n in range(100):
                await publish(publisher, "equal", f"text {n}")

        await asyncio.gather(*(talk() for _ in range(100)))
        await eventually_async(lambda: len(ear.notifications) == 10_000)
        assert Counter(note.payload for note in ear.notifications) == {b"text %d" % n: 100 for n in range(100)}


async def test_order_of_one_sender(database: str) -> None:
    """Messages handed in one after another arrive in that order, equal ones among them."""
    async with publishing(database) as publisher, hearing(database, "ordered") as ear:
        sent = [f"{n % 7}/{n // 20}" for n in range(1000)]
        await asyncio.gather(*(publish(publisher, "ordered", text) for text in sent))
        await eventually_async(lambda: len(ear.notifications) == 1000)
        assert [note.payload.decode() for note in ear.notifications] == sent


async def test_different_messages_share_statements(database: str) -> None:
    """A thousand different messages at once cost a handful of statements."""
    async with publishing(database) as publisher, hearing(database, "many") as ear:
        await publish(publisher, "many", "first")
        before = publisher.keeper.health().statements
        await asyncio.gather(*(publish(publisher, "many", str(n)) for n in range(1000)))
        assert publisher.keeper.health().statements - before <= 4
        await eventually_async(lambda: len(ear.notifications) == 1001)


async def test_one_bad_message_fails_alone(database: str) -> None:
    """A message the server refuses gets the error; its neighbours in the same statement are delivered once."""
    async with publishing(database) as publisher, hearing(database, "mixed") as ear:
        await publish(publisher, "mixed", "warm")
        fates = [publish(publisher, "mixed", "z" * 8000 if n == 50 else str(n)) for n in range(100)]
        outcomes = await asyncio.gather(*fates, return_exceptions=True)
        (bad,) = [outcome for outcome in outcomes if isinstance(outcome, StatementFailed)]
        assert bad.sqlstate == "22023"
        assert outcomes == [True] * 50 + [bad] + [True] * 49
        await eventually_async(lambda: len(ear.notifications) == 100)
        wanted = ["warm", *(str(n) for n in range(100) if n != 50)]
        assert [note.payload.decode() for note in ear.notifications] == wanted


async def test_odd_texts(database: str) -> None:
    """Quotes, backslashes, braces, commas, emptiness and the null word arrive as they were given."""
    texts = ['"', "\\", "{a,b}", "", "NULL", "a\nb\tc", "üñ€😀", "'", '\\"', " "]
    async with publishing(database) as publisher, hearing(database, "odd") as ear:
        await publish(publisher, "odd", "warm")
        await asyncio.gather(*(publish(publisher, "odd", text) for text in texts))
        await eventually_async(lambda: len(ear.notifications) == len(texts) + 1)
        assert [note.payload.decode() for note in ear.notifications] == ["warm", *texts]


@pytest.mark.parametrize("server_did_it", [True, False])
async def test_uncertain_after_a_cut(proxy: FaultProxy, server: Server, database: str, server_did_it: bool) -> None:
    """A link cut between sending and answer leaves the sent message uncertain, and those never sent certain: whether
    the server did it or not, nothing is sent twice."""
    async with publishing(proxy.url(server.over_tcp(database))) as publisher, hearing(database, "cut") as ear:
        await publish(publisher, "cut", "before")
        proxy.pause("to_client" if server_did_it else "to_server")
        sent = publish(publisher, "cut", "sent")
        waiting = [publish(publisher, "cut", f"waiting {n}") for n in range(3)]
        if server_did_it:
            await eventually_async(lambda: len(ear.notifications) == 2)
        proxy.cut()
        proxy.resume()
        with pytest.raises(PublishUncertain):
            await sent
        for fate in waiting:
            with pytest.raises(Unavailable, match="was not sent"):
                await fate
        await _publish_when_up(publisher, "after")
        await eventually_async(lambda: ear.notifications and ear.notifications[-1].payload == b"after")
        heard = [note.payload.decode() for note in ear.notifications]
        assert heard == ["before", *(["sent"] if server_did_it else []), "after"]


async def test_killed_while_idle(server: Server, database: str) -> None:
    """A link that died while nothing was under way is replaced, and the next message goes out."""
    async with publishing(database) as publisher, hearing(database, "idle") as ear:
        await publish(publisher, "idle", "one")
        link = publisher.keeper.link
        assert link is not None
        server.kill_backend(link.pid)
        await eventually_async(lambda: link.dead)
        await publish(publisher, "idle", "two")
        await eventually_async(lambda: [note.payload for note in ear.notifications] == [b"one", b"two"])


async def test_no_server() -> None:
    """Without a server the fate is known soon: not sent, with the address and without the secret."""
    async with publishing("postgresql://ann:hunter2@127.0.0.1:1/app") as publisher:
        fates = [publish(publisher, "x", str(n)) for n in range(3)]
        for fate in fates:
            with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as failed:
                await fate
            assert "hunter2" not in str(failed.value)


async def test_close_sends_what_was_handed_in(database: str) -> None:
    """Closing first sends what waits for its turn."""
    async with hearing(database, "closing") as ear:
        publisher = Publisher(context(database, network_timeout=QUIET))
        await publish(publisher, "closing", "first")
        fates = [publish(publisher, "closing", str(n)) for n in range(100)]
        await publisher.close()
        assert await asyncio.gather(*fates) == [True] * 100
        await eventually_async(lambda: len(ear.notifications) == 101)


async def _publish_when_up(publisher: Publisher, payload: str) -> None:
    async def published() -> bool:
        try:
            await publish(publisher, "cut", payload)
        except PublishUncertain:
            raise
        except PgconcertError:
            return False
        return True

    await eventually_async(published)
