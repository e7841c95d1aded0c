"""When nobody tries any more to hear, and how to begin anew; and requests whose way back was lost meanwhile.

Here live tests of ``GivenUp`` and of replies, over a backend that the test plays. Theory: giving up ends what there is,
each with the reason, and nothing else: whoever wants the same channel next asks the backend again.
"""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import GivenUp, Message
from pgconcert.pubsub.envelope import encode, parse
from pgconcert.testing import eventually_async
from tests.unit.playedmessages import Messages, played

LIMIT = 30.0
OVER = GivenUp("tried 2 times in vain")


async def test_everything_that_listens_ends_and_can_begin_anew() -> None:
    """Also on a channel whose dead subscriber nobody has closed yet."""
    c, port = played("a", "b")
    async with c, c.subscribe("a") as dead:
        listening = await c.listen({"a": print, "b": print})
        entering = asyncio.create_task(c.subscribe("unheard").__aenter__())
        await eventually_async(lambda: "unheard" in port.ears)
        port.failed(OVER)
        with pytest.raises(GivenUp):
            await dead.get(LIMIT)
        with pytest.raises(GivenUp):
            await asyncio.wait_for(listening.wait_closed(), LIMIT)
        with pytest.raises(GivenUp):
            await asyncio.wait_for(entering, LIMIT)
        assert not listening.active
        assert not port.ears
        async with asyncio.timeout(LIMIT), c.subscribe("a") as messages:
            port.arrives("a", b"heard again")
            assert (await messages.get()).text == "heard again"
            await dead.close()
            port.arrives("a", b"and still")
            assert (await messages.get()).text == "and still"
        assert not port.ears
    assert port.asked.count("a") == 2


class Asking:
    """Requests of a coordinator, and the answers to them."""

    def __init__(self, port: Messages) -> None:
        self.port = port

    @property
    def channel(self) -> str:
        """Where replies are expected."""
        (channel,) = self.port.ears
        return channel

    def sent(self) -> int:
        """How many requests were sent."""
        return len(self.port.sent)

    def answer(self, number: int) -> None:
        """Answer a request with its own payload."""
        request = parse(self.port.sent[number][1])
        self.port.arrives(self.channel, encode(request.payload, sender="other", answers=request.id))


async def _text(asked: asyncio.Task[Message]) -> str:
    return (await asyncio.wait_for(asked, LIMIT)).text


async def test_a_request_waits_until_its_reply_can_be_heard() -> None:
    """Also while another is under way whose way back was lost."""
    c, port = played()
    async with c:
        asking = Asking(port)
        first = asyncio.create_task(c.request("x", "first", timeout=60))
        await eventually_async(lambda: port.ears)
        port.hears(asking.channel)
        await eventually_async(lambda: asking.sent() == 1)
        port.deafened()
        second = asyncio.create_task(c.request("x", "second", timeout=60))
        for _ in range(20):
            await asyncio.sleep(0)
        assert asking.sent() == 1
        port.hears(asking.channel)
        await eventually_async(lambda: asking.sent() == 2)
        asking.answer(1)
        asking.answer(0)
        assert [await _text(first), await _text(second)] == ["first", "second"]
        assert not port.ears


async def test_a_request_begins_anew_after_giving_up() -> None:
    """Whoever waits to be heard is told; others that were sent already do not stand in the way of the next."""
    c, port = played()
    async with c:
        asking = Asking(port)
        first = asyncio.create_task(c.request("x", "first", timeout=60))
        await eventually_async(lambda: port.ears)
        port.hears(asking.channel)
        await eventually_async(lambda: asking.sent() == 1)
        port.deafened()
        second = asyncio.create_task(c.request("x", "second", timeout=60))
        for _ in range(20):
            await asyncio.sleep(0)
        port.failed(OVER)
        with pytest.raises(GivenUp):
            await asyncio.wait_for(second, LIMIT)
        assert not port.ears
        third = asyncio.create_task(c.request("x", "third", timeout=60))
        await eventually_async(lambda: port.ears)
        port.hears(asking.channel)
        await eventually_async(lambda: asking.sent() == 2)
        asking.answer(1)
        assert await _text(third) == "third"
        asking.answer(0)
        assert await _text(first) == "first"
        assert not port.ears
