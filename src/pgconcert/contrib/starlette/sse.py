"""Server-sent events: messages for browsers, over an answer that does not end.

States of an answer, and who moves it: *not begun* (nothing was sent; an error is an error of the request, and the end
of the coordinator is 503) --listening is proven, or ``timeout``--> *begun* --the client goes, the server ends, the
coordinator is closed, a replay raises--> *over*. When it is over the subscription has ended too.

A client that reads too slowly stops its own stream in ``send``, and its queue fills. One that does not read at all
cannot be told of the end, so the last word to it is given up after a second.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ...acquiring import is_number
from ...errors import ConfigurationError, given
from ...pubsub.message import Message
from ...pubsub.overflow import Overflow
from ..eventstream import KEEP_ALIVE, ServerEvent, retry_line
from .ending import Ending, until_first
from .feed import Encode, Feed, Missed, Order, Replay, number
from .lifespan import coordinator, ending_of

__all__ = ["EventStreamResponse", "sse"]

_LAST_WORD: Final = 1.0


def sse(
    request: Request,
    *channels: str,
    encode: Encode | None = None,
    replay: Replay | None = None,
    order: Order = number,
    after: str | None = None,
    where: Callable[[Message], bool] | None = None,
    capacity: int = 256,
    overflow: Overflow = "drop_oldest",
    keep_alive: float = 15.0,
    retry: float | None = None,
    timeout: float | None = 10.0,
) -> EventStreamResponse:
    """Answer a request with the messages of channels, as server-sent events. All clients share one LISTEN.

    Each message is an event whose data is its text, and whose id is the id it was published with; with several channels
    the event has the name of its channel. Where messages are missing the client gets an event ``gap``, whose data are
    the fields of ``Missed`` in JSON; after a lost connection to PostgreSQL the stream goes on with one.

    :param channels: as for ``AsyncCoordinator.subscribe``, like ``where``, ``capacity`` (how many messages wait for
        this client, 256 by default) and ``overflow`` (with ``"error"`` a client that is too slow is cut off; with
        ``replay`` the other two are the same, since what falls out is replayed).
    :param encode: makes the ``ServerEvent`` of a message, or its data alone, or ``None`` to leave it out. A message for
        which it raises is a gap.
    :param replay: where events after ``Last-Event-ID`` come from; without it a client that comes back gets a gap. The
        ids that messages are published with must be those of the replay; what has none is sent live only.
    :param order: by what ids are compared; they are whole numbers by default. Take ``str`` for those that sort as text.
    :param after: the id to begin after when the client comes for the first time, without ``Last-Event-ID``: for a page
        that shows older events.
    :param keep_alive: seconds of silence after which a comment is sent, more than 0 to 3600.
    :param retry: after how many seconds a client that was cut off shall come back; its own habit by default.
    :param timeout: for how many seconds the answer waits for the proof that listening works. After them it begins all
        the same, and a gap follows when it works; ``None`` waits for ever.

    What was published after the client has got the headers arrives, or a gap does. The subscription ends when the
    client goes, the server ends or the coordinator is closed; tasks in the background of the answer are done after
    that. Whatever ``replay`` raises ends the stream and goes on to the server's log. Raises ``ConfigurationError``,
    also when the application has no coordinator.
    """
    if retry is not None and (not is_number(retry) or not 0 <= retry <= 86400):
        raise ConfigurationError(f"retry must be 0 to 86400 seconds, or None, not {given(retry)}")
    feed = Feed(
        coordinator(request),
        channels,
        encode=encode,
        replay=replay,
        order=order,
        after=_last_event_id(request) or after,
        where=where,
        capacity=capacity,
        overflow=overflow,
        keep_alive=keep_alive,
        timeout=timeout,
    )
    return EventStreamResponse(feed, ending_of(request), retry)


def _last_event_id(request: Request) -> str | None:
    found = request.headers.get("last-event-id")
    # a header is read as Latin-1, and browsers send UTF-8
    return None if found is None else found.encode("latin-1", "replace").decode("utf-8", "replace")


class EventStreamResponse(Response):
    """Made by ``sse``. It is sent once, and the subscription lives as long as that takes."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, feed: Feed, ending: Ending, retry: float | None) -> None:
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self._feed = feed
        self._ending = ending
        self._retry = retry
        # X-Accel-Buffering: a proxy that collects an answer before it passes it on would pass on nothing
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream(scope, receive, send)
        if self.background is not None:  # FastAPI puts the tasks of a path operation here
            await self.background()

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _Client(send, self)
        if scope["method"] == "HEAD":
            await client.start(more=False)
            return
        try:
            await until_first(self._feed.run(client), self._ending.wait(), _gone(receive, client))
        except OSError:
            if not client.gone:
                raise
        if client.gone:
            return
        try:
            async with asyncio.timeout(_LAST_WORD):
                if client.begun:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    answer = PlainTextResponse("the server is about to end\n", 503, {"retry-after": "1"})
                    await answer(scope, receive, send)
        except (OSError, TimeoutError):
            return


async def _gone(receive: Receive, client: _Client) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    client.gone = True


class _Client:
    """The one who reads the answer."""

    def __init__(self, send: Send, response: EventStreamResponse) -> None:
        self._send = send
        self._response = response
        self.begun = False
        self.gone = False

    async def start(self, *, more: bool = True) -> None:
        self.begun = True
        response = self._response
        await self._said({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        first = b"" if response._retry is None else retry_line(response._retry)
        await self._said({"type": "http.response.body", "body": KEEP_ALIVE + first if more else b"", "more_body": more})

    async def open(self) -> None:
        await self.start()

    async def event(self, event: ServerEvent) -> None:
        await self._write(event.lines())

    async def missed(self, missed: Missed) -> None:
        await self._write(ServerEvent(json.dumps(asdict(missed)), event="gap").lines())

    async def idle(self) -> None:
        await self._write(KEEP_ALIVE)

    async def _write(self, body: bytes) -> None:
        await self._said({"type": "http.response.body", "body": body, "more_body": True})

    async def _said(self, message: dict[str, object]) -> None:
        try:
            await self._send(message)
        except OSError:
            self.gone = True
            raise
