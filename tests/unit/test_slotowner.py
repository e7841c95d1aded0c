"""The owner of a semaphore against a model of the server, in every order that Hypothesis can think of.

Here live what other sessions do to a semaphore, and the invariants of it; the model of the server stands in
``slotmodel.py``, what disturbs any owner in ``ownermachine.py``, single scenes in ``test_slotowner_scenes.py``. Two
things must never be: more permits out than there are, and a permit without the agreement about how many there are.
"""

from __future__ import annotations

from typing import Any, Final, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from pgconcert.backend import WAITING, Claim
from pgconcert.keys import LockKey
from pgconcert.postgres.slotowner import SlotOwner
from tests.unit.lockmodel import Answer
from tests.unit.ownermachine import OwnerMachine
from tests.unit.slotmodel import BEYOND, ServerSemaphore

VALUE: Final = BEYOND - 7
MOST: Final = 4

pytestmark = pytest.mark.timeout(300)  # much work for a busy processor


class SlotOwnerMachine(OwnerMachine):
    """A semaphore, and what other sessions do to it."""

    def __init__(self) -> None:
        super().__init__(VALUE, ServerSemaphore())

    def new_owner(self, claim: Claim) -> SlotOwner:
        return SlotOwner(cast(Any, self.shard), claim.key.value, claim.key.permits)

    def check_given_back(self, claim: Claim) -> None:
        assert claim.permit is not None
        assert not self.server.ours[claim.permit] or not self.shard.up

    @rule(wait=st.booleans(), permits=st.sampled_from((2, 2, 2, 2, 3, MOST)))
    def claim(self, wait: bool, permits: int) -> None:
        answer = Answer()
        self.hand_in(Claim(LockKey("s", VALUE, permits), answer, wait=wait), answer)

    # other sessions

    @rule(slot=st.integers(0, MOST - 1))
    def they_take_a_slot(self, slot: int) -> None:
        if not self.server.ours[slot]:
            self.server.theirs.add(slot)

    @rule(told=st.booleans())
    def they_give_a_slot(self, told: bool) -> None:
        if self.server.theirs:
            self.server.theirs.pop()
        if told:
            self.wake()

    @rule(permits=st.sampled_from((None, None, None, 2, 2, 3)))
    def they_agree(self, permits: int | None) -> None:
        """Somebody uses it with so many permits; or with another number than we, has found that out and left."""
        self.server.others = {} if permits is None else {"another": permits}

    @rule(marks=st.booleans(), looks=st.booleans())
    def they_come_and_go(self, marks: bool, looks: bool) -> None:
        self.server.other_mark = marks
        self.server.looking = looks and not self.server.marks

    # what brings it into the deep states quickly

    @rule(ours=st.integers(0, 4))
    def fall_asleep(self, ours: int) -> None:
        """Others have half of two permits for long: one of ours gets in, who else comes ends up marked and asleep."""
        self.server.others = {}
        self.they_take_a_slot(1)
        for _ in range(ours):
            self.claim(wait=True, permits=2)
        self.channel_is_heard()
        if self.shard.requests:
            self.answer_all()

    @rule(first=st.integers(0, 4), second=st.integers(1, 2), permits=st.integers(1, MOST), wait=st.booleans())
    def they_change_their_minds(self, first: int, second: int, permits: int, wait: bool) -> None:
        """All of ours go while so many steps of a statement are done, and others of ours come with another number."""
        if not self.claims or self.claims[-1].state != WAITING:
            self.claim(wait=True, permits=2)
        for step in [self.leave, self.execute, self.answer, self.leave, self.execute][:first]:
            if self.shard.requests:
                step()
        while self.open_claims():
            self.withdraw(0)
        for _ in range(second):
            self.claim(wait=wait, permits=permits)

    @rule(steps=st.integers(0, 3), transient=st.booleans(), effect=st.sampled_from(["none", "part", "all"]))
    def fail_at_once(self, steps: int, transient: bool, effect: str) -> None:
        """Of the first statements of a claim the last one fails."""
        self.claim(wait=True, permits=2)
        for _ in range(steps):
            if self.shard.requests:
                self.answer()
        if self.shard.requests:
            self.fail(transient, effect)
            self.answer()

    # what must be true at every instant

    @invariant()
    def the_server_grants_us_everything_once(self) -> None:
        known = self.server
        assert max(known.ours.values(), default=0) <= 1
        assert sum(known.agreements.values()) <= 1
        assert known.marks <= 1
        assert known.theirs.isdisjoint(+known.ours)

    @invariant()
    def permits_are_out_once_and_agreed_about(self) -> None:
        having = self.held()
        assert len({claim.key.permits for claim in having}) <= 1, "two numbers of permits in one process"
        assert len({claim.permit for claim in having}) == len(having)
        for claim in having:
            assert claim.permit is not None
            assert 0 <= claim.permit < claim.key.permits
            assert self.server.ours[claim.permit] == 1, "a claim has what the server has not granted"
            assert +self.server.agreements == {claim.key.permits: 1}, "a permit without agreement"

    @invariant()
    def the_notes_are_true_when_nothing_is_under_way(self) -> None:
        owner, known = self.owner, self.server
        if self.at_rest:
            assert {*owner.slots} == {*+known.ours}
            assert owner.agreed == max(+known.agreements, default=0)
            assert owner.marked == known.marks
            assert not owner.sure or owner.agreed == owner.permits
            assert None not in owner.slots.values(), "kept, and nobody has it"
            assert not owner.marked or owner.queue, "marked, and nobody waits"
            assert not owner.agreed or owner.queue or owner.slots or owner.idle or owner.rest

    @invariant()
    def all_in_the_queue_mean_the_same_number(self) -> None:
        if self.owner is not None:
            waiting = [claim for claim in self.owner.queue if claim.state == WAITING]
            assert all(claim.key.permits == self.owner.permits for claim in waiting)


TestSlotOwner = SlotOwnerMachine.TestCase
TestSlotOwner.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_for_long() -> None:
    run_state_machine_as_test(
        SlotOwnerMachine, settings=settings(max_examples=2000, stateful_step_count=60, deadline=None)
    )
