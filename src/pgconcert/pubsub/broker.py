"""The broker of one coordinator: which channels are heard, who gets their messages, and how messages are sent.

Theory. There is one route for each channel that somebody wants (``route.py``), and no more than that is heard. Whoever
wants messages is a *sink* (an inbox, mostly); it enters by being added to its routes *before* anything is awaited, so
nothing is lost between the proof of listening and the return to its owner. Whoever leaves is removed at once.

A broker lives on the event loop of its coordinator, and so does everything that it calls. It ends with the coordinator:
then every sink gets ``BrokerClosed`` as its last word, behind what is queued.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from ..errors import BrokerClosed, PayloadTooLarge, PublishManyFailed, SchemaMissing, Unavailable
from ..events import EventStream, MessagesMissed
from ..keys import KeySpace
from ..messenger import Answer, Messenger
from .message import Gap, Message
from .outgoing import MAX_PAYLOAD, NOTHING, Outgoing, announced, outgoing, plain, too_large
from .overflow import Sink
from .route import Route

__all__ = ["MAX_PAYLOAD", "NOTHING", "Broker", "Outgoing", "plain"]

_FAREWELL: Final = 1.0
_AT_ONCE: Final = 500


class Broker:
    """Routes and sends. Internal: the coordinator's verbs stand in ``messaging.py``."""

    def __init__(
        self,
        messenger: Messenger,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        keys: KeySpace,
        *,
        payloads: bool,
        spill_ttl: float,
    ) -> None:
        self.messenger = messenger
        self.loop = loop
        self.events = events
        self.keys = keys
        self.counts = events.tally.messages
        self.sender = os.urandom(8).hex()
        """Who we are in envelopes."""
        self.everything: list[Sink[Message]] = []
        """Who gets the messages of all channels that are heard."""
        self.closed = False
        self.draining = False
        """Whether handlers come to their end: they may still send."""
        self.on_wanted: Callable[[bool], None] = _nobody
        """Told when something begins to be listened to, and when nothing is any more."""
        self.handlers: set[asyncio.Task[None]] = set()
        """The tasks that call handlers."""
        self._payloads = payloads
        self._spill_ttl = spill_ttl
        self._routes: dict[str, Route] = {}
        self._missed: Gap | None = None
        self._missed_by = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._replies: set[asyncio.Task[object]] = set()
        self._enders: list[Callable[[], Awaitable[object]]] = []

    # hearing

    async def enter(self, channels: Iterable[str], sink: Sink[Message], timeout: float | None = None) -> None:
        """Let a sink have the messages of some channels. Returns when all that is sent from now on is heard.

        Raises ``Unavailable`` after ``timeout`` seconds, and what ends the attempts to connect. Nothing stays behind
        when it raises or is cancelled.
        """
        names = [*channels]
        self.check_here()
        if self.draining:
            raise BrokerClosed("the coordinator is being closed: nothing new can be listened to")
        routes = [self._joined(name, sink) for name in names]
        try:
            async with asyncio.timeout(timeout):
                for route in routes:
                    await route.heard_from_now_on(sink)
        except TimeoutError:
            self.leave(names, sink)
            failure = next((route.failure for route in routes if route.failure is not None), None)
            raise Unavailable(
                f"listening to {', '.join(map(repr, names[:3]))} could not be proven within {timeout:g} s: "
                f"{failure or 'the server has not answered yet'}"
            ) from failure
        except BaseException:
            self.leave(names, sink)
            raise

    def leave(self, channels: Iterable[str], sink: Sink[Message]) -> None:
        """Let it have no more of them."""
        for name in channels:
            route = self._routes.get(name)
            if route is not None and route.has(sink) and route.remove(sink):
                self._forget(route)

    def _forget(self, route: Route) -> None:
        del self._routes[route.name]
        if not self.closed:
            self.messenger.unlisten(route.name, route)
            if not self._routes:
                self.on_wanted(False)

    def forget_held(self, channel: str, sink: Sink[Message]) -> None:
        """Let a sink have nothing of what came before now and waits behind a large payload."""
        route = self._routes.get(channel)
        if route is not None:
            route.forget_held(sink)

    def tap(self, sink: Sink[Message], wanted: bool) -> None:
        """Let a sink have the messages of all channels that are heard for anybody, or no more."""
        if wanted:
            self.everything.append(sink)
        elif sink in self.everything:
            self.everything.remove(sink)
        for route in self._routes.values():
            route.refresh()

    def _joined(self, name: str, sink: Sink[Message]) -> Route:
        route = self._routes.get(name)
        if route is not None:
            route.add(sink)
            return route
        route = self._routes[name] = Route(self, name)
        route.add(sink)
        self.messenger.listen(name, route)
        if len(self._routes) == 1:
            self.on_wanted(True)
        return route

    def ended(self, route: Route) -> None:
        """Nobody tries any more to hear a route's channel: whoever wants it next begins anew."""
        if self._routes.get(route.name) is route:
            self._forget(route)

    def missed(self, gap: Gap, subscribers: int) -> None:
        """A route was deaf. All that come back together are told as one event."""
        if self._missed is None:
            self._missed = gap
            self._missed_by = subscribers
            self.loop.call_soon(self._tell_missed)
        else:
            self._missed = self._missed.joined(gap)
            self._missed_by += subscribers

    def _tell_missed(self) -> None:
        gap, self._missed = self._missed, None
        if gap is not None:
            self.events.emit(
                MessagesMissed(
                    channels=gap.channels,
                    reason=gap.reason,
                    count=gap.count,
                    since=gap.since,
                    subscribers=self._missed_by,
                )
            )

    # sending

    outgoing = staticmethod(outgoing)

    def hand_in(self, message: Outgoing, answer: Answer[bool]) -> bool:
        """Send a message at once, if that is all it takes. False: it is too large, ``send`` it."""
        wire = self.wire(message)
        if wire is None:
            return False
        self.messenger.publish(message.channel, wire, answer)
        return True

    def wire(self, message: Outgoing) -> bytes | None:
        """What travels; ``None``: it is too large, ``send`` it. Safe from any thread."""
        return message.wire(self.sender)

    async def send(self, message: Outgoing) -> None:
        """Send a message of any size, and return when the server has it. Cancelled, it may be sent all the same."""
        self.check_open()
        answer: asyncio.Future[bool] = self.loop.create_future()
        try:
            if not self.hand_in(message, answer):
                self.messenger.publish(message.channel, await self._spilled(message), answer)
            if answer.done():
                answer.exception()  # read, should we be cancelled here
                await asyncio.sleep(0)
            await answer
        except Exception:
            self.counts.failed += 1
            raise
        self.counts.published += 1

    async def send_all(self, messages: Sequence[Outgoing]) -> None:
        """Send several, in their order. Raises ``PublishManyFailed``; of large payloads none is announced before all
        are kept."""
        self.check_open()
        failures: dict[int, Exception] = {}
        wires: list[bytes] = []
        for place, message in enumerate(messages):
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # others have work to do as well
            wire = self.wire(message)
            if wire is None:
                try:
                    wire = await self._spilled(message)
                except Exception as failure:
                    failures[place] = failure
            wires.append(wire or b"")
        answers: dict[int, asyncio.Future[bool]] = {}
        try:
            for place, (message, wire) in enumerate(zip(messages, wires, strict=True)):
                if place % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
                if place not in failures:
                    answers[place] = self.loop.create_future()
                    self.messenger.publish(message.channel, wire, answers[place])
            if answers:
                await asyncio.wait(answers.values())
        except BaseException:
            for answer in answers.values():
                answer.cancel()  # nobody will read them
            raise
        for place, answer in answers.items():
            error = answer.exception()
            if isinstance(error, Exception):
                failures[place] = error
        self.counts.published += len(messages) - len(failures)
        self.counts.failed += len(failures)
        if failures:
            raise PublishManyFailed(len(messages), dict(sorted(failures.items())))

    async def _spilled(self, message: Outgoing) -> bytes:
        """Keep the payload on the server: the envelope that announces it."""
        said = too_large(message)
        if not self._payloads:
            raise PayloadTooLarge(f"{said}, and this backend keeps no payloads: send less, or a reference")
        number: asyncio.Future[int] = self.loop.create_future()
        self.messenger.spill(message.payload, self._spill_ttl, number)
        try:
            return announced(message, await number, self.sender)
        except SchemaMissing as missing:
            raise PayloadTooLarge(f"{said}; larger ones need our tables: {missing}") from missing

    # life

    def check_open(self) -> None:
        """Raise ``BrokerClosed`` after the end."""
        if self.closed:
            raise BrokerClosed("the coordinator is closed")

    def check_here(self) -> None:
        """Raise ``BrokerClosed`` after the end, and ``RuntimeError`` on a foreign event loop."""
        self.check_open()
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this coordinator was opened on another event loop; use it there, or open one here")

    def reply(self, work: Coroutine[Any, Any, object]) -> None:
        """Run what sends a reply; the end waits for it a moment."""
        self._replies.add(reply := self.task(work, "pgconcert reply"))
        reply.add_done_callback(self._replies.discard)

    def task(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """Run something in the background that ends with the broker at the latest."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def at_end(self, ender: Callable[[], Awaitable[object]]) -> Callable[[], None]:
        """Await ``ender`` before the broker closes. Returns the way to forget it."""
        self._enders.append(ender)

        def forget() -> None:
            if ender in self._enders:
                self._enders.remove(ender)

        return forget

    @property
    def listens(self) -> bool:
        """Whether anybody wants to hear anything."""
        return bool(self._routes)

    @property
    def in_handler(self) -> bool:
        """Whether the running task calls a handler."""
        return asyncio.current_task() in self.handlers

    @property
    def drains(self) -> bool:
        """Whether closing has to wait for anybody."""
        return bool(self._enders or self._replies)

    async def close(self) -> None:
        """End everything that listens. Whoever has a bound of its own keeps to it. Idempotent."""
        if self.closed:
            return
        self.draining = True
        while self._enders:  # some may open while others close
            enders, self._enders = self._enders, []
            await asyncio.gather(*(ender() for ender in enders), return_exceptions=True)
        if self._replies:
            await asyncio.wait(self._replies, timeout=_FAREWELL)
        self.closed = True
        self.on_wanted(False)
        self.on_wanted = _nobody  # else we would refer to each other until we are collected
        error = BrokerClosed("the coordinator was closed")
        for name, route in [*self._routes.items()]:
            self.messenger.unlisten(name, route)
            route.fail(error)
        self._routes.clear()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _nobody(wanted: bool) -> None:
    """Nobody wants to know."""
