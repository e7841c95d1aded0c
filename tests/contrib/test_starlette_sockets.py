"""Websockets on a real server of theirs and a real PostgreSQL.

Here live tests of `websocket_feed` with uvicorn in this event loop.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pgconcert.contrib.starlette import lifespan, websocket_feed
from pgconcert.testing import FaultProxy, eventually_async
from tests.contrib.shops import Shop
from tests.contrib.streams import LIMIT, ByHand, Table, cut, serving
from tests.servers import Server


async def test_a_websocket(server: Server, database: str, unique: str) -> None:
    """Messages, a gap with what is missing, pings of the application; after it goes, nothing listens."""
    table = Table(database, unique)
    ids = await table.add("one", "two", publish=False)
    shop = Shop(database, unique, replay=table)
    async with serving(shop.app()) as running:
        async with connect(f"{running.websocket_url}/feed?after={ids[0]}") as socket:

            async def next_frame() -> Any:
                return json.loads(await asyncio.wait_for(socket.recv(), LIMIT))

            assert await next_frame() == {"event": "message", "id": ids[1], "data": "two"}
            ids += await table.add("three")
            assert await next_frame() == {"event": "message", "id": ids[2], "data": "three"}
            await socket.send("something")
            await socket.send("ping")
            assert await asyncio.wait_for(socket.recv(), LIMIT) == "pong"
            ids += await table.add("deaf", publish=False)
            cut(server, database)
            gap = await next_frame()
            assert (gap["event"], gap["data"]["reason"], gap["data"]["replayed"]) == ("gap", "reconnect", True)
            assert await next_frame() == {"event": "message", "id": ids[3], "data": "deaf"}
            assert shop.subscriptions == 1
        await eventually_async(lambda: shop.subscriptions == 0, what="the subscription ends")


async def test_a_socket_that_goes_before_it_is_accepted(server: Server, database: str, unique: str) -> None:
    """The database does not answer, and the client does not wait for it: nothing is left."""
    with FaultProxy.to(server.tcp_url) as proxy:
        proxy.refuse()
        shop = Shop(proxy.url(database), unique, timeout=None)
        app = shop.app()
        async with app.router.lifespan_context(app), asyncio.timeout(LIMIT):
            socket = ByHand(app, "websocket", "/feed")
            socket.inbox.put_nowait({"type": "websocket.connect"})
            await eventually_async(lambda: shop.subscriptions == 1)
            socket.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            await socket.task
            assert (socket.sent, shop.subscriptions) == ([], 0)


async def test_what_a_socket_says(database: str, unique: str) -> None:
    """`on_message` gets texts and bytes; what it raises ends the feed."""
    heard: list[str | bytes] = []

    async def on_message(said: str | bytes) -> None:
        heard.append(said)
        if said == "end":
            raise ValueError("no more")

    shop = Shop(database, unique, on_message=on_message)
    async with serving(shop.app()) as running, connect(f"{running.websocket_url}/feed") as socket:
        for said in ("ping", b"\0", "end"):
            await socket.send(said)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), LIMIT)
        assert heard == ["ping", b"\0", "end"]
        assert shop.subscriptions == 0


async def test_a_socket_that_its_handler_closes(database: str, unique: str) -> None:
    """Whoever closes it in `on_message` ends the feed, with the code of his choice."""
    shop = Shop(database, unique)

    async def feed(websocket: WebSocket) -> None:
        async def leave(said: str | bytes) -> None:
            await websocket.close(4000)
            await shop.c.publish(unique, "too late")

        await websocket_feed(websocket, unique, on_message=leave)

    app = Starlette(routes=[WebSocketRoute("/feed", feed)], lifespan=lifespan(shop.make))
    async with serving(app) as running, connect(f"{running.websocket_url}/feed") as socket:
        await socket.send("leave")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), LIMIT)
        assert socket.close_code == 4000
        await eventually_async(lambda: shop.subscriptions == 0, what="the subscription ends")
