"""The owner of a lock against a model of the server, in every order that Hypothesis can think of.

Here live what other sessions do to a lock, and the invariants of it; the model of the server stands in
``lockmodel.py``, what disturbs any owner in ``ownermachine.py``, single scenes in ``test_keyowner_scenes.py``. The
model counts session locks as the server does: granting twice gives two, which the owner exists to prevent.
"""

from __future__ import annotations

from typing import Any, Final, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from pgconcert.backend import WAITING, Claim
from pgconcert.keys import LockKey
from pgconcert.postgres.keyowner import EXCLUSIVE, SHARED, KeyOwner
from tests.unit.lockmodel import Answer, ServerKey
from tests.unit.ownermachine import OwnerMachine

VALUE: Final = -7

pytestmark = pytest.mark.timeout(300)  # much work for a busy processor


class KeyOwnerMachine(OwnerMachine):
    """A lock, and what other sessions do to it."""

    def __init__(self) -> None:
        super().__init__(VALUE, ServerKey())

    def new_owner(self, claim: Claim) -> KeyOwner:
        return KeyOwner(cast(Any, self.shard), claim.key.value)

    def check_given_back(self, claim: Claim) -> None:
        """It is free, or other readers of this process have it."""
        if self.shard.up:
            assert not self.server.exclusive
            assert not self.server.shared or (claim.shared and self.owner.readers)

    @rule(wait=st.booleans(), shared=st.booleans())
    def claim(self, wait: bool, shared: bool) -> None:
        answer = Answer()
        self.hand_in(Claim(LockKey(VALUE, VALUE), answer, wait=wait, shared=shared), answer)

    # other sessions

    @rule()
    def a_writer_takes_it(self) -> None:
        known = self.server
        known.writer = not known.exclusive and not known.shared and not known.readers

    @rule(polite=st.booleans())
    def a_reader_takes_it(self, polite: bool) -> None:
        """One that passes the gate, or that of a program which knows of no gate."""
        known = self.server
        if not known.exclusive and not known.writer and not (polite and (known.gates or known.other_gate)):
            known.readers += 1

    @rule(told=st.booleans())
    def one_of_them_gives_it_back(self, told: bool) -> None:
        known = self.server
        known.writer, known.readers = False, max(0, known.readers - 1)
        if told:
            self.wake()

    @rule(marks=st.booleans(), looks=st.booleans(), passes=st.booleans())
    def they_come_and_go(self, marks: bool, looks: bool, passes: bool) -> None:
        known = self.server
        known.other_mark = marks
        known.looking = looks and not known.marks
        known.passing = passes and not known.gates and not known.other_gate

    @rule(closed=st.booleans())
    def their_gate(self, closed: bool) -> None:
        known = self.server
        known.other_gate = closed and not known.gates and not known.passing

    # what brings it into the deep states quickly

    @rule(others=st.integers(0, 2), shared=st.booleans())
    def fall_asleep(self, others: int, shared: bool) -> None:
        """Another session has the key for long: whoever comes ends up marked and asleep."""
        self.a_writer_takes_it()
        for _ in range(1 + others):
            self.claim(wait=True, shared=shared)
        self.settle_down()

    @rule(
        ours=st.booleans(),
        others=st.booleans(),
        writers=st.integers(1, 2),
        fails=st.sampled_from([None, None, "none", "all"]),
        leaves=st.booleans(),
    )
    def writers_wait_for_readers(self, ours: bool, others: bool, writers: int, fails: str | None, leaves: bool) -> None:
        """Readers of this process or another are inside, and writers of ours come; perhaps a statement of theirs fails,
        and the reader leaves."""
        if ours:
            self.claim(wait=True, shared=True)
        self.settle_down()
        if others:
            self.a_reader_takes_it(polite=False)
        for _ in range(writers):
            self.claim(wait=True, shared=False)
        if fails is not None and self.shard.requests:
            self.fail(transient=True, effect=fails)
        self.settle_down()
        if leaves and self.held():
            self.release(0, wait=True)
            self.settle_down()

    def settle_down(self) -> None:
        self.channel_is_heard()
        if self.shard.requests:
            self.answer_all()

    # what must be true at every instant

    @invariant()
    def the_server_grants_us_everything_once(self) -> None:
        known = self.server
        assert max(known.exclusive, known.shared, known.marks, known.gates) <= 1
        assert known.exclusive + known.shared <= 1
        assert not (known.exclusive and (known.writer or known.readers))

    @invariant()
    def one_writer_or_readers_and_the_server_agrees(self) -> None:
        having = self.held()
        writers = [claim for claim in having if not claim.shared]
        assert not writers or len(having) == 1, "a writer is not alone"
        assert not writers or self.server.exclusive == 1, "a writer has what the server has not granted"
        assert not having or self.server.exclusive + self.server.shared == 1, "a reader has what was not granted"

    @invariant()
    def the_notes_are_true_when_nothing_is_under_way(self) -> None:
        owner, known = self.owner, self.server
        if self.at_rest:
            noted = (owner.mode == EXCLUSIVE, owner.mode == SHARED, owner.marked, owner.gate)
            assert noted == (known.exclusive, known.shared, known.marks, known.gates)
            assert not owner.mode or owner.claims, "kept, and nobody has it"
            assert not owner.marked or owner.queue, "marked, and nobody waits"

    @invariant()
    def a_gate_is_closed_for_a_writer_that_waits(self) -> None:
        if self.at_rest and self.owner.gate:
            assert self.owner.mode != EXCLUSIVE
            waiting = [claim for claim in self.owner.queue if claim.state == WAITING]
            assert waiting
            assert not waiting[0].shared


TestKeyOwner = KeyOwnerMachine.TestCase
TestKeyOwner.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_for_long() -> None:
    run_state_machine_as_test(
        KeyOwnerMachine, settings=settings(max_examples=2000, stateful_step_count=60, deadline=None)
    )
