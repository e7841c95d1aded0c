"""A route: what becomes of the notifications of one channel. Each is read once and handed to every sink.

Theory. A route is the ear of its channel (``messenger.py``). What a notification means is found out here: plain text,
or an envelope. Most are handed on at once. The payload of a large message must be fetched first: until it is here,
later messages of *this* channel queue up behind it (order per channel), and those of others do not.

States by what the messenger tells: *deaf* (new, or the link is down), *hearing*. Whoever enters waits for *hearing*.
When a route hears again, everybody who was inside gets a gap: messages were missed, nobody knows how many. Who has
entered meanwhile was promised nothing yet, and gets none.

A sink never raises and never waits, so no subscriber can hold up another, or the reader.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..errors import BrokerClosed, ConfigurationError, CoordinatorClosed, GivenUp
from ..events import EventStream, MessageMalformed, MessagesMissed
from ..messenger import Messenger
from .channels import RESERVED
from .envelope import Malformed, Spill, parse
from .message import NO_HEADERS, Gap, Message
from .overflow import ENDED, Sink

__all__ = ["Fetching", "Owner", "Route", "fetched"]

_PREFIX: Final = RESERVED.encode()
_made: Final = tuple.__new__
_now: Final = time.time
_MOST_HELD: Final = 10_000
_QUIET: Final = 1.0


class Owner(Protocol):
    """The broker, as its routes see it."""

    messenger: Messenger
    events: EventStream
    sender: str
    everything: list[Sink[Message]]

    def ended(self, route: Route) -> None:
        """Nobody tries any more to hear a route's channel: whoever wants it next begins anew."""

    def missed(self, gap: Gap, subscribers: int) -> None:
        """A route has missed messages while it was deaf."""


class Fetching:
    """Waits for a large payload. ``told`` is called once it is known what became of it."""

    __slots__ = ("_settled", "_spill", "_told")

    def __init__(self, spill: Spill, told: Callable[[bytes | None, str], None]) -> None:
        self._spill = spill
        self._told = told
        self._settled = False

    def done(self) -> bool:
        return self._settled

    def set_result(self, result: bytes | None, /) -> None:
        self._settled = True
        if result is None:
            self._told(None, "the payload of a large message is gone: its time to live is over")
        elif not self._spill.matches(result):
            self._told(None, "the payload of a large message is not the one that was announced")
        else:
            self._told(result, "")

    def set_exception(self, exception: Exception, /) -> None:
        self._settled = True
        self._told(None, f"the payload of a large message could not be fetched: {exception}")


def fetched(messenger: Messenger, spill: Spill, told: Callable[[bytes | None, str], None]) -> None:
    """Fetch a large payload; ``told`` gets it, or ``None`` and why there is none."""
    messenger.fetch(spill.number, Fetching(spill, told))


class _Held:
    """A message or a gap that waits behind a large payload, ``None`` while that is its own, and who gets it: those who
    were there when it came."""

    __slots__ = ("item", "sinks")

    def __init__(self, item: Message | Gap | None, sinks: Sequence[Sink[Message]]) -> None:
        self.item = item
        self.sinks = sinks


class Route:
    """The way of one channel's messages. See the module."""

    def __init__(self, owner: Owner, name: str) -> None:
        self.name = name
        self.hearing = False
        self.failure: Exception | None = None
        """Why there was no connection at the last attempt."""
        self._owner = owner
        self._sinks: dict[Sink[Message], None] = {}
        self._new: set[Sink[Message]] = set()
        self._puts: tuple[Callable[[Message], None], ...] = ()
        self._waiting: dict[asyncio.Future[None], Sink[Message]] = {}
        self._deaf_since: float | None = None
        self._over: Exception | None = None
        self._held: deque[_Held] | None = None
        self._complained = -_QUIET
        self._counts = owner.events.tally.messages

    def add(self, sink: Sink[Message]) -> None:
        """Let a sink have the messages from now on."""
        self._sinks[sink] = None
        if not self.hearing:
            self._new.add(sink)
        self.refresh()

    def has(self, sink: Sink[Message]) -> bool:
        """Whether a sink is here."""
        return sink in self._sinks

    def remove(self, sink: Sink[Message]) -> bool:
        """Let it have no more. True if that was the last."""
        del self._sinks[sink]
        self._new.discard(sink)
        self.refresh()
        for future in [future for future, other in self._waiting.items() if other is sink]:
            del self._waiting[future]
            if not future.done():
                future.set_exception(BrokerClosed(ENDED))
        return not self._sinks

    def forget_held(self, sink: Sink[Message]) -> None:
        """Let a sink have nothing of what came before now and waits behind a large payload."""
        for slot in self._held or ():
            slot.sinks = [other for other in slot.sinks if other is not sink]

    def refresh(self) -> None:
        """Work out again who gets messages."""
        self._puts = tuple(sink.put for sink in (*self._sinks, *self._owner.everything))

    async def heard_from_now_on(self, sink: Sink[Message]) -> None:
        """Return when the channel is heard. Raises ``ConfigurationError`` and ``GivenUp``, which end the attempts."""
        if self._over is not None:
            raise self._over
        if not self.hearing:
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = sink
            try:
                await future
            finally:
                self._waiting.pop(future, None)

    def fail(self, error: Exception) -> None:
        """The end, for everybody."""
        self._over = error
        self._settle(error)
        for sink in [*self._sinks]:
            sink.fail(error)

    # what the messenger tells

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self._counts.received += 1
        if payload.startswith(_PREFIX):
            self._enveloped(payload, pid, own)
            return
        # as Message(...) makes it, without that call: this runs for every message
        message = _made(Message, (self.name, payload, pid, own, _now(), None, NO_HEADERS, None, None))
        if self._held is not None:
            self._hold(_Held(message, self._present()))
            return
        for put in self._puts:
            put(message)

    def ready(self) -> None:
        self.hearing = True
        self.failure = None
        since, self._deaf_since = self._deaf_since, None
        if since is not None:
            until = max(since, time.time())
            gap = Gap(reason="reconnect", count=None, since=since, until=until, channels=(self.name,))
            told = [sink for sink in self._present() if sink not in self._new]
            if self._held is None:
                for sink in told:
                    sink.gap(gap)
            else:
                self._hold(_Held(gap, told))
            if told:
                self._owner.missed(gap, len(told))
        self._new.clear()
        self._settle(None)

    def deaf(self, reason: str) -> None:
        self.hearing = False
        if self._deaf_since is None:
            self._deaf_since = time.time()

    def failed(self, error: Exception) -> None:
        self.failure = error
        if isinstance(error, (GivenUp, CoordinatorClosed)):
            self._owner.ended(self)
            self.fail(error)
        elif isinstance(error, ConfigurationError):
            self._settle(error)

    # envelopes

    def _enveloped(self, raw: bytes, pid: int, own: bool) -> None:
        now = time.time()
        try:
            envelope = parse(raw)
        except Malformed as bad:
            self._complain(str(bad))
            self._deliver(Message(self.name, raw, pid, own, now, malformed=str(bad)))
            return
        if envelope.sender is not None:
            own = envelope.sender == self._owner.sender

        def message(payload: bytes) -> Message:
            return Message(
                self.name, payload, pid, own, now, envelope.id, envelope.headers or NO_HEADERS, envelope.reply_to
            )

        if envelope.spill is None:
            self._deliver(message(envelope.payload))
            return
        slot = _Held(None, self._present())

        def told(payload: bytes | None, why: str) -> None:
            if payload is not None:
                slot.item = message(payload)
            else:
                until = max(now, time.time())
                slot.item = Gap(reason="payload", count=1, since=now, until=until, channels=(self.name,))
                self._owner.events.emit(
                    MessagesMissed(
                        channels=(self.name,),
                        reason="payload",
                        count=1,
                        since=now,
                        subscribers=len(slot.sinks),
                        why=why,
                    )
                )
            self._let_go()

        if self._hold(slot):
            fetched(self._owner.messenger, envelope.spill, told)

    def _deliver(self, item: Message) -> None:
        if self._held is not None:
            self._hold(_Held(item, self._present()))
        else:
            for put in self._puts:
                put(item)

    def _present(self) -> tuple[Sink[Message], ...]:
        return (*self._sinks, *self._owner.everything)

    def _hold(self, slot: _Held) -> bool:
        """Queue behind a payload that is being fetched. False if too much is queued: then it is lost, and told."""
        if self._held is None:
            self._held = deque()
        if len(self._held) < _MOST_HELD:
            self._held.append(slot)
            return True
        now = time.time()
        lost = slot.item if isinstance(slot.item, Gap) else None
        gap = lost or Gap(reason="payload", count=1, since=now, until=now, channels=(self.name,))
        last = self._held[-1]
        if isinstance(last.item, Gap):
            last.item = last.item.joined(gap)
            last.sinks = tuple(dict.fromkeys((*last.sinks, *slot.sinks)))
        else:
            self._held.append(_Held(gap, slot.sinks))
        return False

    def _let_go(self) -> None:
        held = self._held
        while held and (item := held[0].item) is not None:
            present = {*self._present()}
            for sink in held.popleft().sinks:
                if sink in present:
                    if isinstance(item, Gap):
                        sink.gap(item)
                    else:
                        sink.put(item)
        if not held:
            self._held = None

    def _complain(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._complained >= _QUIET:
            self._complained = now
            self._owner.events.emit(MessageMalformed(channel=self.name, reason=reason))

    def _settle(self, error: Exception | None) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
