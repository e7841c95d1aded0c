"""The coordinator of an event loop, for views that are coroutines.

Theory. An ``AsyncCoordinator`` lives and ends with one event loop, and only the server knows when that loop begins to
serve and when it stops: it says so by the lifespan messages of ASGI, which Django itself leaves unanswered.
``with_coordinator`` answers them. So there is one coordinator for each serving loop, opened before the first request
and closed after the last, and there is none in a loop that lives for one request (WSGI, the test client), where it
would connect and disconnect every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ...coordinator import AsyncCoordinator
from ...errors import ConfigurationError
from .conf import address_of, parameters

__all__ = ["Application", "async_coordinator", "lifespan", "with_coordinator"]

Application = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

_serving: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncCoordinator] = WeakKeyDictionary()


def async_coordinator() -> AsyncCoordinator:
    """The coordinator of the running event loop. Raises ``ConfigurationError`` if it has none."""
    found = _serving.get(asyncio.get_running_loop())
    if found is None:
        raise ConfigurationError(
            "this event loop has no coordinator: in asgi.py, write application = with_coordinator("
            "get_asgi_application()) and use a server that speaks ASGI's lifespan protocol (uvicorn, hypercorn); "
            "in a test or a command, enter 'async with lifespan()'; under WSGI use coordinator() in a plain view"
        )
    return found


@asynccontextmanager
async def lifespan(using: str | None = None) -> AsyncIterator[AsyncCoordinator]:
    """Let the running event loop have a coordinator until the end of the block.

    :param using: an alias of ``DATABASES``; what the setting ``PGCONCERT`` names, by default.
    :raises ConfigurationError: for what is wrong with the settings, or when this loop has one.
    """
    loop = asyncio.get_running_loop()
    async with AsyncCoordinator(address_of(using), **parameters(AsyncCoordinator)) as c:
        if _serving.setdefault(loop, c) is not c:
            raise ConfigurationError("this event loop has a coordinator already: async_coordinator() returns it")
        try:
            yield c
        finally:
            _serving.pop(loop, None)


def with_coordinator(application: Application, using: str | None = None) -> Application:
    """An ASGI application that serves ``application`` with an ``async_coordinator``. When the server starts it is
    opened, which connects to nothing yet; when the server stops it is closed, after the last request."""

    async def serve(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        await receive()
        began = False
        try:
            async with lifespan(using):
                await send({"type": "lifespan.startup.complete"})
                began = True
                await receive()
        except Exception as error:
            what = "shutdown" if began else "startup"
            await send({"type": f"lifespan.{what}.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    return serve
