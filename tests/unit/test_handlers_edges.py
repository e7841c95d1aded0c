"""Handlers, filters and hooks at the edges: closed while they open, and errors and arguments of an unusual kind.

Here live what is contained, what is refused, and what closing waits for. Over the memory backend.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, BrokerClosed, ConfigurationError, Gap, Message
from pgconcert.events import EventStream, HandlerFailed
from pgconcert.pubsub import broker, pings
from pgconcert.pubsub.delivery import Filtered
from pgconcert.pubsub.overflow import Inbox
from pgconcert.testing import eventually_async
from tests.unit.ears import complaints, turns
from tests.unit.ends import LIMIT, outcome
from tests.unit.memoryworld import Story, handles


class Odd(BaseException):
    """An error of somebody's own that is no ``Exception``, as those of some frameworks are."""


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


# closing


async def test_handlers_that_are_closed_while_they_open_stay_closed(world: str) -> None:
    """Closing does not wait for the proof, opening ends with it, and no handler is called, not even of a channel that
    was heard already."""
    async with AsyncCoordinator(world) as c, c.subscribe("heard"):
        heard: list[Message] = []
        cut = handles(c).partition()
        await turns()
        listening = c.listen({"heard": heard.append, "b": heard.append})
        opening = asyncio.create_task(listening.open())
        await turns()
        assert not opening.done()
        assert await outcome(listening.close()) is None
        assert isinstance(await outcome(opening), BrokerClosed)
        assert await outcome(listening.wait_closed()) is None
        cut.heal()
        async with c.subscribe("heard", "b") as witness:
            await c.publish_many([("heard", "1"), ("b", "2")])
            for _ in range(2):
                await witness.get(LIMIT)
            await turns()
        assert heard == []


async def test_what_opens_while_the_coordinator_closes_is_closed_too(world: str) -> None:
    """Handlers whose opening was under way end like all others, and new ones are refused; a second ``close`` waits for
    the first."""
    go_on = asyncio.Event()
    began = asyncio.Event()

    async def slow(message: Message) -> None:
        began.set()
        await go_on.wait()

    c = AsyncCoordinator(world)
    await c.open()
    listening = await c.listen({"a": slow})
    await c.publish("a", "x")
    await began.wait()
    cut = handles(c).partition()
    await turns()
    late = c.listen({"b": print})
    opening = asyncio.create_task(late.open())
    await turns()
    closing = [asyncio.create_task(c.close()) for _ in range(2)]
    await turns()
    assert isinstance(await outcome(c.subscribe("c").__aenter__()), BrokerClosed)
    cut.heal()
    assert await outcome(opening) is None
    assert not any(task.done() for task in closing)
    go_on.set()
    assert [await outcome(task) for task in closing] == [None, None]
    for each in (listening, late):
        assert await outcome(each.wait_closed()) is None


async def test_the_end_waits_for_replies(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler whose return was waited for has its reply sent, if it takes more than a turn too."""
    monkeypatch.setattr(broker, "_FAREWELL", LIMIT)
    async with AsyncCoordinator(world) as asking:
        answering = AsyncCoordinator(world)
        await answering.open()
        began, go_on = asyncio.Event(), asyncio.Event()
        cuts: list[Any] = []

        async def handler(message: Message) -> bytes:
            began.set()
            await go_on.wait()
            cuts.append(handles(answering).partition())
            return b"x" * 9000  # kept on the server first, which does not answer yet

        listening = await answering.listen({"a": handler})
        request = asyncio.create_task(asking.request("a", timeout=LIMIT))
        await began.wait()
        closing = asyncio.create_task(answering.close())
        await turns()
        go_on.set()
        await listening.wait_closed()
        await turns(10)
        cuts[0].heal()
        assert await outcome(closing) is None
        assert len((await request).payload) == 9000


# what is raised


async def test_errors_of_ones_own_kind_in_handlers_are_contained(world: str) -> None:
    """One that is no ``Exception`` too: it is told, and the next message is handled."""
    async with AsyncCoordinator(world) as c:
        story = Story(c, HandlerFailed)
        heard: list[str] = []

        def handler(message: Message) -> None:
            heard.append(message.text)
            if message.text == "1":
                raise Odd("handler")

        with complaints() as seen:
            async with c.listen({"a": handler}):
                for text in ("0", "1", "2"):
                    await c.publish("a", text)
                await eventually_async(lambda: len(heard) == 3)
            gc.collect()
        assert (heard, seen) == (["0", "1", "2"], [])
        assert [type(event.error) for event in story.events if isinstance(event, HandlerFailed)] == [Odd]


@pytest.mark.parametrize("fan", [False, True])
async def test_errors_of_ones_own_kind_in_filters_harm_nobody_else(world: str, fan: bool) -> None:
    """The subscriber whose filter raises misses that message and is told; the others get it."""

    def where(item: Any) -> bool:
        if (item if fan else item.text) == "1":
            raise Odd("filter")
        return True

    async with AsyncCoordinator(world) as c:
        make: Callable[..., Any] = (
            c.fanout("a", str).subscribe if fan else lambda **options: c.subscribe("a", **options)
        )
        async with make(where=where, gaps="yield") as bad, make(gaps="yield") as good:
            await c.publish_many([("a", text) for text in ("0", "1", "2")])
            shown = [[await each.get(LIMIT) for _ in range(3)] for each in (good, bad)]
        texts = [[item.text if isinstance(item, Message) else item for item in items] for items in shown]
        assert texts[0] == ["0", "1", "2"]
        gap = texts[1][1]
        assert isinstance(gap, Gap)
        assert (gap.reason, gap.count, texts[1][::2]) == ("filter", 1, ["0", "2"])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_in_a_filter_goes_on_and_leaves_a_gap(kind: type[BaseException]) -> None:
    events = EventStream()
    inbox = Inbox[Message](("a",), events, 10, "error", "yield")

    def where(message: Message) -> bool:
        raise kind

    with pytest.raises(kind):
        Filtered(inbox, events, where, False).put(Message("a", b"x", 1, False, 0.0))
    gap = inbox.take()
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.count) == ("filter", 1)


async def test_a_hook_that_stops_itself_runs_to_its_end(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not cancelled in its middle, and called no more, even if it raises at the end."""
    monkeypatch.setattr(pings, "_FIRST_PAUSE", 0.0)
    async with AsyncCoordinator(world) as c:
        steps: list[str] = []

        async def hook(told: object) -> None:
            steps.append("called")
            stop()
            await turns()
            steps.append("ended")
            handles(c).lose_connection()
            raise ValueError("after all")

        stop = c.on_reconnect(hook)
        async with c.subscribe("a", gaps="yield") as messages:
            await eventually_async(lambda: "ended" in steps)
            assert isinstance(await messages.get(LIMIT), Gap)
            await turns()
        assert steps == ["called", "ended"]


# what is refused


async def test_a_filter_cannot_be_a_coroutine(world: str) -> None:
    """What it returns would be true of every message."""

    async def where(message: object) -> bool:
        return False

    async with AsyncCoordinator(world) as c:
        for subscribe in (lambda: c.subscribe("a", where=where), lambda: c.fanout("a", str).subscribe(where=where)):
            with pytest.raises(ConfigurationError, match="where must be a plain function"):
                _ = subscribe()


@pytest.mark.parametrize("handlers", [[("a", print)], "a", 1, {"a"}])
async def test_handlers_are_a_mapping(world: str, handlers: Any) -> None:
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="takes a mapping"):
            _ = c.listen(handlers)


@pytest.mark.parametrize("wrong", ["abc", b"abc", [("a",)], [("a", "b", "c")], ["ab"], [1], None, 1])
async def test_many_messages_are_pairs(world: str, wrong: Any) -> None:
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="takes pairs of channel and payload"):
            await c.publish_many(wrong)


@pytest.mark.parametrize("headers", [[], (), "", 0, [("a", "b")], "ab"])
async def test_headers_are_a_mapping(world: str, headers: Any) -> None:
    """Something empty that is none is refused as well."""
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="headers are a mapping of texts"):
            await c.publish("a", headers=headers)
