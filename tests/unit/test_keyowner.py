"""The owner of one key against a model of the server, in every order that Hypothesis can think of.

Here live the rules that disturb an owner and the invariants; the model of the server stands in `lockmodel.py`.

Theory: the owner may not assume anything about time. So a statement is *sent*, *executed* and *answered* in three
separate steps, and between any two of them claims arrive, leave or are released, the link dies, other sessions take the
key, and wake-ups come that mean nothing. After every step the invariants of a lock must hold; at the end the world is
made friendly, and then every claim must get its answer and nothing may stay behind. The model counts session locks as
the server does: granting twice gives two, which is the defect that the owner exists to prevent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgconcert.backend import GRANTED, WAITING, Claim
from pgconcert.errors import StatementFailed, Unavailable
from pgconcert.hold import Grant
from pgconcert.keys import LockKey
from pgconcert.postgres.keyowner import KeyOwner
from tests.unit.lockmodel import Answer, Request, ServerKey, Shard

KEYS: Final = (7, -1)
GIVE_UP_AFTER: Final = 3


class KeyOwnerMachine(RuleBasedStateMachine):
    """Callers, one link and other sessions, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.server = {value: ServerKey() for value in KEYS}
        self.shard = Shard(self.server)
        self.claims: list[Claim] = []
        self.answers: dict[Claim, Answer] = {}
        self.withdrawn: set[Claim] = set()
        self.releases: list[Answer] = []

    @initialize(up=st.booleans(), heard=st.booleans())
    def begin(self, up: bool, heard: bool) -> None:
        self.shard.up, self.shard.heard = up, heard

    # callers

    @rule(value=st.sampled_from(KEYS), wait=st.booleans())
    def claim(self, value: int, wait: bool) -> None:
        answer = Answer()
        claim = Claim(LockKey(value, value), answer, wait=wait)
        self.claims.append(claim)
        self.answers[claim] = answer
        owner = self.shard.owners.get(value)
        if owner is None:
            owner = self.shard.owners[value] = KeyOwner(cast(Any, self.shard), value)
        owner.acquire(claim)

    def open_claims(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.state == WAITING and claim not in self.withdrawn] + self.held()

    @precondition(lambda self: self.open_claims())
    @rule(pick=st.integers(0, 99))
    def withdraw(self, pick: int) -> None:
        """The caller leaves while it waits; it may have been granted meanwhile, but it has not seen that."""
        known = self.open_claims()
        claim = known[pick % len(known)]
        self.withdrawn.add(claim)
        owner = self.shard.owners.get(claim.key.value)
        if owner is not None:
            owner.withdraw(claim)

    def held(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.state == GRANTED and not claim.over and claim.reason is None]

    @precondition(lambda self: self.held())
    @rule(pick=st.integers(0, 99), wait=st.booleans())
    def release(self, pick: int, wait: bool) -> None:
        held = self.held()
        claim = held[pick % len(held)]
        claim.over = True
        done = Answer() if wait else None
        if done is not None:
            self.releases.append(done)
        owner = self.shard.owners.get(claim.key.value)
        assert owner is not None, "the owner of a held key has retired"
        owner.release(claim, done)

    # the link

    def pick_request(self, pick: int) -> Request:
        return self.shard.requests[pick % len(self.shard.requests)]

    @precondition(lambda self: self.shard.requests)
    @rule(pick=st.integers(0, 9))
    def execute(self, pick: int) -> None:
        request = self.pick_request(pick)
        if request.answer is None and request.failure is None:
            request.answer = self.server[request.owner.value].execute(request.verb)

    @precondition(lambda self: self.shard.requests)
    @rule(pick=st.integers(0, 9))
    def answer(self, pick: int) -> None:
        request = self.pick_request(pick)
        if request.failure is not None:
            self.reconcile(request)
            return
        if request.answer is None:
            request.answer = self.server[request.owner.value].execute(request.verb)
        self.shard.requests.remove(request)
        owner, told = request.owner, ord(request.answer)
        tell: dict[str, Callable[[], None]] = {
            "try": lambda: owner.tried_with(told),
            "mark": lambda: owner.marked_with(told),
            "unlock": lambda: owner.unlocked_with(told),
            "unmark": lambda: owner.unmarked_with(told),
        }
        tell[request.verb]()

    @precondition(lambda self: self.shard.requests)
    @rule(pick=st.integers(0, 9), transient=st.booleans(), effect=st.booleans())
    def fail(self, pick: int, transient: bool, effect: bool) -> None:
        """The statement fails, having done its work or not: what a failed batch did is unknown."""
        request = self.pick_request(pick)
        if effect:
            self.execute(pick)
        if effect or request.answer is None:
            request.failure = StatementFailed("failed", "55P03" if transient else "XX000")

    def reconcile(self, request: Request) -> None:
        owner, known = request.owner, self.server[request.owner.value]
        if owner.failures >= GIVE_UP_AFTER:
            self.link_dies()
            return
        self.shard.requests.remove(request)
        failure = request.failure
        assert failure is not None
        owner.recover(
            held=known.ours > 0,
            marked=known.marks > 0,
            unlocking=request.verb == "unlock",
            error=None if failure.sqlstate == "55P03" else failure,
        )

    @precondition(lambda self: self.shard.up)
    @rule()
    def link_dies(self) -> None:
        self.shard.up = False
        self.shard.requests.clear()
        for known in self.server.values():
            known.ours = known.marks = 0
        for owner in [*self.shard.owners.values()]:
            owner.link_died("the link died")

    @precondition(lambda self: not self.shard.up)
    @rule()
    def link_comes(self) -> None:
        self.shard.up = True
        for owner in [*self.shard.owners.values()]:
            owner.step()

    @precondition(lambda self: not self.shard.up)
    @rule(final=st.booleans())
    def connect_fails(self, final: bool) -> None:
        for owner in [*self.shard.owners.values()]:
            for claim in [*owner.queue]:
                if final or not claim.wait:
                    owner.queue.remove(claim)
                    claim.fail(Unavailable("no connection"))
            owner.step()

    @precondition(lambda self: self.shard.requests)
    @rule()
    def answer_all(self) -> None:
        """The world is quick for a while; without it the deep states are hardly ever reached."""
        for _ in range(8):
            if self.shard.requests:
                self.answer(0)

    @rule(value=st.sampled_from(KEYS), others=st.integers(0, 2))
    def fall_asleep(self, value: int, others: int) -> None:
        """Another session has the key for long: whoever comes ends up marked and asleep."""
        self.foreign_takes(value)
        for _ in range(1 + others):
            self.claim(value, wait=True)
        self.channel_is_heard()
        if self.shard.requests:
            self.answer_all()

    # other sessions, and time

    @rule(value=st.sampled_from(KEYS))
    def foreign_takes(self, value: int) -> None:
        self.server[value].foreign = not self.server[value].ours

    @rule(value=st.sampled_from(KEYS), mark=st.booleans(), look=st.booleans())
    def foreign_marks(self, value: int, mark: bool, look: bool) -> None:
        self.server[value].foreign_mark = mark
        self.server[value].looking = look

    @rule(value=st.sampled_from(KEYS), told=st.booleans())
    def foreign_releases(self, value: int, told: bool) -> None:
        self.server[value].foreign = False
        owner = self.shard.owners.get(value)
        if told and owner is not None and owner.queue and not owner.held:
            owner.wake()

    @rule()
    def channel_is_heard(self) -> None:
        self.shard.heard = True
        for owner in [*self.shard.watched]:
            owner.wake()

    @rule()
    def channel_is_not_heard(self) -> None:
        self.shard.heard = False

    @precondition(lambda self: self.shard.up)
    @rule()
    def recheck(self) -> None:
        for owner in [*self.shard.watched]:
            if owner.asleep():
                self.shard.try_(owner)

    @precondition(lambda self: self.shard.resting)
    @rule()
    def rested(self) -> None:
        timer = self.shard.resting.pop(0)
        if not timer.cancelled:
            timer.owner.rested()

    # what must be true at every instant

    @invariant()
    def the_server_holds_each_key_once_at_most(self) -> None:
        for known in self.server.values():
            assert known.ours <= 1
            assert known.marks <= 1
            assert not (known.ours and known.foreign)

    @invariant()
    def one_claim_has_it_and_the_server_agrees(self) -> None:
        for value in KEYS:
            having = [claim for claim in self.held() if claim.key.value == value]
            assert len(having) <= 1, "two claims have one key"
            assert not having or self.server[value].ours == 1, "a claim has what the server has not granted"

    @invariant()
    def a_waiter_is_told_once(self) -> None:
        assert all(len(answer.told) <= 1 for answer in self.answers.values())
        assert all(len(answer.told) <= 1 for answer in self.releases)

    @invariant()
    def claims_are_granted_in_the_order_of_arrival(self) -> None:
        order = {claim: number for number, claim in enumerate(self.claims)}
        for value in KEYS:
            numbers = [order[claim] for claim in self.shard.grants if claim.key.value == value]
            assert numbers == sorted(numbers)

    @invariant()
    def who_does_not_want_to_wait_does_not(self) -> None:
        for owner in self.shard.owners.values():
            if self.shard.up and owner.tried and not owner.busy:
                assert all(claim.wait for claim in owner.queue if claim.state == WAITING)

    @invariant()
    def nobody_unlocks_what_is_not_ours(self) -> None:
        assert not self.shard.strange

    # the end

    def teardown(self) -> None:
        for known in self.server.values():
            known.foreign = known.looking = False
        self.shard.heard = True
        if not self.shard.up:
            self.link_comes()
        self.channel_is_heard()
        for _ in range(10 * len(self.claims) + 100):
            if not self.shard.owners:
                break
            for _ in range(20):
                if not self.shard.requests:
                    break
                self.answer(0)
                if not self.shard.up:
                    self.link_comes()
            while self.shard.resting:
                self.rested()
            if self.held():
                self.release(0, wait=True)
            elif not self.shard.requests:
                self.recheck()
        assert not self.shard.owners, "an owner never retired"
        assert not self.shard.watched
        for known in self.server.values():
            assert (known.ours, known.marks) == (0, 0)
        for claim, answer in self.answers.items():
            assert claim.state != WAITING
            assert answer.told or claim in self.withdrawn, "a claim was never answered"
        assert all(answer.told == [True] for answer in self.releases)
        assert set(self.shard.lost) <= {claim for claim in self.claims if claim.reason}


TestKeyOwner = KeyOwnerMachine.TestCase
TestKeyOwner.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_death_after_the_release_is_no_loss() -> None:
    """The release is answered, and so is one that comes after the owner has forgotten the claim."""
    server = {value: ServerKey() for value in KEYS}
    shard = Shard(server, up=True)
    owner = shard.owners[7] = KeyOwner(cast(Any, shard), 7)
    claim = Claim(LockKey(7, 7), Answer(), wait=True)
    owner.acquire(claim)
    server[7].ours = 1
    shard.requests.clear()
    owner.tried_with(ord("t"))
    assert shard.grants == [claim]
    claim.over = True
    done = Answer()
    owner.release(claim, done)
    shard.up = False
    shard.requests.clear()
    server[7].ours = 0
    owner.link_died("gone")
    assert done.told == [True]
    assert isinstance(claim, Grant)
    assert claim.reason is None
    assert not shard.lost
    assert not shard.owners
    late = Answer()
    owner.release(claim, late)
    assert late.told == [True]
