"""The example for FastAPI as its first lines start it: a process of its own, real clients, a database that goes away.

Here live tests of `examples/fastapi_app.py`. Theory: the application speaks to the server through a proxy, so that the
test can kill sessions (a reconnect follows at once) and shut the way (it is down until the test opens it again).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest
from websockets.asyncio.client import connect

from pgconcert import AsyncCoordinator
from pgconcert.testing import FaultProxy, eventually_async
from tests.contrib.streams import LIMIT, Got, Reader, cut, listeners, reading
from tests.processes import spawn, stop
from tests.servers import Server, free_port

ROOT = Path(__file__).resolve().parents[2]
START = 60.0
"""Seconds: an interpreter and its imports on a machine that has a lot to do."""

pytestmark = pytest.mark.timeout(240)


class App:
    """The example, running."""

    def __init__(self, url: str, output: Path, *options: str) -> None:
        self.port = free_port()
        self.output = output
        environment = {"PGCONCERT_URL": url, "REPORT_EVERY": "0.05", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "uvicorn", "examples.fastapi_app:app", "--port", str(self.port)]
        command += ["--no-access-log", *options]
        with output.open("ab") as log:
            self.process: subprocess.Popen[bytes] = spawn(
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment
            )

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client, as soon as the application is ready."""
        limits = httpx.Limits(max_connections=None)
        url = f"http://127.0.0.1:{self.port}"
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=LIMIT, trust_env=False) as client:
            await self.ready(client, 200, START)
            yield client

    async def ready(self, client: httpx.AsyncClient, status: int, limit: float = LIMIT) -> None:
        """Wait until the readiness probe gets this status."""
        said = ""
        try:
            async with asyncio.timeout(limit):
                while True:
                    assert self.process.poll() is None, self.story()
                    with contextlib.suppress(httpx.TransportError):
                        answer = await client.get("/ready")
                        if answer.status_code == status:
                            return
                        said = answer.text
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"readiness never was {status}, at last {said}\n{self.story()}") from None

    def reporters(self) -> list[int]:
        """Which processes did the job, in order."""
        return [int(pid) for pid in re.findall(r"^report by (\d+)$", self.output.read_text(), flags=re.MULTILINE)]

    def end(self) -> int:
        """Tell it to end as its supervisor would; its code."""
        stop(self.process, signal.SIGTERM, LIMIT)
        return self.process.returncode

    def story(self) -> str:
        return self.output.read_text()[-4000:]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., App]]:
    with ExitStack() as stack:

        def start(url: str, *options: str) -> App:
            app = App(url, tmp_path / "output", *options)
            stack.callback(app.end)
            return app

        yield start


@pytest.fixture(autouse=True)
def no_orders(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("drop table if exists orders")


async def order(client: httpx.AsyncClient, item: str) -> str:
    answer = await client.post("/orders", json={"item": item})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def with_gap(next_event: Callable[[], Awaitable[Got]], *, replayed: bool = True) -> Got:
    """The next message, when a gap was told as well: before it, or behind it if a replay was still under way."""
    gaps: list[Got] = []
    messages: list[Got] = []
    while not gaps or not messages:
        got = await next_event()
        (gaps if got.event == "gap" else messages).append(got)
    assert all(gap.gap()["replayed"] is replayed for gap in gaps)
    (message,) = messages
    return message


async def test_while_the_database_comes_and_goes(server: Server, database: str, start: Callable[..., App]) -> None:
    """Streams and sockets stay through a killed connection and an outage, are told of each, and miss no order."""
    with FaultProxy.to(server.tcp_url) as proxy:
        app = start(proxy.url(database), "--timeout-graceful-shutdown", "10")
        async with (
            app.client() as client,
            reading(client, "/orders/stream") as live,
            reading(client, "/orders/stream?after=0") as page,
            connect(f"ws://127.0.0.1:{app.port}/orders/feed?after=0") as socket,
        ):

            async def frame() -> Got:
                said = json.loads(await asyncio.wait_for(socket.recv(), LIMIT))
                data = said["data"] if isinstance(said["data"], str) else json.dumps(said["data"])
                return Got(said["event"], data, said.get("id", ""))

            # guarded by a lock that somebody else has; and the job is done
            async with AsyncCoordinator(database, name="the other") as c, c.lock("refresh"):
                answer = await client.post("/refresh")
            assert answer.status_code == 409
            assert "the other" in answer.json()["detail"]
            assert (await client.post("/refresh")).json() == {"refreshed by": app.process.pid}
            assert "EventSource" in (await client.get("/")).text
            await eventually_async(lambda: set(app.reporters()) == {app.process.pid}, what="the job is done")

            everybody = (live.next, page.next, frame)
            # killed before it has heard anything: a stream without a last id is told that something may be missing
            assert cut(server, database) == 1
            assert (await live.next()).gap()["replayed"] is False
            first = Got("message", "apples\nand pears", await order(client, "apples\nand pears"))
            assert await live.next() == first
            for next_event in (page.next, frame):
                assert await with_gap(next_event) == first

            # killed again, while an order comes: it is there in any case, replayed or heard
            assert cut(server, database) == 1
            second = Got("message", "plums", await order(client, "plums"))
            for next_event in everybody:
                assert await with_gap(next_event) == second

            # an outage: readiness says so, the clients stay
            proxy.refuse()
            proxy.cut()
            await app.ready(client, 503)
            with psycopg.connect(database) as connection:  # somebody else orders, and tells nobody
                row = connection.execute("insert into orders (item) values ('figs') returning id").fetchone()
            assert row
            proxy.accept()
            third = Got("message", "figs", str(row[0]))
            for next_event in everybody:
                assert await with_gap(next_event) == third
            await app.ready(client, 200)

            # a browser that was away
            async with reading(client, "/orders/stream?after=0", first.id) as back:
                assert [await back.next(), await back.next()] == [second, third]
            assert len(listeners(server, database)) == 1

            # the end
            app.process.send_signal(signal.SIGTERM)
            assert {event.event for event in await live.end() + await page.end()} <= {"gap"}
        assert app.end() in (0, -signal.SIGTERM), app.story()
        assert "Traceback" not in app.story(), app.story()


@pytest.mark.long
async def test_several_workers(server: Server, database: str, start: Callable[..., App]) -> None:
    """Each worker tells its browsers of all orders; one of them does the job, and another when it is killed."""
    app = start(database, "--workers", "3")
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(app.client())
        readers: list[Reader] = []
        while len(listeners(server, database)) < 3:  # whichever worker takes a connection
            readers.append(await stack.enter_async_context(reading(client, "/orders/stream")))
            assert len(readers) < 200, app.story()
        numbers = [await order(client, str(one)) for one in range(5)]
        for reader in readers:
            assert [(await reader.next()).id for _ in numbers] == numbers
        await eventually_async(lambda: len(app.reporters()) >= 3, LIMIT, what="the job is done")
        (first,) = set(app.reporters())
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: app.reporters()[-1] != first, LIMIT, what="another does the job")
        changes = [pid for pid, before in zip(app.reporters()[1:], app.reporters(), strict=False) if pid != before]
        assert len(changes) == 1
