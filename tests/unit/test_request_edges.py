"""Requests and publishing that somebody leaves: at the end of the coordinator, cancelled, or with nobody connecting.

Here live what they raise then, and that what nobody waits for any more is nobody's error.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, BrokerClosed, CoordinatorClosed, Message, PublishUncertain, RequestFailed
from pgconcert.errors import GivenUp
from pgconcert.events import EventStream
from pgconcert.keys import KeySpace
from pgconcert.messenger import Answer, Ear
from pgconcert.pubsub.broker import NOTHING, Broker
from pgconcert.pubsub.envelope import encode, parse
from pgconcert.pubsub.requests import Requests
from tests.unit.ears import complaints, turns
from tests.unit.ends import LIMIT, outcome
from tests.unit.memoryworld import handles


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


async def test_a_cancelled_publish_many_complains_to_nobody(world: str) -> None:
    """What becomes of its messages later is nobody's error."""
    with complaints() as seen:
        async with AsyncCoordinator(world) as c:
            handles(c).partition()
            await turns()
            sending = asyncio.create_task(c.publish_many([("a", "1"), ("a", "2")]))
            await turns()
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            handles(c).lose_connection()
            await turns()
        del sending
        gc.collect()
    assert seen == []


@pytest.mark.parametrize("heard", [False, True])
async def test_requests_that_end_with_the_coordinator_complain_to_nobody(world: str, heard: bool) -> None:
    """Whether they wait for hearing, for the reply, or for the server, which may have the request."""
    with complaints() as seen:
        c = AsyncCoordinator(world)
        await c.open()
        requests: list[asyncio.Task[Message]] = []
        if heard:
            async with c.subscribe("a") as messages:
                requests.append(asyncio.create_task(c.request("a", timeout=LIMIT)))
                await messages.get(LIMIT)
        handles(c).partition()
        await turns()
        requests.append(asyncio.create_task(c.request("a", timeout=LIMIT)))
        await turns()
        assert not any(request.done() for request in requests)
        await c.close()
        ends = [type(await outcome(request)) for request in requests]
        assert ends == ([BrokerClosed, PublishUncertain] if heard else [BrokerClosed])
        del requests
        gc.collect()
    assert seen == []


class Answering:
    """A messenger that hears at once, and keeps what is published."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.ears: dict[str, Ear] = {}
        self.published: list[tuple[bytes, Answer[bool]]] = []

    def listen(self, channel: str, ear: Ear) -> None:
        """Hear, or refuse."""
        self.ears[channel] = ear
        if self.refusal is None:
            ear.ready()
        else:
            ear.failed(self.refusal)

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Hear no more."""

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        """Note it."""
        self.published.append((payload, answer))


def requests_over(messenger: Any) -> Requests:
    loop = asyncio.get_running_loop()
    return Requests(Broker(messenger, loop, EventStream(), KeySpace(""), payloads=True, spill_ttl=60))


def _request(requests: Requests) -> asyncio.Task[Message]:
    return asyncio.create_task(requests.request("a", b"", NOTHING, None, LIMIT))


@pytest.mark.parametrize("left", [False, True])
async def test_an_answer_that_comes_before_the_publishing_is_confirmed(left: bool) -> None:
    """It counts; and if its request is cancelled meanwhile, an error that it tells is nobody's."""
    messenger = Answering()
    with complaints() as seen:
        request = _request(requests_over(messenger))
        await turns()
        payload, answer = messenger.published[0]
        (ear,) = messenger.ears.values()
        ear.heard(encode(b"", answers=parse(payload).id, error="no"), 1, False)
        if left:
            request.cancel()
            await asyncio.wait([request])
            assert request.cancelled()
        else:
            answer.set_result(True)
            assert isinstance(await outcome(request), RequestFailed)
        del request
        gc.collect()
    assert seen == []


@pytest.mark.parametrize("kind", [BrokerClosed, CoordinatorClosed, GivenUp])
async def test_a_request_ends_when_nobody_connects_any_more(kind: type[Exception]) -> None:
    """At once, with the messenger's last word, and not with its time limit."""
    error = kind("that was all")
    assert await outcome(_request(requests_over(Answering(error)))) is error
