"""An application to test: one channel as a stream, as a websocket, and readiness, with the coordinator it has made.

Here live `Shop`, a client for it, and nothing that asserts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from pgconcert import AsyncCoordinator
from pgconcert.contrib.starlette import coordinator, lifespan, readiness, sse, websocket_feed
from tests.contrib.streams import LIMIT


class Shop:
    """An application with one channel, and the coordinator that it has made."""

    def __init__(self, url: str, channel: str, **options: Any) -> None:
        self.made: list[AsyncCoordinator] = []
        self.url = url
        self.channel = channel
        self.options: dict[str, Any] = options

    def make(self) -> AsyncCoordinator:
        self.made.append(AsyncCoordinator(self.url, network_timeout=30))
        return self.made[-1]

    @property
    def c(self) -> AsyncCoordinator:
        return self.made[-1]

    @property
    def subscriptions(self) -> int:
        """How many listen to the channel in this process."""
        route = self.c._messages().broker._routes.get(self.channel)
        return 0 if route is None else len(route._sinks)

    async def stream(self, request: Request) -> Response:
        return sse(request, self.channel, **self.options)

    async def feed(self, websocket: WebSocket) -> None:
        after = websocket.query_params.get("after")
        options = {name: value for name, value in self.options.items() if name not in ("keep_alive", "retry")}
        await websocket_feed(websocket, self.channel, after=after, **options)

    async def word(self, request: Request) -> Response:
        await coordinator(request).publish(self.channel, request.path_params["word"])
        return PlainTextResponse("told")

    def app(self, *, inner: Any = None, **more: Any) -> Starlette:
        routes = [Route("/stream", self.stream), Route("/ready", readiness), WebSocketRoute("/feed", self.feed)]
        routes.append(Route("/tell/{word}", self.word))
        return Starlette(routes=routes, lifespan=lifespan(self.make, inner=inner), **more)


@contextlib.asynccontextmanager
async def browsers(url: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=LIMIT, trust_env=False, **options) as client:
        yield client


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT):
        while not await condition():
            await asyncio.sleep(0.02)
