"""The owner of a semaphore against a model of the server, in every order that Hypothesis can think of.

Here live what other sessions do to a semaphore, the invariants of it, and the shortest sequences of what was once
wrong; the model of the server stands in ``slotmodel.py``, what disturbs any owner in ``ownermachine.py``. Two things
must never be: more permits out than there are, and a permit without the agreement about how many there are.
"""

from __future__ import annotations

from typing import Any, Final, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from pgconcert.backend import WAITING, Claim
from pgconcert.errors import PermitsDisagree, StatementFailed
from pgconcert.keys import LockKey
from pgconcert.postgres.slotowner import SlotOwner
from pgconcert.postgres.verbs import VERBS
from tests.unit.lockmodel import LOOK, Answer, Shard
from tests.unit.ownermachine import OwnerMachine
from tests.unit.slotmodel import BEYOND, ServerSemaphore

VALUE: Final = BEYOND - 7
MOST: Final = 4


class SlotOwnerMachine(OwnerMachine):
    """A semaphore, and what other sessions do to it."""

    def __init__(self) -> None:
        super().__init__(VALUE, ServerSemaphore())

    def new_owner(self, claim: Claim) -> SlotOwner:
        return SlotOwner(cast(Any, self.shard), claim.key.value, claim.key.permits)

    def check_given_back(self, claim: Claim) -> None:
        assert claim.permit is not None
        assert not self.server.ours[claim.permit] or not self.shard.up

    @rule(wait=st.booleans(), permits=st.sampled_from((1, 2, 2, 2, 3, MOST)))
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

    @rule(permits=st.integers(1, MOST), leave=st.booleans())
    def they_agree(self, permits: int, leave: bool) -> None:
        """Somebody uses it with so many permits, or has just found out that we use it with another number."""
        self.server.others = {} if leave else {"another": permits}

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
        SlotOwnerMachine, settings=settings(max_examples=5000, stateful_step_count=80, deadline=None)
    )


class Scene:
    """One owner by hand. Every statement is executed and answered when ``run`` says so."""

    def __init__(self) -> None:
        self.semaphore = ServerSemaphore()
        self.shard = Shard({VALUE: self.semaphore}, up=True, heard=True)
        self.owner: SlotOwner | None = None

    def claim(self, permits: int = 2, wait: bool = True) -> tuple[Claim, Answer]:
        answer = Answer()
        claim = Claim(LockKey("s", VALUE, permits), answer, wait=wait)
        owner = self.shard.owners.get(VALUE)
        if owner is None:
            owner = self.shard.owners[VALUE] = SlotOwner(cast(Any, self.shard), VALUE, permits)
        self.owner = owner
        owner.acquire(claim)
        return claim, answer

    def give_back(self, claim: Claim) -> Answer:
        assert self.owner is not None
        done = Answer()
        claim.over = True
        self.owner.release(claim, done)
        return done

    def withdraw(self, claim: Claim) -> None:
        assert self.owner is not None
        self.owner.withdraw(claim)

    def run(self, most: int = 20) -> list[str]:
        """Execute and answer what is under way, and what follows from it. The verbs."""
        verbs: list[str] = []
        while self.shard.requests and len(verbs) < most:
            request = self.shard.requests.pop(0)
            verbs.append(request.verb)
            if request.tell is not None:
                request.tell(self.semaphore.others_seen(self.semaphore.execute(LOOK, ())))
                continue
            verb = VERBS[request.verb]
            answer = self.semaphore.execute(request.verb, verb.one_parameters(request.owner))
            verb.answered([request.owner], [(b"{%s}" % answer.encode(),)])
        return verbs

    def pass_time(self) -> None:
        (timer,) = self.shard.running()
        timer.over = True
        timer.call()


def test_the_first_cycle_agrees_and_the_others_need_not() -> None:
    scene = Scene()
    claim, told = scene.claim()
    assert scene.run() == ["agree", "look", "take"]
    assert told.told == [True]
    done = scene.give_back(claim)
    assert scene.run() == ["give"]
    assert done.told == [True]
    claim, _ = scene.claim()
    assert scene.run() == ["take"]
    scene.give_back(claim)
    assert scene.run() == ["give"]
    scene.pass_time()
    assert scene.run() == ["leave"]
    assert not scene.shard.owners


def test_who_comes_at_once_is_served_at_once() -> None:
    scene = Scene()
    told = [scene.claim(permits=3)[1] for _ in range(5)]
    assert scene.run() == ["agree", "look", "take"]
    assert [answer.told for answer in told] == [[True], [True], [True], [], []]


def test_tries_at_once_get_what_is_free() -> None:
    scene = Scene()
    told = [scene.claim(permits=3, wait=False)[1] for _ in range(5)]
    scene.run()
    assert [answer.told for answer in told] == [[True], [True], [True], [False], [False]]


def test_a_try_is_refused_when_others_have_them_all() -> None:
    scene = Scene()
    scene.semaphore.theirs = {0, 1}
    _, told = scene.claim(wait=False)
    assert scene.run() == ["agree", "look", "take"]
    assert told.told == [False]


def test_a_try_behind_a_sleeper_is_refused() -> None:
    scene = Scene()
    scene.semaphore.theirs = {0, 1}
    scene.claim()
    assert scene.run() == ["agree", "look", "take", "mark_slots"]
    _, told = scene.claim(wait=False)
    assert told.told == [False]


def test_closing_gives_up_the_agreement_at_once() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    scene.give_back(claim)
    scene.run()
    assert scene.owner is not None
    scene.owner.hurry()
    assert scene.run() == ["leave"]
    assert not scene.shard.owners
    assert not scene.shard.running()


def test_another_number_elsewhere_is_told_to_all_who_ask() -> None:
    scene = Scene()
    scene.semaphore.others = {"mailer (pid 7)": 3}
    told = [scene.claim(wait=False)[1], scene.claim()[1]]
    assert scene.run() == ["agree", "look", "leave"]
    for answer in told:
        (error,) = answer.told
        assert isinstance(error, PermitsDisagree)
        assert str(error) == (
            "the semaphore 's' is used by mailer (pid 7) with 3 permits now, and was asked for with 2; "
            "give it one number everywhere (or another name), or wait until the others have stopped"
        )
    assert not scene.shard.owners


def test_another_number_in_this_process_is_told_at_once() -> None:
    scene = Scene()
    _, first = scene.claim(permits=2)
    _, second = scene.claim(permits=3)
    (error,) = second.told
    assert isinstance(error, PermitsDisagree)
    assert str(error).startswith(
        "the semaphore 's' is used by this process with 2 permits now, and was asked for with 3"
    )
    scene.run()
    assert first.told == [True]


def test_another_number_after_all_are_given_back_is_agreed_anew() -> None:
    scene = Scene()
    claim, _ = scene.claim(permits=2)
    scene.run()
    scene.give_back(claim)
    scene.run()
    _, told = scene.claim(permits=3)
    assert scene.run() == ["leave", "agree", "look", "take"]
    assert told.told == [True]


def test_another_number_while_a_take_is_under_way_is_agreed_first() -> None:
    """Whoever asked for two has left, and a slot of two comes for somebody who believes in three."""
    for left_first, wait in ((True, True), (True, False), (False, True), (False, False)):
        scene = Scene()
        claim, _ = scene.claim(permits=2)
        scene.run(most=2)
        if not left_first:
            scene.shard.requests[0].parameters = ()
        assert scene.owner is not None
        parameters = None if left_first else VERBS["take"].one_parameters(scene.owner)
        scene.withdraw(claim)
        _, told = scene.claim(permits=3, wait=wait)
        if parameters is not None:
            request = scene.shard.requests.pop(0)
            answer = scene.semaphore.execute(request.verb, parameters)
            VERBS["take"].answered([request.owner], [(b"{%s}" % answer.encode(),)])
        scene.run()
        assert told.told == [True]
        assert +scene.semaphore.agreements == {3: 1}


def test_whoever_releases_is_told_although_a_take_was_under_way() -> None:
    """The slot that was released meanwhile is given back first, and not handed over: its release would never end."""
    scene = Scene()
    first, _ = scene.claim(permits=2)
    scene.run()
    _, second = scene.claim(permits=2)
    done = scene.give_back(first)
    assert scene.run() == ["take", "give"]
    assert second.told == [True]
    assert done.told == [True]


def test_a_slot_found_after_a_failure_is_used() -> None:
    scene = Scene()
    _, told = scene.claim()
    scene.run(most=2)
    request = scene.shard.requests.pop(0)
    scene.semaphore.execute("take", VERBS["take"].one_parameters(request.owner))
    request.owner.recover(scene.semaphore.found(), "take", None)
    assert told.told == [True]
    assert scene.run() == []


def test_a_give_that_was_done_before_it_failed_wakes_others() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    done = scene.give_back(claim)
    request = scene.shard.requests.pop(0)
    scene.semaphore.execute("give", VERBS["give"].one_parameters(request.owner))
    request.owner.recover(scene.semaphore.found(), "give", StatementFailed("failed", "XX000"))
    assert done.told == [True]
    assert request.owner.rest is not None


def test_after_the_death_of_the_link_it_is_agreed_anew() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    _, told = scene.claim()
    scene.shard.requests.clear()
    scene.semaphore.forget_us()
    assert scene.owner is not None
    scene.shard.up = False
    scene.owner.link_died("gone")
    assert scene.shard.lost == [claim]
    scene.shard.up = True
    scene.owner.step()
    assert scene.run() == ["agree", "look", "take"]
    assert told.told == [True]


def test_a_try_beside_one_that_waits_gets_what_is_free() -> None:
    """Both are under way; only behind one that sleeps it would come too late."""
    scene = Scene()
    _, first = scene.claim(permits=3)
    _, second = scene.claim(permits=3, wait=False)
    scene.run()
    assert (first.told, second.told) == ([True], [True])


def test_a_try_beside_one_that_falls_asleep_is_refused() -> None:
    """The mark is refused until nobody tries it any more."""
    scene = Scene()
    scene.semaphore.theirs = {0, 1}
    scene.semaphore.looking = True
    scene.claim()
    while scene.shard.requests:
        _, told = scene.claim(wait=False)
        scene.run(most=1)
    assert told.told == [False]
