"""Cases of the end of handlers: closed by their owner, by themselves, in time or not, with their coordinator."""

from __future__ import annotations

import asyncio
from typing import Any

from ... import BrokerClosed, ConfigurationError, Message
from ...events import HandlersAbandoned
from ..leaks import eventually_async
from .reading import Heard, seen, texts
from .suite import Stage, case, raises


async def _never(message: Message) -> None:
    await asyncio.Event().wait()


@case("messages")
async def listening_can_be_awaited(stage: Stage) -> None:
    """``await c.listen(…)`` returns when listening is proven, and ``close`` ends it; it is opened once."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    heard = Heard()
    listening = await b.listen({channel: heard})
    await a.publish(channel, "1")
    await heard.until("1")
    with raises(RuntimeError, "once"):
        _ = await listening.open()
    waiter = await stage.waiting(listening.wait_closed())
    await listening.close()
    await waiter
    await listening.close()
    await listening.wait_closed()
    async with b.subscribe(channel) as witness:
        await a.publish(channel, "2")
        await witness.get()
        await stage.settle()
    assert heard.texts == ["1"], "a handler was called after the close"


@case("messages")
async def one_that_was_never_opened_can_be_closed(stage: Stage) -> None:
    """Closing what was never opened is no error, and neither is waiting for its end."""
    c = await stage.open()
    listening = c.listen({stage.channel(): print})
    await listening.close()
    await listening.wait_closed()


@case("messages")
async def closing_handles_what_is_queued(stage: Stage) -> None:
    """``close`` waits until what came before it is handled, and nothing that comes after it is."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    heard = Heard()
    go_on = asyncio.Event()

    async def handler(message: Message) -> None:
        await go_on.wait()
        heard(message)

    listening = await b.listen({channel: handler})
    async with b.subscribe(channel) as witness:
        await a.publish_many([(channel, str(number)) for number in range(20)])
        for _ in range(20):
            await witness.get()
        closing = await stage.waiting(listening.close())
        await a.publish(channel, "late")
        await witness.get()
        go_on.set()
        await closing
        await stage.settle()
    assert heard.texts == [*map(str, range(20))]


@case("messages")
async def closing_is_bounded(stage: Stage) -> None:
    """A handler that does not come back is cancelled when the time is over, and ``HandlersAbandoned`` tells how many
    messages were not handled."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    abandoned = seen(b, HandlersAbandoned)
    began: list[str] = []
    cancelled: list[str] = []

    async def handler(message: Message) -> None:
        began.append(message.text)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(message.text)
            raise

    listening = await b.listen({channel: handler})
    async with b.subscribe(channel) as witness:
        await a.publish_many([(channel, str(number)) for number in range(5)])
        for _ in range(5):
            await witness.get()
        await eventually_async(lambda: bool(began), 20, what="the first message is being handled")
        await listening.close(timeout=0.01)
        await listening.wait_closed()
    assert (began, cancelled) == (["0"], ["0"])
    (event,) = abandoned
    assert (event.channel, event.running, event.queued) == (channel, 1, 4)


@case("messages")
async def a_handler_may_close_its_own_listening(stage: Stage) -> None:
    """A handler that closes the listening it belongs to does not wait for itself, and is the last that is called."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    abandoned = seen(b, HandlersAbandoned)
    heard = Heard()

    async def handler(message: Message) -> None:
        await listening.close()
        heard(message)

    async with b.subscribe(channel) as witness:
        listening = await b.listen({channel: handler})
        await a.publish(channel, "1")
        await listening.wait_closed()
        await a.publish(channel, "2")
        assert await texts(witness, 2) == ["1", "2"]
        await stage.settle()
    assert heard.texts == ["1"]
    assert not abandoned


@case("messages")
async def the_coordinators_end_is_the_end_of_handlers(stage: Stage) -> None:
    """Closing the coordinator handles what is queued, within ``close_timeout``, and then no handler is called."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    heard = Heard()
    listening = await b.listen({channel: heard.slowly})
    stuck = await b.listen({channel: _never}, close_timeout=0.01)
    async with b.subscribe(channel) as witness:
        await a.publish_many([(channel, str(number)) for number in range(20)])
        for _ in range(20):
            await witness.get()
        await b.close()
    await listening.wait_closed()
    await stuck.wait_closed()
    await listening.close()
    assert heard.texts == [*map(str, range(20))]
    with raises(BrokerClosed):
        _ = b.listen({channel: heard})


@case("messages")
async def leaving_while_it_is_opened_leaves_nothing(stage: Stage) -> None:
    """Cancelled while it is opened, a listening leaves no handler behind; wrong settings are refused."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    heard = Heard()
    opening = asyncio.ensure_future(b.listen({channel: heard}).open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    if not opening.cancelled():
        await opening.result().close()
    async with b.subscribe(channel) as witness:
        await a.publish(channel, "x")
        await witness.get()
        await stage.settle()
    assert not heard.texts
    wrong: list[dict[str, Any]] = [{"concurrency": 0}, {"catch_all": 1}, {"on_gap": 1}, {"close_timeout": -1}]
    for options in wrong:
        with raises(ConfigurationError):
            _ = b.listen({channel: heard}, **options)
    nothing: list[dict[str, Any]] = [{}, {channel: None}]
    for handlers in nothing:
        with raises(ConfigurationError):
            _ = b.listen(handlers)
