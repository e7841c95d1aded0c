"""Request and reply: a message that says where its answer is expected, and the answer.

Theory. A coordinator hears its replies on one channel of its own, for all its requests, while there are any; a request
carries an id, and a reply names the id that it answers. A message with a place for replies reaches every listener of
its channel, and each handler's return value is sent back: the first answer counts, whether it is a reply or an error;
later ones find nobody and are dropped. Nobody listens, or nobody answers in time: ``RequestTimeout`` at the deadline.

Each failure has an end: a handler that raises answers with an error; a reply that cannot be sent as it is answers with
an error that says so; whatever else happens on the way is told where it happens, and the requester's deadline covers
it. A reply is sent only to a channel for replies, so that no request can make a listener write elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError, CoordinatorClosed, GivenUp, PayloadInvalid, RequestFailed, RequestTimeout
from ..events import DeliveryFailed
from .broker import NOTHING, Broker
from .channels import reply_channel
from .envelope import Envelope, Malformed, looks_enveloped, parse
from .message import NO_HEADERS, Message
from .route import fetched

__all__ = ["Requests", "answer"]


class Requests:
    """The requests of one coordinator that wait for their replies."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._channel = reply_channel(broker.sender)
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._hearing: asyncio.Future[None] | None = None
        self._users = 0
        self._deaf = ""

    async def request(
        self, channel: object, payload: object, json: object, headers: Mapping[str, str] | None, timeout: float | None
    ) -> Message:
        """Send a request and wait for the first answer."""
        broker = self._broker
        request_id = os.urandom(16).hex()
        message = broker.outgoing(channel, payload, json, headers, request_id, reply_to=self._channel)
        broker.check_open()
        reply: asyncio.Future[Message] = broker.loop.create_future()
        self._users += 1
        try:
            self._waiting[request_id] = reply
            self._deaf = ""
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._join())
                await broker.send(message)
                return await reply
        except TimeoutError:
            why = f"; meanwhile the connection was lost: {self._deaf}" if self._deaf else ""
            raise RequestTimeout(
                f"nobody answered a request on {channel!r} within {timeout:g} s: nobody listens to it with a handler, "
                f"or the handler is slower than that{why}"
            ) from None
        finally:
            if reply.done() and not reply.cancelled():
                reply.exception()  # read: whoever has left must not be missed on the log
            self._waiting.pop(request_id, None)
            self._leave()

    def _join(self) -> asyncio.Future[None]:
        """Hear replies; done when that is proven."""
        if self._hearing is None:
            self._hearing = self._broker.loop.create_future()
            hearing = self._hearing
            self._broker.messenger.listen(self._channel, self)
            return hearing
        return self._hearing

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._stop_hearing()

    def _stop_hearing(self) -> None:
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            hearing.cancel()
            if not self._broker.closed:
                self._broker.messenger.unlisten(self._channel, self)

    def fail(self, error: Exception) -> None:
        """The coordinator is closed."""
        self._settle_hearing(error)
        for reply in [*self._waiting.values()]:
            if not reply.done():
                reply.set_exception(error)

    # what the messenger tells

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        if not looks_enveloped(payload):
            return
        try:
            envelope = parse(payload)
        except Malformed:
            return
        if envelope.answers not in self._waiting:
            return
        now = time.time()
        if envelope.spill is None:
            self._answered(envelope, envelope.payload, pid, now)
            return

        def told(body: bytes | None, why: str) -> None:
            if body is None:
                self._settle(envelope, RequestFailed(f"the reply cannot be had: {why}"))
            else:
                self._answered(envelope, body, pid, now)

        fetched(self._broker.messenger, envelope.spill, told)

    def ready(self) -> None:
        self._settle_hearing(None)

    def deaf(self, reason: str) -> None:
        self._deaf = reason
        if self._hearing is not None and self._hearing.done():
            self._hearing = self._broker.loop.create_future()

    def failed(self, error: Exception) -> None:
        self._deaf = str(error)
        # any other error is followed by another attempt
        if isinstance(error, (ConfigurationError, CoordinatorClosed, GivenUp)):
            self._settle_hearing(error)
            self._stop_hearing()

    def _settle_hearing(self, error: Exception | None) -> None:
        hearing = self._hearing
        if hearing is None or hearing.done():
            return
        if error is None:
            hearing.set_result(None)
        else:
            hearing.set_exception(error)
            hearing.exception()

    def _answered(self, envelope: Envelope, payload: bytes, pid: int, now: float) -> None:
        if envelope.error is not None:
            self._settle(envelope, RequestFailed(envelope.error))
            return
        own = envelope.sender == self._broker.sender
        headers = envelope.headers or NO_HEADERS
        self._settle(envelope, Message(self._channel, payload, pid, own, now, envelope.id, headers))

    def _settle(self, envelope: Envelope, outcome: Message | RequestFailed) -> None:
        reply = self._waiting.get(envelope.answers or "")
        if reply is None or reply.done():
            return
        if isinstance(outcome, Message):
            reply.set_result(outcome)
        else:
            reply.set_exception(outcome)


def answer(broker: Broker, message: Message, reply_to: str, result: object, failure: BaseException | None) -> None:
    """Send what a handler of a request returned, or that it raised."""
    if not broker.closed:
        broker.reply(_answer(broker, message, reply_to, result, failure))


async def _answer(
    broker: Broker, message: Message, reply_to: str, result: object, failure: BaseException | None
) -> None:
    def reply(payload: object, error: str | None) -> Any:
        said = {} if error is None else {"error": error[:1000]}
        return broker.send(broker.outgoing(reply_to, payload, NOTHING, None, ours=True, answers=message.id, **said))

    try:
        if failure is not None:
            await reply(b"", f"the handler raised {type(failure).__name__}: {failure}")
            return
        try:
            if not isinstance(result, (bytes, bytearray, memoryview, str, type(None))):
                raise PayloadInvalid(f"the handler returned a {type(result).__name__}; it must return bytes or a text")
            await reply(b"" if result is None else result, None)
        except PayloadInvalid as error:
            await reply(b"", f"the reply could not be sent: {error}")
    except Exception as error:
        broker.events.emit(DeliveryFailed(channel=message.channel, error=str(error)))
