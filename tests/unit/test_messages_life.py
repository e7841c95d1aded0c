"""The life of what receives messages: on its event loop, across a fork, dropped, closed while it opens or drains.

Here live tests of subscriptions, handlers and coordinators that end, over the memory backend, or over one that the
test plays; ``GivenUp`` and requests stand in ``test_messages_given_up.py``. Theory: whatever the order of opening and
ending, nobody waits for ever, what was listened to is given back, and handlers are called while they are open only.
"""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, BrokerClosed, ListenerOverflow, Message, Unavailable
from pgconcert.errors import CoordinatorClosed
from pgconcert.events import Event, HandlerFailed, HookFailed
from pgconcert.pubsub import pings
from pgconcert.testing import eventually_async
from tests.unit.memoryworld import Story
from tests.unit.playedmessages import played

LIMIT = 30.0
ELSEWHERE = "another event loop"


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


@pytest.fixture
def loops() -> Iterator[tuple[asyncio.Runner, asyncio.Runner]]:
    """Two event loops of this thread, which run in turn."""
    with asyncio.Runner() as one, asyncio.Runner() as other:
        yield one, other


async def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    return await asyncio.wait_for(work, LIMIT)


# another event loop, another process


def test_used_on_another_event_loop(world: str, loops: tuple[asyncio.Runner, asyncio.Runner]) -> None:
    """Refused, and without harm: at home everything goes on."""
    home, abroad = loops
    c = AsyncCoordinator(world)
    handled: list[str] = []

    async def made() -> tuple[Any, ...]:
        await c.open()
        listening = await c.listen({"a": lambda message: handled.append(message.text)})
        return await c.subscribe("a").__aenter__(), c.subscribe("a"), listening, c.listen({"a": print})

    messages, more, listening, others = home.run(made())
    ways: list[Callable[[], Coroutine[Any, Any, object]]] = [
        more.__aenter__, messages.get, messages.__anext__, messages.close,
        others.open, listening.close, c.close,
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(RuntimeError, match=ELSEWHERE):
            abroad.run(bounded(way()))

    async def at_home() -> None:
        await c.publish("a", "still here")
        assert (await messages.get(LIMIT)).text == "still here"
        await eventually_async(lambda: handled == ["still here"])
        await messages.close()
        await listening.close()
        await c.close()

    home.run(bounded(at_home()))


@pytest.mark.parametrize("delivery", ["all", "one-process"])
async def test_in_a_forked_child_closing_is_forgetting(world: str, delivery: Any) -> None:
    """It waits for nothing of the parent's, and the parent goes on hearing."""
    async with AsyncCoordinator(world) as c:
        messages = await c.subscribe("a", delivery=delivery).__aenter__()
        listening = await c.listen({"b": print}).open()
        await eventually_async(lambda: messages.active)
        if (child := os.fork()) == 0:
            code = 1
            try:
                asyncio.events._set_running_loop(None)
                loop = asyncio.new_event_loop()
                loop.run_until_complete(bounded(messages.close()))
                loop.run_until_complete(bounded(listening.close()))
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        await c.publish("a", "for the parent")
        assert (await messages.get(LIMIT)).text == "for the parent"
        assert listening.active
        await messages.close()
        await listening.close()


# dropped


async def test_a_dropped_subscription_is_left() -> None:
    """It says so, and nothing is listened to for it any more."""
    c, port = played("a")
    async with c:
        messages = await c.subscribe("a").__aenter__()
        with pytest.warns(ResourceWarning, match="'a' open, 0 queued> was dropped without close"):
            del messages
        await eventually_async(lambda: not port.ears)


async def test_a_subscription_may_be_dropped_after_its_coordinator(world: str) -> None:
    """There is nothing left to be given back, so nothing is said."""
    c = AsyncCoordinator(world)
    await c.open()
    messages = await c.subscribe("a").__aenter__()
    await c.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del messages
        gc.collect()
    assert caught == []


@pytest.mark.parametrize("headers", [None, {"name": "value"}])
async def test_a_publish_that_is_cancelled_when_it_has_failed_already(headers: dict[str, str] | None) -> None:
    """Its failure is nobody's business any more: the loop does not complain of an exception that was never read."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))
    c, port = played()
    port.refusal = Unavailable("there is no connection")
    async with c:
        sending = asyncio.create_task(c.publish("a", "x", headers=headers))
        await asyncio.sleep(0)
        assert not sending.done()
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        del sending
        gc.collect()
    assert complaints == []


# the end of handlers


async def test_handlers_that_are_too_slow_end() -> None:
    """With ``overflow="error"`` it is all over, and whoever waits for the end learns why."""
    c, port = played("a", "b")
    async with c:
        go = asyncio.Event()

        async def handler(message: Message) -> None:
            await go.wait()

        listening = await c.listen({"a": handler, "b": handler}, capacity=1, overflow="error")
        for _ in range(4):
            port.arrives("a", b"x")
            await asyncio.sleep(0)
        go.set()
        with pytest.raises(ListenerOverflow):
            await bounded(listening.wait_closed())
        assert not listening.active
        assert not port.ears


async def test_handlers_that_end_while_others_open() -> None:
    """``open`` raises what has ended one of the channels, instead of being open with a dead one."""
    c, port = played("a")
    async with c:
        handled: list[Message] = []
        listening = c.listen({"a": handled.append, "b": handled.append}, capacity=1, overflow="error")
        opening = asyncio.create_task(listening.open())
        await eventually_async(lambda: "b" in port.ears)
        for _ in range(3):
            port.arrives("a", b"x")
        await eventually_async(lambda: handled)
        port.hears("b")
        with pytest.raises(ListenerOverflow):
            _ = await asyncio.wait_for(opening, LIMIT)
        with pytest.raises(ListenerOverflow):
            await bounded(listening.wait_closed())
        assert not port.ears


async def test_closed_while_it_opens_no_handler_is_called_any_more() -> None:
    """When ``close`` has returned, that is true for channels that are heard already, too; and the opening ends."""
    c, port = played("a")
    async with c:
        handled: list[Message] = []
        listening = c.listen({"a": handled.append, "b": handled.append})
        opening = asyncio.create_task(listening.open())
        await eventually_async(lambda: "b" in port.ears)
        await bounded(listening.close())
        port.arrives("a", b"late")
        with pytest.raises(BrokerClosed):
            _ = await asyncio.wait_for(opening, LIMIT)
        assert handled == []
        assert not port.ears


async def test_a_coordinator_waits_for_handlers_that_are_closing_already(world: str) -> None:
    """And what they do through it meanwhile, publishing and locking, works."""
    async with AsyncCoordinator(world) as other, other.subscribe("results") as results:
        c = AsyncCoordinator(world)
        await c.open()
        failed = Story(c, HandlerFailed)
        begun, go = asyncio.Event(), asyncio.Event()

        async def handler(message: Message) -> None:
            begun.set()
            await go.wait()
            async with c.lock("k"):
                await c.publish("results", message.text)

        listening = await c.listen({"a": handler})
        await other.publish("a", "work")
        await asyncio.wait_for(begun.wait(), LIMIT)
        draining = asyncio.create_task(listening.close())
        await asyncio.sleep(0)
        closing = asyncio.create_task(c.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(BrokerClosed):
            await c.subscribe("a").__aenter__()
        go.set()
        await asyncio.wait_for(closing, LIMIT)
        await asyncio.wait_for(draining, LIMIT)
        assert failed.events == []
        assert (await results.get(LIMIT)).text == "work"


# entries at the end


@pytest.mark.parametrize("ender", ["the subscription", "the coordinator"])
@pytest.mark.parametrize("turns", range(8))
async def test_a_one_process_entry_ends_whenever_it_is_closed(world: str, turns: int, ender: str) -> None:
    """In whatever turn of the loop that comes: it is entered by then, or told that it is closed."""
    async with AsyncCoordinator(world) as c, c.subscribe("a"):
        messages = c.subscribe("a", delivery="one-process")
        entering = asyncio.create_task(messages.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        await bounded(messages.close() if ender == "the subscription" else c.close())
        try:
            await asyncio.wait_for(entering, LIMIT)
        except BrokerClosed:
            pass
        else:
            await messages.close()
        assert not messages.active


@pytest.mark.parametrize("kind", [BrokerClosed, CoordinatorClosed])
async def test_who_enters_after_the_end_is_told(kind: type[Exception]) -> None:
    """A backend that says within the call that nobody will hear any more: nobody waits for it."""
    c, port = played()
    port.refuses_to_listen = kind("it is over")
    async with c:
        for way in (c.subscribe("a").__aenter__, c.listen({"b": print}).open, lambda: c.request("c", timeout=60)):
            with pytest.raises(kind, match="it is over"):
                await bounded(way())
        assert not port.ears


# reconnect hooks


class Odd(BaseException):
    """Something that is no ``Exception``, and no wish to end the program."""


async def test_a_hook_is_called_again_whatever_it_raised(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pings, "_FIRST_PAUSE", 0.0)
    async with AsyncCoordinator(world) as c:
        failed: list[Event] = []
        c.events.subscribe(failed.append, HookFailed)
        errors: list[BaseException] = [Odd("once"), asyncio.CancelledError(), ValueError("twice")]
        left, done = [*errors], asyncio.Event()

        def hook(reconnected: object) -> None:
            if left:
                raise left.pop(0)
            done.set()

        c.on_reconnect(hook)
        async with c.subscribe("a"):
            await asyncio.wait_for(done.wait(), LIMIT)
        assert [event.error for event in failed if isinstance(event, HookFailed)] == errors
