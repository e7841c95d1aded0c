"""Whatever happens to two engines of one world, in whatever order: what must be true of them at every instant.

Theory. There is no model of the engine; there is the world, which knows who has what, and there are sentences about it:

* Who may believe to have a name has it in the world, by the very token, and its session has a margin left there.
  Believing is what a claim says at this instant, whether or not its loop has run. Those from whom a test has taken
  something (revoked, or their time on the server ended at once) may believe it until their next heartbeat, and are left
  out.
* What was lost stays lost. Claims of one process are granted in order, the preferred first. No token is given twice.
* When the network is whole again, everybody who waits gets what it waits for; and when nobody wants anything any more,
  nothing is left.

Answers may be kept back between a store and an engine, then delivered or lost; connections break, come back, are cut;
time passes in small and large steps.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from pgconcert.backend import WAITING
from pgconcert.clock import FakeClock
from pgconcert.memory import Partition, World
from pgconcert.sessions.timing import timing
from pgconcert.store import Entry, Give, Kind, Look, Own, Renew, Request, Revoke, StartSession, Subject, Take, Unmark
from tests.unit.ears import turns
from tests.unit.session_scenes import Asked, House, left, left_over, opened, pass_time

T = TypeVar("T")

NUMBERS: Final = itertools.count()
NAMES: Final[list[tuple[Kind, str]]] = [("job", "n"), ("job", "m"), ("election", "e")]
TIMINGS: Final = (timing(10.0), timing(20.0))
KEPT: Final[list[type[Request[Any]]]] = [Take, Give, Renew, Own, StartSession, Unmark]


@dataclass(eq=False)
class One:
    """A claim. ``excused``: it may believe what is not so. ``lost``: it was seen to be lost."""

    house: int
    name: tuple[Kind, str]
    asked: Asked
    excused: bool = False
    lost: bool = False


class Engines(RuleBasedStateMachine):
    """Two engines on one loop."""

    ones: Bundle[One] = Bundle("ones")
    which = st.integers(0, 1)

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.world = World.named(f"engines/{next(NUMBERS)}", clock=self.clock)
        self.all: list[One] = []
        self.cuts: list[Partition | None] = [None, None]
        self.houses: list[House] = [self.run(opened(self.world)) for _ in range(2)]
        for which in range(2):
            for name in NAMES:
                self.ask(which, name, True, TIMINGS[0], False, 0.0, True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def do(self, call: Callable[[], object]) -> None:
        """Call it on the loop."""

        async def called() -> None:
            call()

        self.run(called())

    # what happens

    @rule(
        target=ones,
        which=which,
        name=st.sampled_from(NAMES),
        wait=st.sampled_from([True, True, True, False]),
        times=st.sampled_from(TIMINGS),
        preferred=st.booleans(),
        least=st.sampled_from([0.0, 0.0, 3.0]),
        at_once=st.sampled_from([True, True, False]),
    )
    def ask(
        self, which: int, name: tuple[Kind, str], wait: bool, times: Any, preferred: bool, least: float, at_once: bool
    ) -> One:
        async def asked() -> Asked:
            kind, called = name
            house = self.houses[which]
            return house.ask(called, wait=wait, timing=times, kind=kind, preferred=preferred, hold_at_least=least)

        one = One(which, name, self.run(asked()))
        self.all.append(one)
        if at_once:
            self.run(turns(8))
        return one

    @rule(one=ones, leave=st.booleans())
    def give_or_leave(self, one: One, leave: bool) -> None:
        if leave:
            self.do(one.asked.withdraw)
        elif one.asked.held:
            self.do(one.asked.give)

    @rule(
        seconds=st.sampled_from([0.0, 0.5, 0.5, 1.0, 1.0, 2.5, 2.5, 5.0, 9.5]),
        step=st.sampled_from([0.125, 1.0, 100.0]),
    )
    def go_on(self, seconds: float, step: float) -> None:
        """Time passes, in small steps or in one."""
        self.run(pass_time(self.clock, seconds, step))
        self.run(turns(3))

    @rule(seconds=st.sampled_from([0.5, 0.5, 2.0, 2.0, 8.0, 9.5, 30.0]))
    def stand_still(self, seconds: float) -> None:
        """Time passes, and no loop has run."""
        self.clock.advance(seconds)

    @rule(which=which, how=st.sampled_from(["lose", "stay away", "stay away", "reconnect", "cut or heal"]))
    def connection(self, which: int, how: str) -> None:
        backend = self.houses[which].backend
        cut = self.cuts[which]
        if how == "reconnect":
            self.do(backend.reconnect)
        elif how in ("lose", "stay away"):
            self.do(lambda: backend.lose_connection(reconnect=how == "lose"))
        elif cut is not None:
            self.cuts[which] = None
            self.do(cut.heal)
        else:
            self.do(lambda: self.cut(which))

    def cut(self, which: int) -> None:
        self.cuts[which] = self.houses[which].backend.partition()

    @rule(
        which=which,
        kinds=st.sets(st.sampled_from(KEPT), min_size=1),
        seconds=st.sampled_from([0.0, 0.0, 0.5, 2.5, 6.0]),
        lose=st.booleans(),
    )
    def answers(self, which: int, kinds: set[type[Request[Any]]], seconds: float, lose: bool) -> None:
        """Answers are on their way for some time; then they arrive or are lost. From the next rule on others pass."""
        store = self.houses[which].store
        store.keeps = kinds
        self.run(pass_time(self.clock, seconds, 0.5))
        self.run(turns(8))
        store.keeps = set()
        self.do(store.lose if lose else store.deliver)

    @rule(which=which, kinds=st.sets(st.sampled_from(KEPT)))
    def slow(self, which: int, kinds: set[type[Request[Any]]]) -> None:
        """From now on answers of some kinds, perhaps none, are on their way until something else happens to them."""
        self.houses[which].store.keeps = kinds

    @rule(which=which, lose=st.booleans())
    def stall(self, which: int, lose: bool) -> None:
        """Nothing of what is asked reaches the store for a moment; then some of it may, long after it was given up."""
        store = self.houses[which].store
        if not store.deaf:
            store.deaf = True
            return
        store.deaf = False
        self.do(store.lose)
        if lose:
            store.stalled.clear()

    @rule(which=which)
    def arrive_late(self, which: int) -> None:
        """A Take draws another token then: whoever has the older one may believe in it until the next heartbeat.

        What is later than a ttl is not looked for, so it does not come here."""
        store = self.houses[which].store
        late: list[Request[Any]] = []
        if not store.deaf:
            begin = self.clock.now() - min(times.ttl for times in TIMINGS)
            store.stalled = [
                (at, it) for at, it in store.stalled if at > begin and isinstance(it, (Take, Give, Unmark))
            ]
            self.do(lambda: late.extend(store.arrive_late()))
        subjects = {request.subject for request in late if isinstance(request, Take)}
        self.excuse([one for one in self.all if one.house == which and one.asked.claim.key.subject in subjects])

    @rule(which=which, name=st.sampled_from([None, *NAMES]))
    def take_away(self, which: int, name: tuple[Kind, str] | None) -> None:
        """A name is revoked; or all sessions of one are over on the server."""
        if name is None:
            self.excuse([one for one in self.all if one.house == which])
            self.houses[which].backend.expire_session()
        else:
            self.excuse([one for one in self.all if one.name == name])
            self.in_world(Revoke(Subject(name[0], "", name[1])))

    def excuse(self, ones: list[One]) -> None:
        """Something may have been taken from these: from who has it, or will hear that it has."""
        for one in ones:
            one.excused = one.excused or one.asked.granted or bool(self.houses[one.house].store.kept)

    # what is true

    @invariant()
    def who_believes_has_it(self) -> None:
        for one in self.all:
            claim = one.asked.claim
            if not one.asked.held or one.excused:
                continue
            entry = self.entry(one.name)
            assert entry.session is not None, f"{one} believes to have {one.name}, and nobody has it"
            assert claim.session is not None
            assert (entry.session.id, entry.token) == (claim.session.id, claim.token), f"another has {one.name}"
            assert entry.session.expires_in >= claim.key.timing.margin - 1e-9
            assert claim in claim.session.claims

    @invariant()
    def nobody_has_it_before_the_margin_is_over(self) -> None:
        for one in self.all:
            claim = one.asked.claim
            if not one.asked.granted or one.excused or claim.over or claim.reason is None or claim.session is None:
                continue
            if self.clock.now() < claim.session.trusted_until + claim.session.timing.margin - 1e-9:
                entry = self.entry(one.name)
                assert entry.session is not None, f"{one.name} is free, and {one} has just lost it"
                assert entry.session.id == claim.session.id

    @invariant()
    def the_lost_stays_lost(self) -> None:
        for one in self.all:
            if one.asked.granted and not one.asked.claim.over:
                assert one.asked.claim.reason is not None or not one.lost
                one.lost = one.asked.claim.reason is not None

    @invariant()
    def nobody_overtakes(self) -> None:
        waiting: set[tuple[int, tuple[Kind, str], bool]] = set()
        for one in self.all:
            place = one.house, one.name, one.asked.claim.key.preferred
            if one.asked.claim.wait and one.asked.claim.state == WAITING:
                waiting.add(place)
            elif one.asked.granted:
                assert place not in waiting

    @invariant()
    def no_token_comes_twice(self) -> None:
        for name in NAMES:
            for number in range(2):
                tokens = [
                    one.asked.claim.token or 0
                    for one in self.all
                    if one.name == name and one.house == number and one.asked.granted
                ]
                assert len(tokens) == len(set(tokens))

    def entry(self, name: tuple[Kind, str]) -> Entry:
        (entry,) = self.in_world(Look(kind=name[0], namespace="", name=name[1]))
        return entry

    def in_world(self, request: Request[T]) -> T:
        return self.world.ledger.carry_out(request, self.clock.now(), None)

    # the end

    def teardown(self) -> None:
        if not hasattr(self, "houses"):
            return
        try:
            self.run(self.mend())
            self.nothing_is_held_for_nobody()
            self.run(self.serve())
            self.run(self.rest())
            self.run(left(*self.houses))
        finally:
            self.loop.close()

    async def mend(self) -> None:
        for cut in self.cuts:
            if cut is not None:
                cut.heal()
        for house in self.houses:
            house.store.keeps = set()
            house.store.deaf = False
            house.store.lose()
            house.store.stalled.clear()
            house.backend.reconnect()
        await pass_time(self.clock, 7.0, 0.5)  # the longest pause between attempts is over

    def nothing_is_held_for_nobody(self) -> None:
        """What hangs on a session has somebody who holds it, or is about to be given back."""
        for entry in self.in_world(Look()):
            if entry.session is not None:
                engines: list[Any] = [house.engine for house in self.houses]
                names = [engine._names.get(entry.subject) for engine in engines]
                claims = [name.holder for name in names if name is not None and name.holder is not None]
                assert entry.token in [claim.token for claim in claims], f"{entry} is held for nobody"

    async def serve(self) -> None:
        """Whoever waits has it in the end, if those who have it give it back."""
        for _ in range(40 * (1 + len(self.all))):
            for one in self.all:
                if one.asked.held:
                    one.asked.give()
            if not any(one.asked.claim.state == WAITING or one.asked.held for one in self.all):
                return
            await pass_time(self.clock, 1.0, 0.5)
        raise AssertionError(f"somebody waits for ever: {[house.engine for house in self.houses]}")

    async def rest(self) -> None:
        """When nobody wants anything any more, nothing is left; also of the sessions, when they have been idle."""
        await pass_time(self.clock, 60.0, 0.5)
        for house in self.houses:
            assert not left_over(house), left_over(house)
            assert not house.sessions
        for one in self.all:
            assert one.asked.future.done()
        assert self.world.ledger.empty(self.clock.now())
        assert not any(entry.waiting for entry in self.in_world(Look()))


class EnginesForLong(Engines):
    """The same, longer."""


TestEngines = Engines.TestCase
TestEngines.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEnginesForLong = pytest.mark.timeout(600)(pytest.mark.long(EnginesForLong.TestCase))
TestEnginesForLong.settings = settings(max_examples=1000, stateful_step_count=60, deadline=None)
