"""Whatever happens to listeners and publishers of a world, every ear hears what a model of a page says, and no more.

Theory. The model is one log of all that was published, in its order, and for each ear at most one *window*: from the
entry at which the world began to listen for it, until it is deaf or leaves. What an ear is told is its windows, each
one complete and in the order of the log: ``ready``, the entries of its channel, ``deaf``. A member that is cut off gets
no further in the log than it was when the cut began. Several things may happen in one turn of the loop, between which
nothing is heard: what is not heard when a window ends was missed. The machine compares everybody after each turn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgconcert.clock import FakeClock
from pgconcert.errors import PublishUncertain, Unavailable
from pgconcert.memory import MemoryBackend, Partition, World
from tests.unit.ears import Diary, claiming, opened, proving, publishing

NUMBERS: Final = itertools.count()
SILENCE: Final = 5.0
CHANNELS: Final = ("c", "d")
TALK: Final = ("publish", "publish", "publish", "listen", "unlisten", "prove", "claim")
FAULTS: Final = ("cut", "cut", "heal", "heal", "advance", "bounce", "lose", "reconnect")
FAILURES: Final = {"lost": (PublishUncertain, Unavailable), "unavailable": (Unavailable,)}


@dataclass(eq=False)
class Listener:
    """An ear. ``start``: where in the log its window begins; ``told``: what it should have been told."""

    channel: str
    diary: Diary = field(default_factory=Diary)
    asked: int | None = None
    """The last request to listen for it."""
    start: int | None = None
    at: int | None = None
    """How far it has heard; None: it was not told that it hears."""
    told: list[object] = field(default_factory=list)


@dataclass(eq=False)
class Asked:
    """A request, and what its answer should be."""

    future: asyncio.Future[Any]
    proof: bool = False
    seen: object = "waiting"


@dataclass(eq=False)
class Member:
    """A coordinator. ``kept``: what the world is to carry out when a cut heals."""

    backend: MemoryBackend
    up: bool = True
    away: bool = False
    proven: bool = False
    cut: Partition | None = None
    cut_since: float = 0.0
    horizon: int | None = None
    kept: list[Callable[[], None]] = field(default_factory=list)
    ears: list[Listener] = field(default_factory=list)
    requests: list[Asked] = field(default_factory=list)
    proofs: list[Asked] = field(default_factory=list)
    """Those whose echo is on the way."""
    echo: bool = False
    deaf_at: int = 0


class Messages(RuleBasedStateMachine):
    """Three coordinators of one world, on one loop."""

    members = st.integers(0, 2)

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.world = World.named(f"messages/{next(NUMBERS)}", clock=self.clock)
        self.log: list[tuple[str, bytes]] = []
        self.claimed: set[str] = set()
        self.published = itertools.count()
        self.requests = itertools.count(1)
        self.turns = 0
        self.asked: list[Asked] = []
        self.left: list[Listener] = []
        self.there = [self.new_member() for _ in range(3)]
        self.turn_ends()

    def new_member(self) -> Member:
        """A member that listens to everything."""

        async def run() -> Member:
            member = Member(await opened(self.world, network_timeout=SILENCE))
            for pick in range(len(CHANNELS)):
                self.listen(member, pick)
            return member

        return self.loop.run_until_complete(run())

    # the model

    def say(self, member: Member, message: Callable[[], None]) -> None:
        if member.cut is not None:
            member.kept.append(message)
        else:
            message()

    def ask(self, member: Member, asked: Asked, carry_out: Callable[[Asked], None]) -> None:
        self.asked.append(asked)
        if not member.up:
            asked.seen = "unavailable"
            return
        member.requests.append(asked)
        self.say(member, lambda: carry_out(asked))

    def begin_to_listen(self, member: Member, ears: list[Listener]) -> None:
        request = next(self.requests)
        for ear in ears:
            ear.asked = request

        def carry_out() -> None:
            member.echo = member.echo or request > member.deaf_at
            for ear in ears:
                if ear.asked == request:
                    ear.start = len(self.log)

        self.say(member, carry_out)

    def deafen(self, member: Member) -> None:
        member.proven = member.echo = False
        member.deaf_at = next(self.requests)
        member.proofs.clear()
        for ear in member.ears:
            if ear.at is not None:
                ear.told.append("deaf")
            ear.start = ear.at = ear.asked = None

    def break_(self, member: Member) -> None:
        if not member.up:
            return
        member.up, member.kept = False, []
        self.deafen(member)
        for asked in member.requests:
            if asked.seen == "waiting":
                asked.seen = "lost"
        member.requests.clear()

    def connect(self, member: Member) -> None:
        if member.up or member.away or member.cut is not None:
            return
        member.up = True
        if member.ears:
            self.begin_to_listen(member, [*member.ears])

    def turn_ends(self) -> None:
        for member in self.there:
            if member.echo:
                member.proven, member.echo = True, False
            for asked in member.proofs:
                asked.seen, member.proven = "proven", True
                member.requests.remove(asked)
            member.proofs.clear()
            horizon = len(self.log) if member.horizon is None else member.horizon
            for ear in member.ears:
                if ear.start is None:
                    continue
                if ear.at is None:
                    ear.told.append("ready")
                    ear.at = ear.start
                ear.told += [payload for channel, payload in self.log[ear.at : horizon] if channel == ear.channel]
                ear.at = max(ear.at, horizon)

    # what may happen, several in one turn; ``pick`` chooses among what there is

    def publish(self, member: Member, pick: int) -> None:
        channel, payload = CHANNELS[pick % 2], b"%d" % next(self.published)

        def carry_out(asked: Asked) -> None:
            self.log.append((channel, payload))
            asked.seen = True
            member.requests.remove(asked)

        self.ask(member, Asked(publishing(member.backend.messenger, payload, channel)), carry_out)

    def claim(self, member: Member, pick: int) -> None:
        message_id = f"{pick % 3}"

        def carry_out(asked: Asked) -> None:
            asked.seen = message_id not in self.claimed
            self.claimed.add(message_id)
            member.requests.remove(asked)

        self.ask(member, Asked(claiming(member.backend.messenger, "s", message_id)), carry_out)

    def prove(self, member: Member, pick: int) -> None:
        def carry_out(asked: Asked) -> None:
            if asked.seen == "waiting":
                member.proofs.append(asked)

        self.ask(member, Asked(proving(member.backend.messenger), proof=True), carry_out)

    def listen(self, member: Member, pick: int) -> None:
        ear = Listener(CHANNELS[pick % 2])
        member.ears.append(ear)
        member.backend.messenger.listen(ear.channel, ear.diary)
        if member.up:
            self.begin_to_listen(member, [ear])

    def unlisten(self, member: Member, pick: int) -> None:
        if member.ears:
            ear = member.ears.pop(pick % len(member.ears))
            self.left.append(ear)
            member.backend.messenger.unlisten(ear.channel, ear.diary)

    def bounce(self, member: Member, pick: int) -> None:
        member.backend.messenger.bounce("bounced")
        if member.up and member.proven:
            for asked in [asked for asked in member.requests if asked.proof]:
                asked.seen = "lost"
                member.requests.remove(asked)
            self.deafen(member)
            self.begin_to_listen(member, [*member.ears])

    def lose(self, member: Member, pick: int) -> None:
        stay_away = pick % 2 == 1
        member.backend.lose_connection("lost", reconnect=not stay_away)
        self.break_(member)
        member.away = stay_away
        self.connect(member)

    def reconnect(self, member: Member, pick: int) -> None:
        member.backend.reconnect()
        member.away = False
        self.connect(member)

    def cut(self, member: Member, pick: int) -> None:
        if member.cut is None:
            member.cut, member.cut_since = member.backend.partition(), self.clock.now()
            member.horizon = len(self.log)

    def heal(self, member: Member, pick: int) -> None:
        if member.cut is None:
            return
        member.cut.heal()
        member.cut = member.horizon = None
        kept, member.kept = member.kept, []
        for message in kept:
            message()
        self.connect(member)

    def advance(self, member: Member, pick: int) -> None:
        self.clock.advance(1.0 + pick)
        for one in sorted(self.there, key=lambda one: one.cut_since):
            if one.cut is not None and self.clock.now() - one.cut_since >= SILENCE:
                self.break_(one)

    # the rules

    @rule(happenings=st.lists(st.tuples(st.sampled_from(TALK), members, st.integers(0, 3)), min_size=1, max_size=4))
    def talk(self, happenings: list[tuple[str, int, int]]) -> None:
        self.in_one_turn(happenings)

    @rule(name=st.sampled_from(FAULTS), at=members, pick=st.integers(0, 3))
    def break_something(self, name: str, at: int, pick: int) -> None:
        self.in_one_turn([(name, at, pick)])

    @rule(
        happenings=st.lists(
            st.tuples(st.sampled_from(TALK + FAULTS), members, st.integers(0, 3)), min_size=2, max_size=6
        )
    )
    def all_at_once(self, happenings: list[tuple[str, int, int]]) -> None:
        self.in_one_turn(happenings)

    def in_one_turn(self, happenings: list[tuple[str, int, int]]) -> None:
        async def run() -> None:
            for name, at, pick in happenings:
                getattr(self, name)(self.there[at], pick)
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(run())
        self.turn_ends()
        self.turns += 1

    @precondition(lambda self: self.turns >= 8)
    @rule(at=members)
    def close_and_begin_anew(self, at: int) -> None:
        self.turns = 0
        member = self.there[at]
        self.loop.run_until_complete(member.backend.close())
        self.break_(member)
        self.left += member.ears
        self.there[at] = self.new_member()
        self.turn_ends()

    # what must be true

    @invariant()
    def every_ear_was_told_what_the_model_says(self) -> None:
        for ear in [*self.left, *(ear for member in self.there for ear in member.ears)]:
            told = [one for one in ear.diary.told if not str(one).startswith("failed")]
            assert ["deaf" if str(one).startswith("deaf") else one for one in told] == ear.told

    @invariant()
    def every_answer_is_as_the_model_says(self) -> None:
        for asked in self.asked:
            assert asked.future.done() == (asked.seen != "waiting")
            if asked.seen in ("lost", "unavailable"):
                assert isinstance(asked.future.exception(), FAILURES[str(asked.seen)])
            elif asked.seen == "proven":
                assert asked.future.result() >= 0
            elif asked.seen != "waiting":
                assert asked.future.result() is asked.seen

    @invariant()
    def health_is_right(self) -> None:
        for member in self.there:
            assert member.backend.messenger.hearing().proven == member.proven

    def teardown(self) -> None:
        if not hasattr(self, "there"):
            return
        try:
            for member in self.there:
                self.loop.run_until_complete(member.backend.close())
            assert all(asked.future.done() for asked in self.asked)
            for asked in self.asked:
                asked.future.exception()
            assert self.world.empty
            assert not self.world.members
            assert not self.clock.waiting()
        finally:
            self.loop.close()


class MessagesForLong(Messages):
    """The same, longer."""


TestMessages = Messages.TestCase
TestMessages.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMessagesForLong = pytest.mark.timeout(600)(pytest.mark.long(MessagesForLong.TestCase))
TestMessagesForLong.settings = settings(max_examples=1000, stateful_step_count=40, deadline=None)
