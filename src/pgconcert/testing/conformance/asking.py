"""Cases of requests: what comes back, from whom, and what ends a request to which nothing comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ... import AsyncCoordinator, BrokerClosed, Message, RequestFailed, RequestTimeout
from ...events import HandlerFailed
from ..leaks import eventually_async
from .reading import seen, texts
from .suite import Stage, case, raises, turns


@case("messages")
async def a_reply_is_what_the_handler_returns(stage: Stage) -> None:
    """Text, bytes, nothing: what a handler returns comes back, and the request reaches it as it was sent."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    requests: list[Message] = []
    replies: list[bytes | str | bytearray | None] = ["text ü", b"\xff\x00", b"", None, bytearray(b"array")]

    def handler(message: Message) -> Any:
        requests.append(message)
        return replies[len(requests) - 1]

    async with b.listen({channel: handler}):
        for expected in ("text ü".encode(), b"\xff\x00", b"", b"", b"array"):
            reply = await a.request(channel, b"\xfe", headers={"trace": "1"})
            assert reply.payload == expected
            assert not reply.own
    for request in requests:
        assert (request.payload, dict(request.headers), request.own) == (b"\xfe", {"trace": "1"}, False)
        assert request.id
        assert request.reply_to
    assert len({request.id for request in requests}) == len(replies)


@case("messages")
async def json_there_and_back(stage: Stage) -> None:
    """A request can be a value in JSON, and so can the reply; one may ask oneself."""
    c = await stage.open()
    channel = stage.channel()

    async def handler(message: Message) -> str:
        await turns(1)
        return f'{{"sum": {sum(message.json())}}}'

    async with c.listen({channel: handler}):
        reply = await c.request(channel, json=[1, 2, 3])
        assert reply.json() == {"sum": 6}
        assert reply.own


@case("messages")
async def what_a_responder_raises_is_told(stage: Stage) -> None:
    """A handler that raises answers with ``RequestFailed``, at once; so does one whose reply cannot be sent."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    failed = seen(b, HandlerFailed)

    def handler(message: Message) -> Any:
        if message.text == "raise":
            raise ValueError("what went wrong")
        if message.text == "cancel":
            raise asyncio.CancelledError
        return 3 if message.text == "number" else "good"

    async with b.listen({channel: handler}):
        with raises(RequestFailed, "ValueError", "what went wrong"):
            await a.request(channel, "raise", timeout=20)
        with raises(RequestFailed, "CancelledError"):
            await a.request(channel, "cancel", timeout=20)
        with raises(RequestFailed, "reply could not be sent", "int"):
            await a.request(channel, "number", timeout=20)
        assert (await a.request(channel, "x")).text == "good"
    assert [type(event.error) for event in failed] == [ValueError, asyncio.CancelledError]


@case("messages")
async def with_nobody_there_it_ends_in_time(stage: Stage) -> None:
    """When nobody answers, ``RequestTimeout`` ends the request: nobody listens, or only who does not answer."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    with raises(RequestTimeout, channel, "within 0.05 s"):
        await a.request(channel, timeout=0.05)
    async with a.subscribe(channel), b.subscribe(channel) as messages:
        await a.publish(channel, "the connections are there")
        with raises(TimeoutError):
            await a.request(channel, "unanswered", timeout=1)
        assert await texts(messages, 2) == ["the connections are there", "unanswered"]


@case("messages")
async def of_three_the_first_counts(stage: Stage) -> None:
    """Three that answer all handle the request; the first answer is the reply, and the others disturb nobody, not even
    the next request."""
    a = await stage.open()
    channel = stage.channel()
    handled: list[int] = []
    go_on = [asyncio.Event() for _ in range(3)]

    def responder(number: int) -> Callable[[Message], Awaitable[str]]:
        async def handler(message: Message) -> str:
            await go_on[number].wait()
            handled.append(number)
            return f"{number} of {message.text}"

        return handler

    others = [await stage.open() for _ in range(3)]
    listenings = [await c.listen({channel: responder(number)}) for number, c in enumerate(others)]
    first = await stage.waiting(a.request(channel, "first", timeout=25))
    go_on[1].set()
    assert (await first).text == "1 of first"
    second = asyncio.create_task(a.request(channel, "second", timeout=25))
    go_on[0].set()
    go_on[2].set()
    assert (await second).text.endswith(" of second")
    await eventually_async(lambda: len(handled) >= 6, 20, what="three have handled both")
    for listening in listenings:
        await listening.close()
    assert sorted(handled) == [0, 0, 1, 1, 2, 2]


@case("messages")
async def an_error_may_be_the_first_answer(stage: Stage) -> None:
    """When the first answer is an error it ends the request, whatever others would say later."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    go_on = asyncio.Event()

    async def slow(message: Message) -> str:
        await go_on.wait()
        return "late"

    def raising(message: Message) -> str:
        raise ValueError("early")

    async with b.listen({channel: slow}), c.listen({channel: raising}):
        with raises(RequestFailed, "early"):
            await a.request(channel, timeout=25)
        go_on.set()


@case("messages", "payloads")
async def replies_may_be_large(stage: Stage) -> None:
    """Requests and replies too large for a notification come whole."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.listen({channel: lambda message: message.payload * 2}):
        payload = bytes(range(256)) * 1000
        assert (await a.request(channel, payload, timeout=25)).payload == payload * 2


@case("messages")
async def two_hundred_requests_leave_nothing(stage: Stage) -> None:
    """Requests one by one, and many at once, each with its own reply; nothing is left of them."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()

    async def ask(c: AsyncCoordinator, number: int) -> None:
        reply = await c.request(channel, str(number), timeout=25)
        assert reply.text == f"reply to {number}"

    async with b.listen({channel: lambda message: f"reply to {message.text}"}, concurrency=5):
        await asyncio.gather(ask(a, 0), ask(b, 0))
        await stage.settle()
        tasks = {*asyncio.all_tasks()}
        for number in range(50):
            await ask(a, number)
        await asyncio.gather(*(ask((a, b)[number % 2], number) for number in range(150)))
        await eventually_async(lambda: {*asyncio.all_tasks()} <= tasks, 20, what="no request has left a task behind")


@case("messages")
async def a_cancelled_request_leaves_at_once(stage: Stage) -> None:
    """Who is cancelled while it waits for a reply leaves; the late reply goes nowhere, and the next request works."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    go_on = asyncio.Event()

    async def handler(message: Message) -> str:
        if message.text == "slow":
            await go_on.wait()
        return message.text

    async with b.listen({channel: handler}, concurrency=2):
        asking = await stage.waiting(a.request(channel, "slow", timeout=25))
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert (await a.request(channel, "quick")).text == "quick"
        go_on.set()
        assert (await a.request(channel, "again")).text == "again"


@case("messages")
async def the_end_of_the_coordinator_ends_requests(stage: Stage) -> None:
    """Who waits for a reply when the coordinator is closed gets ``BrokerClosed``."""
    a = await stage.open()
    channel = stage.channel()
    async with a.subscribe(channel):
        asking = await stage.waiting(a.request(channel, timeout=25))
        await a.close()
        with raises(BrokerClosed):
            await asking
