"""The coordinator of an application: opened before it serves, closed after, and found by its requests.

Theory. ``open`` makes no connection, so a coordinator can always be opened. *Contact* is the first answer of the
server. ``lifespan`` asks for it in the background, and until it is there ``readiness`` says no; with ``wait`` it is
asked for before the first request, and without an answer the application does not start. From then on readiness is what
the coordinator's ``health`` says.

States: *opening* --opened, and contact if ``wait``--> *serving* --the server ends--> *ending* (streams end) --the
application's own end--> *closing* (holds are freed, handlers come to their end) --> *closed*.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from typing import Any, Final, cast

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse

from ...acquiring import check_timeout
from ...coordinator import AsyncCoordinator
from ...errors import ConfigurationError, PublishUncertain, Unavailable, given
from .ending import Ending

__all__ = ["coordinator", "ending_of", "lifespan", "readiness"]

logger = logging.getLogger("pgconcert.contrib.starlette")

_STATE: Final = "pgconcert"
_GREETING: Final = "pgconcert_contact"
"""A channel to which nobody listens."""
_FIRST_PAUSE: Final = 0.1
_LAST_PAUSE: Final = 5.0


class _Home:
    """What an application has."""

    def __init__(self, coordinator: AsyncCoordinator) -> None:
        self.coordinator = coordinator
        self.ending = Ending()
        self.contact = "messages" not in coordinator.backend.capabilities

    async def make_contact(self) -> None:
        """Return when the server has answered. Raises what waiting does not mend."""
        pause = _FIRST_PAUSE
        while not self.contact:
            try:
                await self.coordinator.publish(_GREETING)
                self.contact = True
            except (Unavailable, PublishUncertain):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)


def lifespan(
    coordinator: AsyncCoordinator | Callable[[], AsyncCoordinator],
    *,
    inner: Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]] | None = None,
    wait: float | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """The lifespan of an application with a coordinator: ``FastAPI(lifespan=lifespan(AsyncCoordinator))``.

    Requests find it by ``coordinator(request)``, and as ``request.state.pgconcert``. When the server is told to end,
    event streams end; then what ``inner`` has to do at the end; then the coordinator is closed. In a lifespan of your
    own: ``async with lifespan(AsyncCoordinator)(app): yield``.

    :param coordinator: what makes one, such as the class ``AsyncCoordinator`` itself; or one that is not open yet,
        which does for an application that is started once.
    :param inner: the application's own lifespan, entered when the coordinator is open, and left before it is closed.
    :param wait: ``None`` serves at once, whether the database answers or not, and ``readiness`` says no until it does.
        A number: starting fails with ``Unavailable`` if it has not answered within so many seconds.
    """
    limit = check_timeout(wait)
    if not isinstance(coordinator, AsyncCoordinator) and not callable(coordinator):
        raise ConfigurationError(f"lifespan() takes an AsyncCoordinator or what makes one, not {given(coordinator)}")

    @contextlib.asynccontextmanager
    async def coordinating(app: Any) -> AsyncGenerator[dict[str, Any], None]:
        made = coordinator if isinstance(coordinator, AsyncCoordinator) else coordinator()
        async with made, _serving(made, limit) as home:
            state: dict[str, Any] = {_STATE: made, f"{_STATE}_home": home}
            for name, value in state.items():
                setattr(app.state, name, value)
            async with contextlib.nullcontext() if inner is None else inner(app) as more:
                try:
                    yield {**state, **(more or {})}
                finally:
                    home.ending.begin()

    return coordinating


@contextlib.asynccontextmanager
async def _serving(made: AsyncCoordinator, limit: float | None) -> AsyncGenerator[_Home, None]:
    home = _Home(made)
    contact = asyncio.ensure_future(home.make_contact())
    try:
        if limit is None:
            contact.add_done_callback(_contact_failed)
        else:
            await asyncio.wait({contact}, timeout=limit)
            if not contact.done():
                raise Unavailable(f"the database has not answered within {limit:g} s: {_why(made)}")
            contact.result()
        home.ending.watch()
        looking = asyncio.ensure_future(home.ending.look())
        try:
            yield home
        finally:
            home.ending.unwatch()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    finally:
        contact.cancel()
        await asyncio.gather(contact, return_exceptions=True)


def _contact_failed(contact: asyncio.Future[None]) -> None:
    if not contact.cancelled() and (error := contact.exception()) is not None:
        logger.error("the application is not ready, and waiting does not mend it: %s", error)


def _why(coordinator: AsyncCoordinator) -> str:
    return next((link.last_error for link in coordinator.health().links if link.last_error), "no answer yet")


def coordinator(connection: HTTPConnection) -> AsyncCoordinator:
    """The coordinator of the application that a request or a websocket came to; for FastAPI's ``Depends``, too.

    Raises ``ConfigurationError`` if the application was started without ``lifespan``.
    """
    return _home(connection).coordinator


def ending_of(connection: HTTPConnection) -> Ending:
    """How the streams of an application learn of its end."""
    return _home(connection).ending


def _home(connection: HTTPConnection) -> _Home:
    name = f"{_STATE}_home"
    # an application that is mounted in another has the state of the outer one; some servers carry no state
    found = connection.scope.get("state", {}).get(name)
    if found is None and "app" in connection.scope:
        found = getattr(connection.scope["app"].state, name, None)
    if found is None:
        raise ConfigurationError(
            "this application has no coordinator: make it with lifespan=lifespan(AsyncCoordinator), of "
            "pgconcert.contrib.starlette, and let its lifespan run (httpx.ASGITransport, for one, does not run it)"
        )
    return cast(_Home, found)


async def readiness(request: Request) -> JSONResponse:
    """An endpoint: the coordinator's ``health`` in JSON, with 200 while it is ready and 503 while it is not. It sends
    nothing to the database. For probes, not for the public: it names servers."""
    home = _home(request)
    health = home.coordinator.health()
    if not home.contact:
        health = replace(health, ready=False, troubles=(*health.troubles, "the database has not answered yet"))
    return JSONResponse(asdict(health), 200 if health.ready else 503, {"cache-control": "no-store"})
