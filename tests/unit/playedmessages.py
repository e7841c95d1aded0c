"""A backend for messages that we play ourselves: the test says what is heard, what is answered, and when.

Theory: nothing happens here by itself. An ear is told that it hears when the test hears for it, at once for channels
that are heard already; so every order of events can be played, and none depends on time.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgconcert import AsyncCoordinator
from pgconcert.backend import Capability, Claim, Describer, Health
from pgconcert.events import EventStream
from pgconcert.hold import Grant, Waiter
from pgconcert.keys import LockKey
from pgconcert.messenger import Answer, Ear, Hearing


class Locks:
    """Grants everything at once."""

    def acquire(self, claim: Claim) -> None:
        claim.waiter.set_result(True)

    def withdraw(self, claim: Claim) -> None: ...

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        if waiter is not None:
            waiter.set_result(True)

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.acquire(claim)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        if waiter is not None:
            waiter.set_result(True)

    def drop(self, claim: Grant) -> None: ...

    def describe(self, key: LockKey, waiter: Describer) -> None:
        waiter.set_result(())


class Messages:
    """The port. ``ears`` are those that listen now, ``asked`` the channels in the order of asking."""

    def __init__(self, *heard: str) -> None:
        self.heard_at_once = {*heard}
        self.ears: dict[str, list[Ear]] = {}
        self.asked: list[str] = []
        self.sent: list[tuple[bytes, bytes]] = []
        self.refusal: Exception | None = None
        self.refuses_to_listen: Exception | None = None

    def listen(self, channel: str, ear: Ear) -> None:
        self.asked.append(channel)
        self.ears.setdefault(channel, []).append(ear)
        if self.refuses_to_listen is not None:
            ear.failed(self.refuses_to_listen)
        elif channel in self.heard_at_once:
            ear.ready()

    def unlisten(self, channel: str, ear: Ear) -> None:
        self.ears[channel].remove(ear)
        if not self.ears[channel]:
            del self.ears[channel]

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        if self.refusal is not None:
            answer.set_exception(self.refusal)
            return
        self.sent.append((channel, payload))
        answer.set_result(True)
        self.arrives(channel.decode(), payload)

    def prove(self, answer: Answer[float]) -> None:
        answer.set_result(0.0)

    def bounce(self, reason: str) -> None: ...

    def hearing(self) -> Hearing:
        return Hearing(proven=True, connects=1)

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        raise AssertionError("nothing here is large")

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        raise AssertionError("nothing here is large")

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        answer.set_result(True)

    # what the test plays

    def hears(self, channel: str) -> None:
        """From now on it is heard."""
        self.heard_at_once.add(channel)
        for ear in [*self.ears.get(channel, ())]:
            ear.ready()

    def arrives(self, channel: str, payload: bytes) -> None:
        """A notification."""
        if channel in self.heard_at_once:
            for ear in [*self.ears.get(channel, ())]:
                ear.heard(payload, 1, False)

    def deafened(self) -> None:
        """The connection is gone."""
        self.heard_at_once.clear()
        for ear in self.everybody():
            ear.deaf("the connection is gone")

    def failed(self, error: Exception) -> None:
        """An attempt to connect has failed."""
        for ear in self.everybody():
            ear.failed(error)

    def everybody(self) -> list[Ear]:
        """All ears there are."""
        return [ear for ears in self.ears.values() for ear in ears]


class Played:
    """The backend around them."""

    def __init__(self, *heard: str) -> None:
        self.locker = Locks()
        self.messenger = Messages(*heard)
        self.store = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"exclusion", "messages"})

    async def open(self, events: EventStream) -> None: ...

    async def close(self) -> None: ...

    def health(self) -> Health:
        return Health(ready=True, links=(), locks_held=0, locks_waited_for=0, lock_budget=None)


def played(*heard: str) -> tuple[AsyncCoordinator, Messages]:
    """A coordinator over it, and what the test plays on. These channels are heard as soon as somebody listens."""
    backend = Played(*heard)
    return AsyncCoordinator(backend=backend), backend.messenger
