"""The owner of a lock against a model of the server, in every order that Hypothesis can think of.

Here live what other sessions do to a lock, the invariants of it, and the shortest sequences of what was once wrong; the
model of the server stands in ``lockmodel.py``, what disturbs any owner in ``ownermachine.py``. The model counts session
locks as the server does: granting twice gives two, which is the defect that the owner exists to prevent.
"""

from __future__ import annotations

from typing import Any, Final, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from pgconcert.backend import WAITING, Claim
from pgconcert.errors import StatementFailed
from pgconcert.keys import LockKey
from pgconcert.postgres.keyowner import EXCLUSIVE, SHARED, KeyOwner
from pgconcert.postgres.verbs import VERBS
from tests.unit.lockmodel import Answer, ServerKey, Shard
from tests.unit.ownermachine import OwnerMachine

VALUE: Final = -7


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
        KeyOwnerMachine, settings=settings(max_examples=5000, stateful_step_count=80, deadline=None)
    )


class Scene:
    """One owner by hand. Every statement is executed and answered when ``run`` says so."""

    def __init__(self) -> None:
        self.key = ServerKey()
        self.shard = Shard({VALUE: self.key}, up=True, heard=True)
        self.owner = self.shard.owners[VALUE] = KeyOwner(cast(Any, self.shard), VALUE)

    def claim(self, shared: bool = False, wait: bool = True) -> tuple[Claim, Answer]:
        answer = Answer()
        claim = Claim(LockKey(VALUE, VALUE), answer, wait=wait, shared=shared)
        self.owner.acquire(claim)
        return claim, answer

    def reader(self, wait: bool = True) -> tuple[Claim, Answer]:
        return self.claim(shared=True, wait=wait)

    def give_back(self, claim: Claim) -> Answer:
        done = Answer()
        claim.over = True
        self.owner.release(claim, done)
        return done

    def run(self, most: int = 20) -> list[str]:
        """Execute and answer what is under way, and what follows from it. The verbs."""
        verbs: list[str] = []
        while self.shard.requests and len(verbs) < most:
            request = self.shard.requests.pop(0)
            verbs.append(request.verb)
            answer = self.key.execute(request.verb)
            VERBS[request.verb].answered([self.owner], [(answer.encode(),)])
        return verbs

    def fail(self, effect: bool) -> None:
        """What is under way fails in a way that is worth another try."""
        request = self.shard.requests.pop(0)
        if effect:
            self.key.execute(request.verb)
        self.owner.recover(self.key.found(), request.verb, None)


def test_a_cycle_is_two_statements() -> None:
    for shared, verbs in ((False, ["try", "unlock"]), (True, ["try_shared", "unlock_shared"])):
        scene = Scene()
        claim, answer = scene.claim(shared)
        scene.run()
        assert answer.told == [True]
        done = scene.give_back(claim)
        scene.run()
        assert done.told == [True]
        assert scene.shard.sent == verbs
        assert not scene.shard.owners


def test_readers_of_one_process_have_one_lock() -> None:
    scene = Scene()
    readers = [scene.reader() for _ in range(5)]
    assert scene.run() == ["try_shared"]
    assert scene.key.shared == 1
    readers.append(scene.reader())
    assert scene.run() == ["join"]
    assert all(answer.told == [True] for _, answer in readers)
    for claim, _ in readers[:-1]:
        assert scene.give_back(claim).told == [True]
    assert scene.key.shared == 1
    done = scene.give_back(readers[-1][0])
    assert scene.run() == ["unlock_shared"]
    assert done.told == [True]


def test_a_writer_behind_readers_of_its_own_process_closes_the_gate() -> None:
    scene = Scene()
    reader, _ = scene.reader()
    scene.run()
    writer, told = scene.claim()
    assert scene.run() == ["close"]
    _, behind = scene.reader()
    assert scene.run() == []
    scene.give_back(reader)
    assert scene.run() == ["unlock_shared", "try", "open"]
    assert (told.told, behind.told) == ([True], [])
    scene.give_back(writer)
    assert scene.run() == ["unlock", "try_shared"]
    assert behind.told == [True]


def test_a_writer_behind_readers_of_others_closes_the_gate_when_it_marks() -> None:
    scene = Scene()
    scene.key.readers = 1
    writer, told = scene.claim()
    assert scene.run() == ["try", "mark"]
    assert scene.key.gates == 1
    scene.owner.withdraw(writer)
    assert scene.run() == ["open", "unmark"]
    assert not told.told
    assert not scene.shard.owners


def test_a_gate_that_is_closed_is_not_closed_again_with_the_mark() -> None:
    """Closed while readers of ours were inside; then they leave, and readers of others are still there."""
    scene = Scene()
    reader, _ = scene.reader()
    scene.run()
    scene.key.readers = 1
    writer, told = scene.claim()
    assert scene.run() == ["close"]
    scene.give_back(reader)
    scene.run()
    assert (scene.key.gates, scene.key.marks) == (1, 1)
    scene.key.readers = 0
    scene.owner.wake()
    scene.run()
    assert told.told == [True]
    scene.give_back(writer)
    scene.run()
    assert not scene.shard.owners


def test_a_gate_found_closed_after_a_failure_is_not_closed_again() -> None:
    """It was refused once; the second closing fails after it was done; then the re-check comes."""
    scene = Scene()
    scene.reader()
    scene.run()
    scene.key.passing = True
    scene.claim()
    scene.run()
    scene.key.passing = False
    scene.owner.wake()
    scene.fail(effect=True)
    assert scene.owner.gate
    assert scene.owner.again() is None


def test_a_reader_is_not_refused_for_a_writer_that_left() -> None:
    """The gate cannot be closed, its writer has left meanwhile, and a reader comes that does not wait."""
    scene = Scene()
    scene.reader()
    scene.run()
    writer, _ = scene.claim()
    scene.key.passing = True
    scene.owner.withdraw(writer)
    _, told = scene.reader(wait=False)
    scene.run()
    assert told.told == [True]


def test_a_writer_whose_closing_was_refused_looks_again() -> None:
    """However it came to wait: here it came before its reader was granted."""
    scene = Scene()
    scene.reader()
    scene.claim()
    scene.key.passing = True
    scene.run()
    assert scene.owner in scene.shard.watched
    assert scene.owner.again() == "close"


def test_readers_that_do_not_wait_come_in_together() -> None:
    """None of them has a writer before it."""
    scene = Scene()
    told = [scene.reader(wait=False)[1] for _ in range(3)]
    scene.run()
    assert [answer.told for answer in told] == [[True]] * 3


def test_readers_that_do_not_wait_are_refused_together() -> None:
    scene = Scene()
    scene.key.writer = True
    told = [scene.reader(wait=False)[1] for _ in range(3)]
    assert scene.run() == ["try_shared"]
    assert [answer.told for answer in told] == [[False]] * 3
    assert not scene.shard.owners


def test_who_does_not_wait_is_refused_behind_a_sleeper() -> None:
    scene = Scene()
    scene.key.writer = True
    scene.reader()
    assert scene.run() == ["try_shared", "mark_shared"]
    for shared in (False, True):
        _, told = scene.claim(shared, wait=False)
        assert told.told == [False]


def test_who_comes_while_the_gate_is_opened_is_tried() -> None:
    """The writer for which it was closed has left; what was refused to it says nothing about the next."""
    scene = Scene()
    scene.key.readers = 1
    writer, _ = scene.claim()
    scene.run()
    scene.owner.withdraw(writer)
    _, told = scene.claim(wait=False)
    assert scene.run() == ["open", "try", "unmark"]
    assert told.told == [False]
    assert not scene.shard.owners


def test_what_nobody_wants_any_more_is_given_back() -> None:
    """The writer has left when its lock comes; the reader behind it is asked for anew."""
    scene = Scene()
    writer, _ = scene.claim()
    scene.owner.withdraw(writer)
    _, told = scene.reader()
    assert scene.run() == ["try", "unlock", "try_shared"]
    assert told.told == [True]


def test_the_last_reader_leaves_while_another_joins() -> None:
    for gate, verbs in ((False, ["join"]), (True, ["join", "unlock_shared", "try_shared", "mark_shared"])):
        scene = Scene()
        first, _ = scene.reader()
        scene.run()
        _, told = scene.reader()
        scene.key.other_gate = gate
        done = scene.give_back(first)
        assert not done.told
        assert scene.run() == verbs
        assert done.told == [True]
        assert told.told == ([] if gate else [True])


def test_death_after_the_release_is_no_loss() -> None:
    """The release is answered, and so is one that comes after the owner has forgotten the claim."""
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    done = scene.give_back(claim)
    scene.shard.up = False
    scene.shard.requests.clear()
    scene.key.forget_us()
    scene.owner.link_died("gone")
    assert done.told == [True]
    assert claim.reason is None
    assert not scene.shard.lost
    assert not scene.shard.owners
    assert scene.give_back(claim).told == [True]


def test_readers_are_lost_together() -> None:
    scene = Scene()
    claims = [scene.reader()[0] for _ in range(3)]
    scene.run()
    scene.shard.up = False
    scene.key.forget_us()
    scene.owner.link_died("gone")
    assert scene.shard.lost == claims
    assert not scene.shard.owners


def test_a_failure_that_is_final_is_told_to_all_who_wait() -> None:
    scene = Scene()
    _, first = scene.claim()
    _, second = scene.reader()
    failure = StatementFailed("failed", "XX000")
    scene.shard.requests.clear()
    scene.owner.recover(scene.key.found(), "try", failure)
    assert (first.told, second.told) == ([failure], [failure])
    assert not scene.shard.owners
