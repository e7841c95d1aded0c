"""A notification queue that fills because a session listens and does not read: told, slowed, refused, and over.

Here live tests of `postgres/queuewatch.py` on a server whose queue is small, which PostgreSQL has from 17 on. Theory:
the guilty session is ours, so that what is said about it can be compared with what it is.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from pgconcert.errors import NotifyQueueFull
from pgconcert.events import Event, QueueFilling
from pgconcert.postgres import queuewatch
from pgconcert.postgres.listener import Listener
from pgconcert.postgres.messages import Publisher
from pgconcert.testing import eventually, eventually_async, rewrite
from tests.postgres.ears import Heard
from tests.postgres.scenes import QUIET, SmallServer, context
from tests.servers import Embedded, Server

_PAYLOAD = b"x" * 4000
"""The queue has room for about 128 of them."""


@pytest.fixture(scope="module")
def running(server: Server) -> Iterator[SmallServer]:
    """A server with a queue of 512 kB, for all tests here."""
    if not isinstance(server, Embedded):
        pytest.skip("the size of the queue can be set from PostgreSQL 17 on")
    running = SmallServer(f"small {server.name}", server.programs, server.major)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def small(running: SmallServer) -> SmallServer:
    """The same with an empty queue: the session that filled it before has gone."""
    eventually(lambda: running.execute("select pg_notification_queue_usage() = 0") == [(True,)])
    return running


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queuewatch, "_SELDOM", 0.0)
    monkeypatch.setattr(queuewatch, "_OFTEN", 0.0)


@contextmanager
def stuck(server: Server, application: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that listens, and then stays in a transaction."""
    with psycopg.connect(rewrite(server.url, application_name=application)) as connection:
        connection.execute("listen anything")
        connection.commit()
        connection.execute("select 1")
        yield connection


@asynccontextmanager
async def publishing(url: str) -> AsyncGenerator[tuple[Publisher, list[QueueFilling]]]:
    """A publisher, and what it tells about the queue."""
    publisher = Publisher(context(url, network_timeout=QUIET))
    events: list[QueueFilling] = []

    def filling(event: Event) -> None:
        assert isinstance(event, QueueFilling)
        events.append(event)

    publisher.keeper.context.events.subscribe(filling, QueueFilling)
    try:
        yield publisher, events
    finally:
        await publisher.close()


async def publish(publisher: Publisher, payload: bytes = _PAYLOAD) -> bool:
    """Publish one message."""
    fate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    publisher.publish(b"filling", payload, fate)
    return await fate


async def fill(publisher: Publisher) -> NotifyQueueFull:
    """Publish until it is refused."""
    for _ in range(1000):
        try:
            await publish(publisher)
        except NotifyQueueFull as full:
            return full
    raise AssertionError("it never became full")


def exhaust(url: str) -> None:
    """Let somebody else notify until the server refuses."""
    with psycopg.connect(url, autocommit=True) as other:
        with contextlib.suppress(psycopg.errors.ProgramLimitExceeded):
            for _ in range(1000):
                other.execute("select pg_notify('others', repeat('x', 4000))")
            raise AssertionError("it never became full")


async def test_told_at_each_level_then_refused_then_over(small: SmallServer) -> None:
    """Who publishes learns at half full who holds it up, is refused before the server refuses, and goes on when the
    queue has been read."""
    async with publishing(small.url) as (publisher, events):
        with stuck(small, "nightly report") as culprit:
            full = await fill(publisher)
            who = f"nightly report (pid {culprit.info.backend_pid}, idle in transaction for"
            assert who in str(full)
            assert [sum(event.usage >= level for level in (0.5, 0.8, 0.95)) for event in events] == [1, 2, 3]
            assert all(who in (event.blocker or "") for event in events)
            assert events[-1].usage < 1.0, "the server itself would have refused later"
            sent = publisher.keeper.health().statements
            with pytest.raises(NotifyQueueFull):
                await publish(publisher)
            # looked at, perhaps, but nothing was published
            assert publisher.keeper.health().statements - sent <= 2
            culprit.rollback()

        async def published() -> bool:
            try:
                return await publish(publisher)
            except NotifyQueueFull:
                return False

        await eventually_async(published)
        assert publisher.watch.full is None


async def test_the_server_refuses_first(small: SmallServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If others fill the queue between two looks, the server's own refusal names the culprit too."""
    monkeypatch.setattr(queuewatch, "_SELDOM", 1e6)
    async with publishing(small.url) as (publisher, _):
        assert await publish(publisher)
        with stuck(small, "nightly report") as culprit:
            exhaust(small.url)
            outcomes = await asyncio.gather(*(publish(publisher) for _ in range(20)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {NotifyQueueFull}
            assert f"nightly report (pid {culprit.info.backend_pid}, idle in transaction" in str(outcomes[0])
            assert "queue is full (too many notifications" in str(outcomes[0])


@pytest.mark.long
async def test_the_culprit_is_told_from_those_who_only_look_like_one(small: SmallServer) -> None:
    """A transaction that is older, but listens to nothing, holds up nothing: the server knows."""
    async with publishing(small.url) as (publisher, _):
        with psycopg.connect(rewrite(small.url, application_name="innocent")) as innocent:
            innocent.execute("select 1")
            with stuck(small, "culprit"):
                await asyncio.sleep(5)  # the server says it once in five seconds, to all that notify together
                assert "culprit (pid" in str(await fill(publisher))


async def test_a_plain_role_is_told_what_it_may_see(small: SmallServer) -> None:
    """Of another role's session it may see the name and the number, if the server has said which one it is."""
    small.execute("create role plain login")
    async with publishing(rewrite(small.url, user="plain")) as (publisher, _):
        with stuck(small, "culprit") as culprit:
            named = f"culprit (pid {culprit.info.backend_pid}, state hidden)"
            full = str(await fill(publisher))
            assert named in full or "a session that this role may not see" in full


async def test_a_listener_becomes_ready_although_nobody_can_notify(small: SmallServer) -> None:
    """With a full queue no proof can be sent, and nothing can be missed either."""
    async with publishing(small.url) as (publisher, _):
        with stuck(small, "culprit") as culprit:
            await fill(publisher)
            exhaust(small.url)
            listener = Listener(context(small.url))
            heard = Heard(listener, "filling")
            await heard.until_ready()
            culprit.rollback()

            async def published() -> bool:
                try:
                    return await publish(publisher, b"at last")
                except NotifyQueueFull:
                    return False

            await eventually_async(published)
            await eventually_async(lambda: "at last" in heard.payloads)
            await listener.close()


async def test_publishing_slows_down_before_it_stops(small: SmallServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From four fifths on, what is published leaves after pauses that grow."""
    pauses: list[float] = []
    pause = queuewatch.QueueWatch.pause

    def noted(self: queuewatch.QueueWatch) -> float:
        pauses.append(pause(self))
        return pauses[-1]

    monkeypatch.setattr(queuewatch.QueueWatch, "pause", noted)
    async with publishing(small.url) as (publisher, _):
        with stuck(small, "culprit"):
            await fill(publisher)
    assert pauses[0] == 0
    grown = [one for one in pauses if one]
    assert len(grown) >= 5
    assert grown == sorted(grown)
    assert grown[0] == 0.001
