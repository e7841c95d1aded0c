"""A websocket that gets the messages of channels.

States: *connecting* --listening is proven, or ``timeout``--> *accepted* --either side closes, the server ends, the
coordinator is closed, a replay raises--> *closed*, with the subscription. Our side closes with 1012, *service restart*:
come back. Each message is one text frame, an object in JSON; so is a gap.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ...pubsub.message import Message
from ...pubsub.overflow import Overflow
from ..eventstream import ServerEvent
from .ending import until_first
from .feed import Encode, Feed, Missed, Order, Replay, number
from .lifespan import coordinator, ending_of

__all__ = ["websocket_feed"]

_RESTART: Final = 1012
_LAST_WORD: Final = 1.0

OnMessage = Callable[[str | bytes], Awaitable[object]]


async def websocket_feed(
    websocket: WebSocket,
    *channels: str,
    encode: Encode | None = None,
    replay: Replay | None = None,
    order: Order = number,
    after: str | None = None,
    where: Callable[[Message], bool] | None = None,
    capacity: int = 256,
    overflow: Overflow = "drop_oldest",
    timeout: float | None = 10.0,
    on_message: OnMessage | None = None,
) -> None:
    """Send the messages of channels to a websocket, until either side ends. All clients share one LISTEN.

    Each frame is a text in JSON: ``{"event": …, "id": …, "data": …}``. ``event`` is ``"message"``, or with several
    channels the name of the channel; ``data`` is a text. Where messages are missing there is
    ``{"event": "gap", "data": {…}}`` with the fields of ``Missed``.

    :param websocket: one that was accepted, or not yet: then it is accepted when listening is proven.
    :param after: the id of the last event that the client has: with ``replay`` what came after it is sent first,
        without it a gap. A client says it in the address, say.
    :param on_message: is awaited for each frame that the client sends. Without it a text ``ping`` is answered by the
        text ``pong``, and the rest is dropped. While it runs, nobody sees that the client has left. The pings of the
        websocket protocol are the server's business.

    The other parameters are as for ``sse``. Whatever ``replay`` or ``on_message`` raises ends the feed and is raised
    here, when the subscription has ended. Raises ``ConfigurationError``, also when the application has no coordinator.
    """
    feed = Feed(
        coordinator(websocket),
        channels,
        encode=encode,
        replay=replay,
        order=order,
        after=after,
        where=where,
        capacity=capacity,
        overflow=overflow,
        keep_alive=None,
        timeout=timeout,
    )
    client = _Client(websocket)
    try:
        if websocket.client_state == WebSocketState.CONNECTING:
            await websocket.receive()  # so that one who leaves before we accept is seen by "read"
        await until_first(feed.run(client), ending_of(websocket).wait(), client.read(on_message))
    except WebSocketDisconnect:
        return
    if websocket.application_state != WebSocketState.DISCONNECTED and not client.gone:
        try:
            async with asyncio.timeout(_LAST_WORD):
                await websocket.close(_RESTART)
        except (WebSocketDisconnect, TimeoutError):
            return


class _Client:
    """The one at the other end."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._turn = asyncio.Lock()
        self.gone = False

    async def open(self) -> None:
        if self._websocket.application_state == WebSocketState.CONNECTING:
            try:
                await self._websocket.accept()
            except OSError as gone:
                raise WebSocketDisconnect(1006) from gone

    async def read(self, on_message: OnMessage | None) -> None:
        """Return when the client has left."""
        while (frame := await self._websocket.receive())["type"] != "websocket.disconnect":
            text = frame.get("text")
            said: str | bytes = frame.get("bytes") or b"" if text is None else text
            if on_message is not None:
                await on_message(said)
            elif said == "ping":
                await self._say("pong")
        self.gone = True

    async def event(self, event: ServerEvent) -> None:
        await self._frame(event.event or "message", event.data, id=event.id)

    async def missed(self, missed: Missed) -> None:
        await self._frame("gap", asdict(missed))

    async def idle(self) -> None:
        """Nothing: the protocol has pings of its own."""

    async def _frame(self, event: str, data: Any, **more: Any) -> None:
        await self._say(json.dumps({"event": event, **more, "data": data}))

    async def _say(self, text: str) -> None:
        async with self._turn:
            if self._websocket.application_state != WebSocketState.DISCONNECTED:  # on_message may have closed it
                await self._websocket.send_text(text)
