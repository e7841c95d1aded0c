"""Server-sent events on a real server of theirs and a real PostgreSQL.

Here live tests of `sse` with uvicorn in this event loop. What needs a process of its own stands in
`test_fastapi_example.py`, what needs no network in `test_feed.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from websockets.asyncio.client import connect

from pgconcert.contrib.starlette import lifespan, sse
from pgconcert.testing import FaultProxy, eventually_async
from tests.contrib.shops import Shop, browsers, until
from tests.contrib.streams import LIMIT, Got, Table, cut, listeners, reading, serving
from tests.servers import Server


async def test_a_hundred_clients_and_one_listen(server: Server, database: str, unique: str) -> None:
    """All get every message, through one session of the server; when they leave, nothing listens for them."""
    shop = Shop(database, unique)
    async with serving(shop.app()) as running, browsers(running.url) as client, contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(client, "/stream")) for _ in range(100)]
        for word in ("one", "two"):
            await client.get(f"/tell/{word}")
        for word in ("one", "two"):
            assert {await reader.next() for reader in readers} == {Got("message", word, "")}
        assert len(listeners(server, database)) == 1
        assert shop.subscriptions == 100
        await stack.aclose()
        await eventually_async(lambda: shop.subscriptions == 0, what="no subscription is left")


async def test_replay_and_live_without_gap_and_twice(database: str, unique: str) -> None:
    """Clients that come and go while a table grows get each event once, in order."""
    table = Table(database, unique)
    (first,) = await table.add("start", publish=False)
    shop = Shop(database, unique, replay=table)
    count = 60
    async with serving(shop.app()) as running, browsers(running.url) as client:
        writing = asyncio.create_task(table.add(*map(str, range(count))))
        got: list[Got] = []

        async def read(last: str, many: int) -> str:
            """Take some events and hang up."""
            async with reading(client, "/stream", last) as reader:
                got.extend([await reader.next() for _ in range(many)])
            return got[-1].id

        last = first
        while len(got) < count:
            last = await read(last, min(7, count - len(got)))
        ids = await writing
    assert [event.data for event in got] == [str(number) for number in range(count)]
    assert [event.id for event in got] == ids
    assert {event.event for event in got} == {"message"}


async def test_replay_after_the_connection_was_cut(server: Server, database: str, unique: str) -> None:
    """The client stays, is told of the gap, and gets what was published meanwhile."""
    table = Table(database, unique)
    shop = Shop(database, unique, replay=table)
    async with serving(shop.app()) as running, browsers(running.url) as client, reading(client, "/stream") as reader:
        (before,) = await table.add("before")
        assert await reader.next() == Got("message", "before", before)
        deaf = (await table.add("deaf", publish=False))[0]  # as if it was published while nothing listened
        assert cut(server, database) == 1
        gap = (await reader.next()).gap()
        assert (gap["reason"], gap["count"], gap["replayed"], gap["channels"]) == ("reconnect", None, True, [unique])
        assert await reader.next() == Got("message", "deaf", deaf)
        (after,) = await table.add("after")
        assert await reader.next() == Got("message", "after", after)
        assert table.asked == [before]


async def test_a_cut_without_replay(server: Server, database: str, unique: str) -> None:
    """A gap, and the stream goes on."""
    shop = Shop(database, unique, retry=2.5)
    async with serving(shop.app()) as running, browsers(running.url) as client, reading(client, "/stream") as reader:
        await client.get("/tell/before")
        assert (await reader.next()).data == "before"
        assert reader.parser.retry == 2500
        cut(server, database)
        gap = (await reader.next()).gap()
        assert (gap["reason"], gap["count"], gap["replayed"]) == ("reconnect", None, False)
        await client.get("/tell/after")
        assert (await reader.next()).data == "after"


async def test_clients_come_while_the_database_is_down(server: Server, database: str, unique: str) -> None:
    """They are let in after `timeout`, kept alive, and told of the gap when it works; readiness says 503 meanwhile."""
    with FaultProxy.to(server.tcp_url) as proxy:
        shop = Shop(proxy.url(database), unique, timeout=0.05, keep_alive=0.05)
        proxy.refuse()
        async with serving(shop.app()) as running, browsers(running.url) as client:
            assert (await client.get("/ready")).status_code == 503
            async with reading(client, "/stream") as reader, connect(f"{running.websocket_url}/feed") as socket:
                ready = await client.get("/ready")
                assert (ready.status_code, ready.json()["ready"]) == (503, False)
                assert "the database has not answered yet" in ready.json()["troubles"]
                await reader.kept_alive(2)
                proxy.accept()
                assert (await reader.next()).gap()["reason"] == "reconnect"
                frame = json.loads(await asyncio.wait_for(socket.recv(), LIMIT))
                assert (frame["event"], frame["data"]["reason"]) == ("gap", "reconnect")
                await client.get("/tell/word")
                assert (await reader.next()).data == "word"
                assert json.loads(await socket.recv()) == {"event": "message", "id": None, "data": "word"}

            async def ready_now() -> bool:
                return (await client.get("/ready")).status_code == 200

            await until(ready_now)
            links = {link["role"]: link["state"] for link in (await client.get("/ready")).json()["links"]}
            assert links["listen"] == "ready"


@pytest.mark.long
async def test_a_slow_client_harms_nobody(database: str, unique: str) -> None:
    """One does not read: its queue fills, it is told how many it has lost, and the others have everything."""
    shop = Shop(database, unique, capacity=5)
    word = "x" * 7000
    async with serving(shop.app()) as running, browsers(running.url) as client:
        async with reading(client, "/stream") as slow, reading(client, "/stream") as quick:
            sent = 0
            while not any(one["dropped"] for one in dropped(shop)):
                sent += 1
                await shop.c.publish(unique, f"{sent} {word}")
                assert (await quick.next()).data.startswith(f"{sent} ")
                assert sent < 2000, "the network takes it all"
            await shop.c.publish(unique, "last")
            assert (await quick.next()).data == "last"
            got: list[Got] = [await slow.next()]
            while got[-1].data != "last":
                got.append(await slow.next())
            lost = sum(event.gap()["count"] for event in got if event.event == "gap")
            assert lost > 0
            assert lost + sum(event.event == "message" for event in got) == sent + 1


def dropped(shop: Shop) -> list[dict[str, int]]:
    route = shop.c._messages().broker._routes[shop.channel]
    return [{"dropped": sink.statistics().dropped} for sink in route._sinks]  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "behind a middleware"])
async def test_a_client_that_goes(database: str, unique: str, wrapped: bool) -> None:
    """Its subscription ends at once, however long nothing is published."""

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            found: Response = await call_next(request)
            return found

    shop = Shop(database, unique)
    app = shop.app(middleware=[Middleware(Passing)] if wrapped else [])
    async with serving(app) as running, browsers(running.url) as client:
        async with reading(client, "/stream"):
            assert shop.subscriptions == 1
        await eventually_async(lambda: shop.subscriptions == 0, what="the subscription ends")


async def test_tasks_in_the_background(unique: str) -> None:
    """What a path operation of FastAPI leaves to be done after its answer is done after the stream."""
    shop, done = Shop(f"memory://{unique}", unique), list[int]()
    app = FastAPI(lifespan=lifespan(shop.make))

    async def afterwards() -> None:
        done.append(shop.subscriptions)

    @app.get("/stream")
    async def stream(request: Request, tasks: BackgroundTasks) -> Response:
        tasks.add_task(afterwards)
        return sse(request, unique)

    async with serving(app) as running, browsers(running.url) as client:
        async with reading(client, "/stream"):
            assert done == []
        await eventually_async(lambda: done == [0], what="the task is done")


async def test_head(database: str, unique: str) -> None:
    """Only headers: nothing listens."""
    shop = Shop(database, unique)
    async with serving(shop.app()) as running, browsers(running.url) as client:
        answer = await client.head("/stream")
        assert (answer.status_code, answer.headers["x-accel-buffering"]) == (200, "no")
        assert shop.subscriptions == 0
