"""Whatever happens in a world, in whatever order, agrees with a model of it in a page.

Theory. The model is one list of all claims that the world knows, in the order of their arrival there, and one rule:
going through it from the front, whoever fits beside those who have the key gets it, and nobody is overtaken except
those who are cut off. Each claim has two states: what its caller should see, and what the world should know, which
differ while a message cannot pass. After each step the machine compares every claim with its model.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from pgconcert.backend import Claim
from pgconcert.clock import FakeClock
from pgconcert.errors import CoordinatorClosed, LockBudgetExceeded, PermitsDisagree, PgconcertError, Unavailable
from pgconcert.events import EventStream
from pgconcert.keys import KeySpace
from pgconcert.memory import MemoryBackend, Partition, World

NUMBERS: Final = itertools.count()
SILENCE: Final = 5.0
BUDGET: Final = 3
LOCKS: Final = ("k", "l", "m")
SEMAPHORE: Final = "s"
SPACE: Final = KeySpace()

ERRORS: Final[dict[str, type[PgconcertError]]] = {
    "disagrees": PermitsDisagree,
    "over budget": LockBudgetExceeded,
    "unavailable": Unavailable,
    "closed": CoordinatorClosed,
}


@dataclass(eq=False)
class Member:
    """A coordinator. ``mine`` are its claims that wait or have, in the order of arrival."""

    backend: MemoryBackend
    up: bool = True
    away: bool = False
    cut: Partition | None = None
    cut_since: float = 0.0
    kept: list[Callable[[], None]] = field(default_factory=list)
    mine: list[One] = field(default_factory=list)


@dataclass(eq=False)
class One:
    """A claim: what its caller should see, whether it has the key in the world, and what was given back."""

    member: Member
    claim: Claim
    future: asyncio.Future[bool]
    seen: str = "waiting"
    has: bool = False
    released: asyncio.Future[bool] | None = None
    done: bool = False


class Worlds(RuleBasedStateMachine):
    """Three coordinators of one world, on one loop."""

    ones: Bundle[One] = Bundle("ones")
    members = st.integers(0, 2)

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.world = World.named(f"model/{next(NUMBERS)}", clock=self.clock)
        self.known: list[One] = []
        self.all: list[One] = []
        self.there = [self.new_member() for _ in range(3)]

    def new_member(self) -> Member:
        backend = MemoryBackend(self.world, network_timeout=SILENCE, max_locks=BUDGET)
        self.loop.run_until_complete(backend.open(EventStream()))
        return Member(backend)

    def do(self, call: Callable[..., object], *args: object) -> object:
        """Make a call on the loop, where whatever it decides is known when it returns."""

        async def run() -> object:
            return call(*args)

        return self.loop.run_until_complete(run())

    # the model

    def fits(self, one: One) -> bool:
        having = [other for other in self.known if other.claim.key == one.claim.key and other.has]
        if one.claim.key.permits:
            return len(having) < one.claim.key.permits
        return not having or (one.claim.shared and having[0].claim.shared)

    def go_on(self) -> None:
        blocked: set[int] = set()
        for one in self.known:
            if one.has or one.member.cut is not None or one.claim.key.value in blocked:
                continue
            if self.fits(one):
                one.has = True
                if one.seen == "waiting":  # else its caller has left, and the word of that is still on its way
                    one.seen = "granted"
            else:
                blocked.add(one.claim.key.value)

    def arrive(self, one: One) -> None:
        if one.seen != "waiting":
            return
        others = [other for other in self.known if other.claim.key == one.claim.key]
        if others and others[0].claim.key.permits != one.claim.key.permits:
            self.end(one, "disagrees")
            return
        self.known.append(one)
        self.go_on()
        if not one.has and not one.claim.wait:
            self.known.remove(one)
            self.end(one, "refused")

    def depart(self, one: One) -> None:
        one.done = True
        if one in self.known:
            self.known.remove(one)
            self.go_on()

    def end(self, one: One, seen: str) -> None:
        one.seen = seen
        one.member.mine.remove(one)

    def say(self, member: Member, message: Callable[[], None]) -> None:
        if member.cut is not None:
            member.kept.append(message)
        elif member.up:
            message()

    def break_(self, member: Member, hasty: str = "unavailable", patient: str = "waiting") -> None:
        member.up, member.kept = False, []
        for one in [*member.mine]:
            if one.seen == "granted":
                self.end(one, "lost")
            elif patient != "waiting":
                self.end(one, patient)
            elif not one.claim.wait:
                self.end(one, hasty)
        for one in self.all:
            if one.member is member:
                one.has, one.done = False, True
        self.known = [one for one in self.known if one.member is not member]
        self.go_on()

    def connect(self, member: Member) -> None:
        if member.up or member.away or member.cut is not None:
            return
        member.up = True
        for one in [*member.mine]:
            self.arrive(one)

    # what happens

    @rule(
        target=ones,
        at=members,
        name=st.sampled_from((*LOCKS, SEMAPHORE, SEMAPHORE)),
        permits=st.sampled_from((1, 2, 2, 2)),
        shared=st.booleans(),
        wait=st.sampled_from((True, True, False)),
    )
    def ask(self, at: int, name: str, permits: int, shared: bool, wait: bool) -> One:
        member = self.there[at]
        key = SPACE.semaphore(name, permits) if name == SEMAPHORE else SPACE.key(name)
        future: asyncio.Future[bool] = self.loop.create_future()
        one = One(member, Claim(key, future, wait=wait, shared=shared and not key.permits), future)
        self.all.append(one)
        counts = Counter(other.claim.key.value for other in member.mine)
        most = {other.claim.key.value: other.claim.key.permits or 1 for other in reversed(member.mine)}
        used = sum(min(count, most[value]) for value, count in counts.items())
        self.do(member.backend.locker.acquire, one.claim)
        if counts[key.value] < most.get(key.value, 1) and used >= BUDGET:
            one.seen = "over budget"
        elif not member.up and not wait:
            one.seen = "unavailable"
        else:
            member.mine.append(one)
            if member.up:
                self.say(member, lambda: self.arrive(one))
        return one

    @rule(one=ones)
    def withdraw(self, one: One) -> None:
        self.do(one.member.backend.locker.withdraw, one.claim)
        if one.seen in ("waiting", "granted"):
            self.end(one, "withdrawn" if one.seen == "waiting" else "released")
            self.say(one.member, lambda: self.depart(one))

    @rule(one=ones)
    def release(self, one: One) -> None:
        if one.seen == "waiting" or one.released is not None:
            return  # who waits withdraws, and a hold is released once
        one.released = self.loop.create_future()
        if one.seen == "granted":
            one.claim.over = True
        self.do(one.member.backend.locker.release, one.claim, one.released)
        if one.seen == "granted":
            one.done = False  # also if an earlier connection, on which it still waited, was lost
            self.end(one, "released")
            self.say(one.member, lambda: self.depart(one))
        else:
            one.done = True  # there is nothing to give back

    @rule(at=members, stay_away=st.booleans())
    def lose(self, at: int, stay_away: bool) -> None:
        member = self.there[at]
        self.do(lambda: member.backend.lose_connection("lost", reconnect=not stay_away))
        if member.up:
            self.break_(member)
        member.away = stay_away
        self.connect(member)

    @rule(at=members)
    def reconnect(self, at: int) -> None:
        member = self.there[at]
        self.do(member.backend.reconnect)
        member.away = False
        self.connect(member)

    @rule(at=members)
    def cut(self, at: int) -> None:
        member = self.there[at]
        if member.cut is None:
            cut = self.do(member.backend.partition)
            assert isinstance(cut, Partition)
            member.cut, member.cut_since = cut, self.clock.now()

    @rule(at=members)
    def heal(self, at: int) -> None:
        member = self.there[at]
        if member.cut is None:
            return
        self.do(member.cut.heal)
        member.cut = None
        self.go_on()
        kept, member.kept = member.kept, []
        for message in kept:
            message()
        self.connect(member)

    @rule(seconds=st.sampled_from((1.0, 3.0, 4.0)))
    def advance(self, seconds: float) -> None:
        self.do(self.clock.advance, seconds)
        due = [
            member
            for member in self.there
            if member.cut is not None and member.up and self.clock.now() - member.cut_since >= SILENCE
        ]
        for member in sorted(due, key=lambda member: member.cut_since):
            self.break_(member)

    @rule(at=members)
    def close_and_begin_anew(self, at: int) -> None:
        member = self.there[at]
        self.loop.run_until_complete(member.backend.close())
        self.break_(member, patient="closed")
        member.cut = None
        self.there[at] = self.new_member()

    # what must be true

    @invariant()
    def every_claim_is_as_the_model_says(self) -> None:
        for one in self.all:
            assert self.seen(one) == one.seen
            if one.released is not None:
                assert one.released.done() == one.done

    @invariant()
    def holders_are_who_they_may_be(self) -> None:
        for name in (*LOCKS, SEMAPHORE):
            held = [one.claim for one in self.all if one.claim.name == name and one.seen == "granted"]
            if name != SEMAPHORE:
                assert len(held) <= 1 or all(claim.shared for claim in held)
                continue
            permits = [claim.permit for claim in held]
            assert len(permits) == len(set(permits))
            for claim in held:
                assert claim.permit is not None
                assert claim.permit < claim.key.permits
                assert len(held) <= claim.key.permits

    @invariant()
    def the_counts_are_right(self) -> None:
        for member in self.there:
            health = member.backend.health()
            assert health.locks_held == sum(one.seen == "granted" for one in member.mine)
            assert health.ready == member.up

    @staticmethod
    def seen(one: One) -> str:
        if one.claim.reason is not None:
            return "lost"
        if not one.future.done():
            return one.seen if one.seen == "withdrawn" else "waiting"
        error = one.future.exception()
        if error is not None:
            return next(name for name, kind in ERRORS.items() if type(error) is kind)
        if not one.future.result():
            return "refused"
        return "released" if one.claim.over or one.seen == "released" else "granted"

    def teardown(self) -> None:
        if not hasattr(self, "there"):
            return
        try:
            for member in self.there:
                self.loop.run_until_complete(member.backend.close())
            assert {self.seen(one) for one in self.all} <= {*ERRORS, "refused", "withdrawn", "released", "lost"}
            assert self.world.empty
            assert not self.world.members
            assert not self.clock.waiting()
        finally:
            self.loop.close()


class WorldsForLong(Worlds):
    """The same, longer."""


TestWorlds = Worlds.TestCase
TestWorlds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWorldsForLong = pytest.mark.timeout(600)(pytest.mark.long(WorldsForLong.TestCase))
TestWorldsForLong.settings = settings(max_examples=1000, stateful_step_count=60, deadline=None)
