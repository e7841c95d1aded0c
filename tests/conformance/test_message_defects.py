"""The suite finds defects of messages: the memory backend with one promise broken, and the case that says so.

Here lives a table of small mistakes. Each is a messenger around that of a `memory://` world, or an ear around an ear of
the library, so each breaks the port where a real backend would. Those of locks stand in `test_defects.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import secrets
from collections import deque
from typing import Any

import pytest

from pgconcert import PING_CHANNEL, AsyncCoordinator, ConfigurationError, Hearing
from pgconcert.memory import MemoryBackend
from pgconcert.memory.messages import MemoryMessenger
from pgconcert.messenger import Answer, Ear
from pgconcert.testing.conformance import Place, cases, run

_LIMIT = 2.0


class EarAround:
    """An ear with nothing wrong. A defect overrides something."""

    def __init__(self, inner: Ear) -> None:
        self.inner = inner
        self.count = 0

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self.inner.heard(payload, pid, own)

    def ready(self) -> None:
        self.inner.ready()

    def deaf(self, reason: str) -> None:
        self.inner.deaf(reason)

    def failed(self, error: Exception) -> None:
        self.inner.failed(error)


class Around:
    """A messenger with nothing wrong. A defect overrides something."""

    def __init__(self, inner: MemoryMessenger, ear: type[EarAround] = EarAround) -> None:
        self.inner = inner
        self.ear = ear
        self.ears: dict[tuple[str, int], EarAround] = {}

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        self.inner.publish(channel, payload, answer)

    def listen(self, channel: str, ear: Ear) -> None:
        around = self.ears[channel, id(ear)] = self.make_ear(channel, ear)
        self.inner.listen(channel, around)

    def make_ear(self, channel: str, ear: Ear) -> EarAround:
        return self.ear(ear)

    def unlisten(self, channel: str, ear: Ear) -> None:
        around = self.ears.pop((channel, id(ear)), None)
        if around is not None:
            self.inner.unlisten(channel, around)

    def prove(self, answer: Answer[float]) -> None:
        self.inner.prove(answer)

    def bounce(self, reason: str) -> None:
        self.inner.bounce(reason)

    def hearing(self) -> Hearing:
        return self.inner.hearing()

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        self.inner.spill(payload, ttl, answer)

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        self.inner.fetch(number, answer)

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        self.inner.claim(scope, message_id, answer)


# what is wrong with ears


class DropsEverySeventh(EarAround):
    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self.count += 1
        if self.count % 7:
            super().heard(payload, pid, own)


class DeliversTwice(EarAround):
    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        super().heard(payload, pid, own)
        super().heard(payload, pid, own)


class Reorders(EarAround):
    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self.count += 1
        if self.count % 10:
            super().heard(payload, pid, own)
        else:
            asyncio.get_running_loop().call_soon(super().heard, payload, pid, own)


class ForgetsDeaf(EarAround):
    def ready(self) -> None:
        self.count += 1
        if self.count == 1:
            super().ready()

    def deaf(self, reason: str) -> None:
        pass


class NeverReadyAgain(EarAround):
    def ready(self) -> None:
        self.count += 1
        if self.count == 1:
            super().ready()


class HearsBeforeItIsReady(EarAround):
    """What comes first on a fresh connection is handed on before `ready`, so the gap comes behind it."""

    late = False
    missed = 0

    def ready(self) -> None:
        self.count += 1
        self.late, self.missed = self.count > 1, 3
        if not self.late:
            super().ready()

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        if self.missed and self.late:
            self.missed -= 1
            return
        super().heard(payload, pid, own)
        if self.late:
            self.late = False
            super().ready()


class MuteAfterALoss(EarAround):
    mute = False

    def deaf(self, reason: str) -> None:
        self.mute = True
        super().deaf(reason)

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        if not self.mute:
            super().heard(payload, pid, own)


class MistakesItsOwn(EarAround):
    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        super().heard(payload, pid, not own)


class HandsOutItsBuffer(EarAround):
    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        buffer: Any = bytearray(payload)
        super().heard(buffer, pid, own)


class KnowsNoNul(EarAround):
    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        super().heard(payload.decode("ascii", "replace").encode(), pid, own)


# what is wrong with messengers


class CollapsesEqualMessages(Around):
    """As the server does with what is notified twice in one transaction."""

    def __init__(self, inner: MemoryMessenger, ear: type[EarAround] = EarAround) -> None:
        super().__init__(inner, ear)
        self.together: set[tuple[bytes, bytes]] = set()

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        if (channel, payload) in self.together:
            answer.set_result(True)
            return
        self.together.add((channel, payload))
        asyncio.get_running_loop().call_soon(self.together.clear)
        super().publish(channel, payload, answer)


class RefusesWithoutListeners(Around):
    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        if any(name.encode() == channel for name, _ in self.ears):
            super().publish(channel, payload, answer)
        else:
            answer.set_exception(ConfigurationError("nobody listens"))


class CutsOffNames(Around):
    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        super().publish(channel[:60], payload, answer)

    def listen(self, channel: str, ear: Ear) -> None:
        super().listen(channel[:60], ear)


class FoldsNames(Around):
    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        super().publish(channel.lower(), payload, answer)

    def listen(self, channel: str, ear: Ear) -> None:
        super().listen(channel.lower(), ear)


class ReadyTooEarly(Around):
    def listen(self, channel: str, ear: Ear) -> None:
        asyncio.get_running_loop().call_soon(ear.ready)
        asyncio.get_running_loop().call_later(0.01, super().listen, channel, ear)


class DeafForWhoComesBack(Around):
    def __init__(self, inner: MemoryMessenger, ear: type[EarAround] = EarAround) -> None:
        super().__init__(inner, ear)
        self.left: set[str] = set()

    def listen(self, channel: str, ear: Ear) -> None:
        if channel in self.left:
            asyncio.get_running_loop().call_soon(ear.ready)
        else:
            super().listen(channel, ear)

    def unlisten(self, channel: str, ear: Ear) -> None:
        self.left.add(channel)
        super().unlisten(channel, ear)


class HearsOneChannelAgain(Around):
    """After a loss, the first one that was wanted."""

    def make_ear(self, channel: str, ear: Ear) -> EarAround:
        others = any(":" not in name and name != PING_CHANNEL for name, _ in self.ears)
        return MuteAfterALoss(ear) if others else EarAround(ear)


class Late(EarAround):
    """In order, and 20 ms late."""

    def __init__(self, inner: Ear) -> None:
        super().__init__(inner)
        self.queue: deque[tuple[bytes, int, bool]] = deque()

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self.queue.append((payload, pid, own))
        asyncio.get_running_loop().call_later(0.02, lambda: self.inner.heard(*self.queue.popleft()))


class ProofsOvertakeMessages(Around):
    """In every second coordinator."""

    made = itertools.count()

    def __init__(self, inner: MemoryMessenger, ear: type[EarAround] = EarAround) -> None:
        super().__init__(inner, Late if next(self.made) % 2 else ear)


class NeverBounces(Around):
    def bounce(self, reason: str) -> None:
        pass


class BouncesTwice(Around):
    asked = False

    def bounce(self, reason: str) -> None:
        self.asked = True
        super().bounce(reason)

    def make_ear(self, channel: str, ear: Ear) -> EarAround:
        outer = self

        class Again(EarAround):
            def ready(self) -> None:
                super().ready()
                if outer.asked:
                    outer.asked = False
                    outer.inner.bounce("the reason")

        return Again(ear)


class NeverHeardOthers(Around):
    def hearing(self) -> Hearing:
        return dataclasses.replace(super().hearing(), others_at=None)


class CutsOffPayloads(Around):
    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        super().spill(payload[:65536], ttl, answer)


class KeepsPayloadsForOne(Around):
    fetched: set[int] = set()  # noqa: RUF012

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        if number in self.fetched:
            answer.set_result(None)
            return
        self.fetched.add(number)
        super().fetch(number, answer)


class EverybodysClaim(Around):
    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        answer.set_result(True)


class NobodysClaim(Around):
    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        answer.set_result(False)


class ClaimsWithoutScope(Around):
    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        super().claim("", message_id, answer)


class ClaimsByScopeAlone(Around):
    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        super().claim(scope, "" if not message_id.startswith("entry:") else message_id, answer)


Defect = type[Around] | type[EarAround]

DEFECTS: dict[Defect, str] = {
    DropsEverySeventh: "publishing.order_is_kept",
    DeliversTwice: "publishing.what_is_sent_arrives",
    Reorders: "publishing.order_is_kept",
    ForgetsDeaf: "hearing.a_lost_connection_is_told_to_every_subscriber",
    MuteAfterALoss: "hearing.two_subscriptions_of_a_channel_ride_through",
    NeverReadyAgain: "hearing.two_subscriptions_of_a_channel_ride_through",
    HearsBeforeItIsReady: "hearing.what_was_missed_is_covered",
    MistakesItsOwn: "publishing.our_own_can_be_left_out",
    HandsOutItsBuffer: "receiving.payloads_are_nobody_elses",
    KnowsNoNul: "publishing.what_is_sent_arrives",
    CollapsesEqualMessages: "publishing.equal_messages_all_arrive",
    RefusesWithoutListeners: "publishing.with_no_listener_a_message_is_dropped",
    CutsOffNames: "publishing.names_are_used_as_they_are",
    FoldsNames: "publishing.names_are_used_as_they_are",
    ReadyTooEarly: "publishing.with_no_listener_a_message_is_dropped",
    DeafForWhoComesBack: "publishing.nothing_is_lost_after_entry",
    HearsOneChannelAgain: "hearing.a_lost_connection_is_told_to_every_subscriber",
    ProofsOvertakeMessages: "delivering.nothing_is_handled_twice",
    NeverBounces: "fanning.recovery_replaces_the_listen_link",
    BouncesTwice: "hearing.bounces_are_one",
    NeverHeardOthers: "hearing.how_well_we_hear",
    CutsOffPayloads: "publishing.large_payloads_reach_everybody",
    KeepsPayloadsForOne: "publishing.large_payloads_reach_everybody",
    EverybodysClaim: "delivering.each_message_is_handled_once",
    NobodysClaim: "delivering.each_message_is_handled_once",
    ClaimsWithoutScope: "delivering.an_id_is_known_on_its_channel",
    ClaimsByScopeAlone: "delivering.equal_payloads_are_different_messages",
}


def place(defect: Defect) -> Place:
    """A world whose coordinators all have the defect."""
    world = secrets.token_hex(8)

    class Backend(MemoryBackend):
        around: Around | None = None

        @property
        def messenger(self) -> Any:
            if self.around is None:
                inner = super().messenger
                self.around = Around(inner, defect) if issubclass(defect, EarAround) else defect(inner)
            return self.around

    def lose(coordinator: AsyncCoordinator) -> None:
        backend = coordinator.backend
        assert isinstance(backend, Backend)
        backend.lose_connection()

    return Place(lambda **options: AsyncCoordinator(backend=Backend(world), **options), lose)


@pytest.mark.parametrize(("defect", "name"), DEFECTS.items(), ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.filterwarnings("ignore")  # what is broken leaves tasks and errors behind
@pytest.mark.long
def test_a_defect_is_found(defect: Defect, name: str) -> None:
    (case,) = [case for case in cases() if str(case) == name]
    with pytest.raises((AssertionError, ExceptionGroup, ConfigurationError)):
        run(case, place(defect), limit=_LIMIT)
    gc.collect()  # its warnings are ignored here, and would be a failure of some later test


@pytest.mark.parametrize("name", sorted({*DEFECTS.values()}))
def test_without_a_defect_nothing_is_found(name: str) -> None:
    (case,) = [case for case in cases() if str(case) == name]
    run(case, place(Around))
