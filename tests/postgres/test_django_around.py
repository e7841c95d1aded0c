"""The application for Django around the code of a project: messages with its transactions, locks around its functions,
coordinators for its event loops. What was *not* sent is seen by what is heard next.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction, sync_to_async

from pgconcert import AcquireTimeout, AsyncCoordinator
from pgconcert.blocking import Coordinator
from pgconcert.errors import ChannelInvalid, ConfigurationError, PayloadInvalid, WouldDeadlock
from tests import djangosettings
from tests.djangosettings import SECRET, said

djangosettings.setup_django()

from django.db import connections, transaction  # noqa: E402 - Django is set up before anything of it is used
from django.test import override_settings  # noqa: E402
from django.utils.decorators import method_decorator  # noqa: E402

from pgconcert.contrib import django as ours  # noqa: E402

LIMIT = 60.0

atomic: Any = transaction.atomic  # Django has no types, and some checkers guess wrong ones


@pytest.fixture
def project(database: str) -> Iterator[str]:
    """The alias of a project whose settings name it."""
    with djangosettings.project(database) as name:
        yield name


class Heard:
    """What arrives on a channel before now."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._messages = ours.coordinator().subscribe(channel)
        self._messages.__enter__()

    def all(self) -> list[str]:
        ours.coordinator().publish(self._channel, "the end")
        texts = []
        while (text := self._messages.get(timeout=LIMIT).text) != "the end":
            texts.append(text)
        return texts


@pytest.fixture
def heard(project: str, unique: str) -> Heard:
    return Heard(unique)


# messages


def test_published_with_the_transaction(project: str, heard: Heard, unique: str) -> None:
    """Or never, and at once where there is none; equal ones once, unless they are to be unique."""
    with atomic(project):
        ours.publish(unique, "kept")
        ours.publish(unique, "kept")
        ours.publish(unique, json={"n": 1}, unique=True, using=project)
        ours.publish(unique, json={"n": 1}, unique=True)
        with pytest.raises(ValueError, match="back"), atomic(project):
            _say_and_fail(ours.publish, unique)
        assert heard.all() == []
    assert heard.all() == ["kept", '{"n":1}', '{"n":1}']
    with pytest.raises(ValueError, match="back"), atomic(project):
        _say_and_fail(ours.publish, unique)
    ours.publish(unique, "at once")
    assert heard.all() == ["at once"]


def test_a_large_message_with_the_transaction(project: str, unique: str) -> None:
    """It is kept in the schema that the settings name."""
    with override_settings(PGCONCERT={"DATABASE": project, "SCHEMA": "of_django"}):
        said("schema", "apply")
        heard = Heard(unique)
        with atomic(project):
            ours.publish(unique, "x" * 20_000)
        assert heard.all() == ["x" * 20_000]


def test_published_after_the_commit(project: str, heard: Heard, unique: str) -> None:
    """As it was when it was said; equal ones are all sent."""
    value = {"n": 1}
    with atomic(project):
        ours.publish_on_commit(unique, json=value, headers={"a": "b"}, id=True)
        value["n"] = 2
        ours.publish_on_commit(unique, "same")
        ours.publish_on_commit(unique, "same", using=project)
        with pytest.raises(ValueError, match="back"), atomic(project):
            _say_and_fail(ours.publish_on_commit, unique)
        assert heard.all() == []
    assert heard.all() == ['{"n":1}', "same", "same"]
    with pytest.raises(ValueError, match="back"), atomic(project):
        _say_and_fail(ours.publish_on_commit, unique)
    ours.publish_on_commit(unique, "at once")
    assert heard.all() == ["at once"]


def test_headers_as_they_were(project: str, unique: str) -> None:
    headers = {"a": "b"}
    with ours.coordinator().subscribe(unique) as messages:
        with atomic(project):
            ours.publish_on_commit(unique, headers=headers)
            headers["a"] = "c"
        assert messages.get(timeout=LIMIT).headers == {"a": "b"}


def _say_and_fail(publish: Callable[[str, str], None], channel: str) -> None:
    publish(channel, "gone")
    raise ValueError("back")


@pytest.mark.parametrize("publish", [ours.publish, ours.publish_on_commit])
def test_wrong_messages_are_refused_at_once(project: str, publish: Callable[..., None]) -> None:
    """Inside the block, where they can be found, and the transaction goes on."""
    with atomic(project):
        for error, channel, more in (
            (ChannelInvalid, "x" * 64, {}),
            (PayloadInvalid, "x", {"json": object()}),
            (PayloadInvalid, "x", {"headers": {"a": 1}}),
            (PayloadInvalid, "x", {"id": "a blank"}),
            (ConfigurationError, "x", {"payload": "a", "json": 1}),
        ):
            with pytest.raises(error):
                publish(channel, **more)
        with connections[project].cursor() as cursor:
            cursor.execute("select 1")


def test_a_failure_after_the_commit_is_logged(project: str, caplog: pytest.LogCaptureFixture, unique: str) -> None:
    """The data is committed, so nothing is raised."""
    unreachable = f"postgresql://somebody:{SECRET}@127.0.0.1:1/nothing"
    more = {"network_timeout": 0.2, "connect_timeout": 0.2}
    with override_settings(PGCONCERT={"DATABASE": project, "ADDRESS": unreachable, "COORDINATOR": more}):
        with caplog.at_level(logging.ERROR), atomic(project):
            ours.publish_on_commit(unique, "text of the message")
    (record,) = (record for record in caplog.records if record.name == "pgconcert.contrib.django")
    assert repr(unique) in record.getMessage()
    assert not any(word in caplog.text for word in (SECRET, "text of the message"))


# the decorator


def test_one_call_at_a_time(project: str, database: str) -> None:
    @ours.exclusive("page", timeout=LIMIT)
    def page(n: int) -> int:
        return n + 1

    @ours.exclusive("page", timeout=0.05)
    def hurried(n: int) -> int:
        return n + 1

    @ours.exclusive(lambda n: f"page:{n}", if_held="skip", using=project)
    def each(n: int) -> int:
        return n + 1

    assert (page(1), each(1)) == (2, 2)
    with Coordinator(database) as other, other.lock("page"), other.lock("page:1"):
        with pytest.raises(AcquireTimeout, match="'page'"):
            hurried(1)
        assert (each(1), each(2)) == (None, 3)
    assert page(1) == 2


def test_decorating_opens_nothing() -> None:
    """And says at once what is wrong."""

    @ours.exclusive("page")
    def page() -> None:
        """Show it."""

    assert page.__doc__ == "Show it."

    def generator() -> Iterator[int]:
        yield 1

    anything: Any = ours.exclusive
    with pytest.raises(ConfigurationError, match="if_held"):
        anything("page", if_held="raise")
    with pytest.raises(ConfigurationError):
        anything("")
    with pytest.raises(ConfigurationError, match="generator"):
        anything("page")(generator)

    async def awaited() -> None: ...

    with pytest.raises(ConfigurationError, match="using='x' is for plain functions"):
        anything("page", using="x")(awaited)
    with pytest.raises(ConfigurationError, match="DATABASE"):
        page()  # the default database of these tests is none


def test_methods_of_views(project: str) -> None:
    class View:
        @method_decorator(ours.exclusive("page"))  # type: ignore[untyped-decorator]  # Django has no types
        def get(self, n: int) -> int:
            with pytest.raises(WouldDeadlock):
                self.get(n)
            return n + 1

    assert View().get(1) == 2


# event loops


async def test_a_coordinator_for_a_loop(project: str, database: str) -> None:
    @ours.exclusive("page", if_held="skip")
    async def page(n: int) -> int:
        return n + 1

    with pytest.raises(ConfigurationError, match=r"with_coordinator\(get_asgi_application"):
        ours.async_coordinator()
    async with ours.lifespan() as c:
        assert ours.async_coordinator() is c
        assert await page(1) == 2
        async with AsyncCoordinator(database) as other, other.lock("page"):
            assert await page(1) is None
        with pytest.raises(ConfigurationError, match="has a coordinator already"):
            async with ours.lifespan():
                pass
        assert ours.async_coordinator() is c
    with pytest.raises(ConfigurationError):
        ours.async_coordinator()


async def test_two_lifespans_at_once(project: str) -> None:
    """One of them is the loop's; the other one is refused, and takes nothing away."""
    entered, end = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        async with ours.lifespan() as c:
            entered.set()
            await end.wait()
            assert ours.async_coordinator() is c

    with override_settings(PGCONCERT={"DATABASE": project, "COORDINATOR": {"migrate": True}}):
        both = [asyncio.create_task(one()) for _ in range(2)]
        await entered.wait()
        done, _ = await asyncio.wait(both, timeout=LIMIT, return_when=asyncio.FIRST_COMPLETED)
        end.set()
        (refused,) = done
        with pytest.raises(ConfigurationError, match="has a coordinator already"):
            await refused
        await asyncio.gather(*(task for task in both if task is not refused))


async def test_what_django_takes_for_a_coroutine_function(project: str) -> None:
    """Objects, what runs in threads, and what other decorators have marked."""

    class Page:
        async def __call__(self) -> bool:
            return await held()

    async def held() -> bool:
        return await ours.async_coordinator().lock("page").try_acquire() is None

    def marked() -> Coroutine[Any, Any, bool]:
        return held()

    markcoroutinefunction(marked)
    anything: Any = ours.exclusive("page")
    with ThreadPoolExecutor(1) as threads:
        threaded: Any = sync_to_async(os.getpid, thread_sensitive=False, executor=threads)
        async with ours.lifespan():
            assert await anything(Page())()
            assert await anything(marked)()
            assert await anything(threaded)() == os.getpid()


async def test_settings_are_overridden_in_a_loop(project: str) -> None:
    """As an async test does: the coordinator of the process is closed all the same."""
    c = await asyncio.to_thread(ours.coordinator)
    with override_settings(PGCONCERT={"DATABASE": project, "NAMESPACE": "other"}):
        assert repr(c) == "<Coordinator closed>"


async def test_the_lifespan_of_a_server(project: str) -> None:
    """Opened before the first request, closed after the last; requests go on to the application."""
    seen: list[Any] = []
    sent: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(ours.async_coordinator())

    served = ours.with_coordinator(application)

    async def receive() -> Any:
        if sent:
            await served({"type": "http"}, receive, send)
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await served({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert repr(seen[0]) == "<AsyncCoordinator closed>"
    with override_settings(PGCONCERT={"DATABASE": "nobody"}):
        sent.clear()
        await served({"type": "lifespan"}, receive, send)
        assert sent == ["lifespan.startup.failed"]
