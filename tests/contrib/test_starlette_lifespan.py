"""A coordinator for an application: how it begins and ends, who finds it, what readiness says.

Here live tests of `lifespan`, `coordinator`, `readiness` and the annotation for FastAPI, and of how streams and sockets
end with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pgconcert import AsyncCoordinator, ConfigurationError, Unavailable
from pgconcert.contrib.fastapi import Coordinated
from pgconcert.contrib.starlette import coordinator, lifespan, readiness
from pgconcert.testing import eventually_async
from tests.contrib.shops import Shop, browsers, until
from tests.contrib.streams import LIMIT, ByHand, reading, serving


async def test_a_signal_ends_streams_and_sockets(database: str, unique: str) -> None:
    """The server is told to end: streams end in good order, sockets are closed with 1012, and it does end."""
    shop = Shop(database, unique)
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        async with serving(shop.app()) as running, browsers(running.url) as client:
            async with reading(client, "/stream") as reader, connect(f"{running.websocket_url}/feed") as socket:
                os.kill(os.getpid(), signal.SIGTERM)
                assert await reader.end() == []
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), LIMIT)
                assert socket.close_code == 1012
            await running.task
        assert came == [signal.SIGTERM]  # uvicorn raises it again at its end, and our handler is gone
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_server_that_ends_by_itself(database: str, unique: str) -> None:
    """Without a signal the application finds out, however much or little its streams have to do."""
    shop = Shop(database, unique, keep_alive=3600)
    async with serving(shop.app()) as running, browsers(running.url) as client, reading(client, "/stream") as reader:
        running.server.should_exit = True
        assert await reader.end() == []


async def test_the_coordinator_is_closed(database: str, unique: str) -> None:
    """Streams end, sockets are closed, and whoever comes later gets an error."""
    shop = Shop(database, unique)
    async with serving(shop.app()) as running, browsers(running.url) as client:
        async with reading(client, "/stream") as reader, connect(f"{running.websocket_url}/feed") as socket:
            await shop.c.close()
            assert await reader.end() == []
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), LIMIT)
            assert socket.close_code == 1012
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)


async def test_streams_end_before_the_end_of_the_application(unique: str) -> None:
    """Of a server that gives no sign and cuts nobody off: `inner` ends when streams and sockets have been told, and who
    comes then is sent away."""
    open_ones: list[ByHand] = []

    @contextlib.asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        yield
        open_ones.append(ByHand(app, "http", "/stream"))
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*(one.task for one in open_ones))
        assert shop.subscriptions == 0

    shop = Shop(f"memory://{unique}", unique)
    app = shop.app(inner=own)
    async with app.router.lifespan_context(app):
        open_ones += [ByHand(app, "http", "/stream"), ByHand(app, "websocket", "/feed")]
        open_ones[1].inbox.put_nowait({"type": "websocket.connect"})
        # a subscription comes before the beginning of its answer
        await eventually_async(lambda: shop.subscriptions == 2 and all(one.sent for one in open_ones))
    stream, socket, late = open_ones
    assert [stream.sent[0]["status"], late.sent[0]["status"]] == [200, 503]
    assert stream.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert (socket.sent[-1]["type"], socket.sent[-1]["code"]) == ("websocket.close", 1012)


async def test_lifespans(database: str, unique: str) -> None:
    """The application's own is inside: it has an open coordinator at both ends; both states reach requests, also those
    of a mounted application."""
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        told.append(repr(app.state.pgconcert))
        yield {"mine": 7}
        told.append(repr(app.state.pgconcert))

    async def look(request: Request) -> Response:
        assert request.state.pgconcert is coordinator(request)
        async with coordinator(request).lock(unique, timeout=30):
            return PlainTextResponse(str(request.state.mine))

    inside = Starlette(routes=[Route("/look", look)])
    shop = Shop(database, unique)
    app = Starlette(
        routes=[Route("/look", look), Mount("/inside", inside)], lifespan=lifespan(shop.make, inner=own, wait=30)
    )
    for _ in range(2):  # a factory makes a new coordinator each time
        async with serving(app) as running, browsers(running.url) as client:
            assert [(await client.get(path)).text for path in ("/look", "/inside/look")] == ["7", "7"]
        assert told == ["<AsyncCoordinator open>"] * 2
        assert repr(shop.c) == "<AsyncCoordinator closed>"
        told.clear()
    assert len(shop.made) == 2


async def test_the_parameter_of_fastapi(unique: str) -> None:
    """`Coordinated` gives path operations and websockets the coordinator."""
    app = FastAPI(lifespan=lifespan(lambda: AsyncCoordinator(f"memory://{unique}")))

    @app.get("/")
    async def operation(c: Coordinated) -> str:
        return repr(c)

    @app.websocket("/feed")
    async def feed(websocket: WebSocket, c: Coordinated) -> None:
        await websocket.accept()
        await websocket.send_text(repr(c))

    async with serving(app) as running, browsers(running.url) as client:
        assert (await client.get("/")).json() == "<AsyncCoordinator open>"
        async with connect(f"{running.websocket_url}/feed") as socket:
            assert await socket.recv() == "<AsyncCoordinator open>"


async def test_a_lifespan_in_ones_own(unique: str) -> None:
    """Entered by hand, with a coordinator that was made before; state is found by way of the application."""
    c = AsyncCoordinator(f"memory://{unique}")
    app = Starlette(routes=[Route("/ready", readiness)])
    async with lifespan(c)(app), browsers("http://here", transport=httpx.ASGITransport(app)) as client:

        async def ready() -> bool:
            return (await client.get("/ready")).status_code == 200

        await until(ready)


async def test_without_a_lifespan() -> None:
    """The error says what is missing."""
    app = Starlette(routes=[Route("/ready", readiness)])
    async with browsers("http://here", transport=httpx.ASGITransport(app)) as client:
        with pytest.raises(ConfigurationError, match=r"make it with lifespan=lifespan\(AsyncCoordinator\)"):
            await client.get("/ready")


async def test_a_start_that_needs_the_database() -> None:
    """With `wait` the application does not start without it; the error says why."""
    app = Starlette()
    with pytest.raises(Unavailable, match=r"not answered within 2 s: .*[Rr]efused"):
        async with lifespan(lambda: AsyncCoordinator("postgresql://127.0.0.1:1/shop"), wait=2)(app):
            pytest.fail("it was started")


async def test_what_waiting_does_not_mend(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong address is told once, by the log or, with `wait`, by the start that fails at once."""

    def make() -> AsyncCoordinator:
        return AsyncCoordinator(lambda: "no address")

    app = Starlette(routes=[Route("/ready", readiness)])
    with pytest.raises(ConfigurationError, match="not a valid PostgreSQL connection string"):
        async with lifespan(make, wait=60)(app):
            pytest.fail("it was started")
    async with lifespan(make)(app), browsers("http://here", transport=httpx.ASGITransport(app)) as client:
        await eventually_async(lambda: "waiting does not mend it" in caplog.text)
        assert (await client.get("/ready")).status_code == 503


@pytest.mark.parametrize(
    ("wrong", "words"), [({"coordinator": 7}, "takes an AsyncCoordinator"), ({"wait": -1}, "timeout must be")]
)
def test_wrong_lifespans(wrong: dict[str, Any], words: str) -> None:
    """They are refused where they are written."""
    given: dict[str, Any] = {"coordinator": AsyncCoordinator}
    with pytest.raises(ConfigurationError, match=words):
        lifespan(**(given | wrong))


def test_what_is_not_installed() -> None:
    """The error names what to install."""
    program = """
import sys
for name in ("fastapi", "starlette"):
    sys.modules[name] = None
    try:
        __import__(f"pgconcert.contrib.{name}")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "pgconcert.contrib.fastapi needs FastAPI: pip install fastapi 'pgconcert[starlette]'",
        "pgconcert.contrib.starlette needs Starlette: pip install 'pgconcert[starlette]'",
    ]
