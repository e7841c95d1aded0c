"""A transport of somebody else's: messages between the coordinators of one event loop, through one list of ears.

Here lives a backend that an application might plug in, made of nothing but the published ports: locks are the example's
(`examples/toy_backend.py`), messages go through a `Pipe`. Theory: everything that is sent is one call handed to the
loop, which runs such calls in order; so order needs no care, and a proof is a call that arrives behind all others. An
ear that was taken away meanwhile hears nothing, because it is looked for when the call arrives.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from typing import NoReturn

from examples.toy_backend import ToyBackend, World
from pgconcert import BrokerClosed, Hearing
from pgconcert.backend import GRANTED, Capability, Claim, Health
from pgconcert.events import EventStream, ListenerBounced, ListenerReady
from pgconcert.hold import Grant, Waiter
from pgconcert.messenger import Answer, Ear

Ears = dict[tuple[str, int], tuple["PipeMessenger", Ear]]
_numbers = itertools.count(1)


class Pipe:
    """What several coordinators share: the lines of their locks, and who hears what."""

    def __init__(self) -> None:
        self.locks: World = {}
        self.ears: Ears = {}


class PipeMessenger:
    """The port `Messenger` for messages that fit into a notification."""

    def __init__(self, pipe: Pipe, events: EventStream) -> None:
        self._pipe = pipe
        self._pid = next(_numbers)
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._closed = False
        self._deaf = False
        self._hearing = Hearing()

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        if self._closed:
            answer.set_exception(BrokerClosed("the coordinator is closed"))
        else:
            self._loop.call_soon(self._deliver, channel.decode(), payload)
            self._loop.call_soon(self._settle, answer)

    def listen(self, channel: str, ear: Ear) -> None:
        if self._closed:
            ear.failed(BrokerClosed("the coordinator is closed"))
            return
        self._pipe.ears[channel, id(ear)] = self, ear
        if not self._hearing.connects:
            self._link_up()
        if not self._deaf:
            ear.ready()

    def unlisten(self, channel: str, ear: Ear) -> None:
        self._pipe.ears.pop((channel, id(ear)), None)

    def prove(self, answer: Answer[float]) -> None:
        if self._closed:
            answer.set_exception(BrokerClosed("the coordinator is closed"))
        else:
            self._loop.call_soon(self._proven, answer, time.monotonic())

    def bounce(self, reason: str) -> None:
        """A fresh pipe is as good as the old one; all are deaf for a turn of the loop, and are told so."""
        if self._deaf or not self._mine():
            return
        self._deaf = True
        self._events.emit(ListenerBounced(reason=reason))
        for ear in self._mine():
            ear.deaf(reason)
        self._loop.call_soon(self._bounced)

    def hearing(self) -> Hearing:
        return self._hearing

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> NoReturn:
        raise AssertionError("the capabilities do not say payloads")

    def fetch(self, number: int, answer: Answer[bytes | None]) -> NoReturn:
        raise AssertionError("the capabilities do not say payloads")

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> NoReturn:
        raise AssertionError("the capabilities do not say claims")

    def close(self) -> None:
        self._closed = True
        self._hearing = dataclasses.replace(self._hearing, proven=False)
        for key, (messenger, ear) in [*self._pipe.ears.items()]:
            if messenger is self:
                del self._pipe.ears[key]
                if not self._deaf:
                    ear.deaf("the coordinator was closed")

    def _mine(self) -> list[Ear]:
        return [ear for messenger, ear in self._pipe.ears.values() if messenger is self]

    def _link_up(self) -> None:
        """Whoever hears at all hears itself: the pipe has no other end."""
        connects, now = self._hearing.connects, time.monotonic()
        self._hearing = dataclasses.replace(self._hearing, proven=True, connects=connects + 1, own_at=now, latency=0.0)
        self._events.emit(
            ListenerReady(channels=len(self._mine()), initial=not connects, deaf_for=0.0 if connects else None)
        )

    def _bounced(self) -> None:
        if self._closed:
            return
        self._deaf = False
        self._link_up()
        for ear in self._mine():
            ear.ready()

    def _deliver(self, channel: str, payload: bytes) -> None:
        for key, (messenger, ear) in [*self._pipe.ears.items()]:
            if key[0] == channel and key in self._pipe.ears and not messenger._deaf:
                messenger._note(self)
                ear.heard(payload, self._pid, messenger is self)

    def _note(self, sender: PipeMessenger) -> None:
        now = time.monotonic()
        if sender is self:
            self._hearing = dataclasses.replace(self._hearing, own_at=now)
        else:
            self._hearing = dataclasses.replace(self._hearing, others_at=now)

    def _proven(self, answer: Answer[float], since: float) -> None:
        now = time.monotonic()
        self._hearing = dataclasses.replace(self._hearing, proven=True, own_at=now, latency=now - since)
        if not answer.done():
            answer.set_result(now - since)

    def _settle(self, answer: Answer[bool]) -> None:
        if not answer.done():
            answer.set_result(True)


class PipeBackend(ToyBackend):
    """The example's locks, and a transport."""

    messenger: PipeMessenger | None = None  # type: ignore[assignment]

    def __init__(self, pipe: Pipe, name: str | None = None) -> None:
        super().__init__(pipe.locks, name)
        self._pipe = pipe

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset(("exclusion", "messages"))

    async def open(self, events: EventStream) -> None:
        await super().open(events)
        self.messenger = PipeMessenger(self._pipe, events)

    async def close(self) -> None:
        if self.messenger is not None:
            self.messenger.close()
        await super().close()

    def health(self) -> Health:
        hearing = None if self.messenger is None else self.messenger.hearing()
        return dataclasses.replace(super().health(), hearing=hearing)

    def confirm(self, claim: Grant, waiter: Waiter) -> None:
        """For `delivery="one-process"`: there is no connection that a lock could be lost with."""
        assert isinstance(claim, Claim)
        if not waiter.done():
            waiter.set_result(claim.state == GRANTED)
