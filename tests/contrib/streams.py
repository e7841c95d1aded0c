"""What the tests of frameworks need: a server in this event loop, and readers of what it sends.

Here live `serving` (uvicorn on a port of its own), `Reader` (server-sent events, read by the rules of the HTML
standard) and a `Table` of events that is published as it grows. Theory: the parser shares nothing with the library's
encoder, and goes line by line as a browser does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import uvicorn
from psycopg.conninfo import conninfo_to_dict

from pgconcert import transaction
from pgconcert.testing import ServerSession, eventually_async
from tests.servers import Server

LIMIT = 30.0


@dataclass(frozen=True)
class Got:
    """An event as a reader dispatches it."""

    event: str
    data: str
    id: str

    def gap(self) -> dict[str, Any]:
        assert self.event == "gap", self
        found: dict[str, Any] = json.loads(self.data)
        return found


class Parser:
    """Text in, events out."""

    def __init__(self) -> None:
        self._rest = ""
        self._data: list[str] = []
        self._event = ""
        self._id = ""
        self.retry: int | None = None
        self.comments = 0

    def feed(self, text: str) -> list[Got]:
        """The events that are complete now."""
        found: list[Got] = []
        self._rest += text
        while True:
            end = next((place for place, sign in enumerate(self._rest) if sign in "\r\n"), None)
            if end is None or (self._rest[end] == "\r" and end + 1 == len(self._rest)):
                return found  # LF may follow
            line = self._rest[:end]
            self._rest = self._rest[end + (2 if self._rest[end : end + 2] == "\r\n" else 1) :]
            if line == "":
                if self._data:
                    found.append(Got(self._event or "message", "\n".join(self._data), self._id))
                self._data, self._event = [], ""
            else:
                self._field(line)

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "":
            self.comments += 1
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isdigit():
            self.retry = int(value)


class Reader:
    """Reads one stream; keeps what it has got."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.parser = Parser()
        self.got: list[Got] = []
        self._texts = response.aiter_text()

    async def next(self) -> Got:
        """The next event. `StopAsyncIteration` at the end of the stream."""
        async with asyncio.timeout(LIMIT):
            while not self.got:
                self.got += self.parser.feed(await anext(self._texts))
        return self.got.pop(0)

    async def kept_alive(self, times: int) -> None:
        """Read on until so many comments have come. What comes with them is kept."""
        async with asyncio.timeout(LIMIT):
            while self.parser.comments < times:
                self.got += self.parser.feed(await anext(self._texts))

    async def end(self) -> list[Got]:
        """Everything up to the end of the stream."""
        async with asyncio.timeout(LIMIT):
            async for text in self._texts:
                self.got += self.parser.feed(text)
        return self.got


@contextlib.asynccontextmanager
async def reading(
    client: httpx.AsyncClient, url: str, last_id: str | None = None, **options: Any
) -> AsyncIterator[Reader]:
    """A stream, opened: its headers are here."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with client.stream("GET", url, headers=headers, **options) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield Reader(response)


class Running:
    """A server of an application, in this event loop."""

    def __init__(self, server: uvicorn.Server, port: int, task: asyncio.Task[None]) -> None:
        self.server = server
        self.task = task
        self.url = f"http://127.0.0.1:{port}"
        self.websocket_url = f"ws://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[Running]:
    """The application on a port. It must end in good order within the limit."""
    config = uvicorn.Config(app, port=0, log_config=None, ws="websockets-sansio", lifespan="on", **options)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        await eventually_async(lambda: server.started or task.done(), LIMIT, what="the application serves")
        assert server.started, "the application did not start"
        yield Running(server, server.servers[0].sockets[0].getsockname()[1], task)
    finally:
        server.should_exit = True
        try:
            async with asyncio.timeout(LIMIT):
                await task
        except TimeoutError:
            server.force_exit = True
            await task
            raise AssertionError("the server did not end: something streams on") from None


class ByHand:
    """One connection to an application, without a server: what it is told goes into `inbox`, what it says is `sent`."""

    def __init__(self, app: Any, kind: str, path: str) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        scope = {"type": kind, "method": "GET", "path": path, "query_string": b"", "headers": []}
        self.task = asyncio.create_task(app(scope, self.inbox.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


class Table:
    """A table of events, published as it grows."""

    def __init__(self, url: str, channel: str) -> None:
        self.url = url
        self.channel = channel
        self.asked: list[str] = []
        with psycopg.connect(url) as connection:
            connection.execute("create table if not exists events (id bigserial primary key, channel text, data text)")

    async def add(self, *texts: str, publish: bool = True) -> list[str]:
        """Events, each in a transaction of its own, one writer at a time: their ids."""
        ids: list[str] = []
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            for text in texts:
                async with connection.transaction():
                    await transaction.lock(connection, f"events:{self.channel}")
                    cursor = await connection.execute(
                        "insert into events (channel, data) values (%s, %s) returning id", [self.channel, text]
                    )
                    row = await cursor.fetchone()
                    assert row
                    ids.append(str(row[0]))
                    if publish:
                        await transaction.publish(connection, self.channel, text, id=ids[-1])
        return ids

    async def since(self, last_id: str) -> AsyncIterator[tuple[str, str]]:
        self.asked.append(last_id)
        connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        try:  # not "async with": left open when a client goes in the middle of its commit
            cursor = await connection.execute(
                "select id, data from events where channel = %s and id > %s order by id", [self.channel, int(last_id)]
            )
            async for number, data in cursor:
                yield str(number), data
        finally:
            await connection.close()


def listeners(server: Server, url: str) -> list[ServerSession]:
    """The sessions of coordinators that listen, in the database of this address."""
    name = conninfo_to_dict(url)["dbname"]
    return [one for one in server.sessions() if one.database == name and "pgconcert-listen" in one.application_name]


def cut(server: Server, url: str) -> int:
    """Kill what listens: how many sessions it was."""
    return sum(server.kill_backend(one.pid) for one in listeners(server, url))
