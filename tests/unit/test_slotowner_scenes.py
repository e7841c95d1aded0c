"""The owner of a semaphore, step by step: which statements it sends, who is told what, and what was once wrong.

Here live short scenes of one owner and the model of the server in ``slotmodel.py``. Theory: the machine in
``test_slotowner.py`` proves what must never be; what is done with how few statements, and in which order, is said here.
"""

from __future__ import annotations

from typing import Any, Final, cast

from pgconcert.backend import Claim
from pgconcert.errors import PermitsDisagree, StatementFailed
from pgconcert.keys import LockKey
from pgconcert.postgres.slotowner import SlotOwner
from pgconcert.postgres.verbs import VERBS
from tests.unit.lockmodel import LOOK, Answer, Shard
from tests.unit.slotmodel import BEYOND, ServerSemaphore

VALUE: Final = BEYOND - 7


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
    assert scene.run() == ["agree", "look"]
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


def test_what_was_refused_with_one_number_says_nothing_about_another() -> None:
    """Whoever slept with two has left, nobody can mark, and somebody comes who believes in three and does not wait."""
    scene = Scene()
    scene.semaphore.theirs = {0, 1, 2}
    scene.semaphore.looking = True
    sleeper, _ = scene.claim(permits=2)
    scene.run()
    assert scene.owner is not None
    scene.owner.wake()
    scene.withdraw(sleeper)
    first, _ = scene.claim(permits=3)
    scene.run(most=1)
    scene.withdraw(first)
    scene.semaphore.theirs = {0, 1}
    _, told = scene.claim(permits=3, wait=False)
    scene.run()
    assert told.told == [True]


def test_the_answer_about_one_number_refuses_nobody_with_another() -> None:
    scene = Scene()
    scene.semaphore.theirs = {0, 1}
    claim, _ = scene.claim(permits=2)
    scene.run(most=2)
    (request,) = scene.shard.requests
    answer = scene.semaphore.execute("take", VERBS["take"].one_parameters(request.owner))
    scene.withdraw(claim)
    _, told = scene.claim(permits=3, wait=False)
    scene.shard.requests.clear()
    VERBS["take"].answered([request.owner], [(b"{%s}" % answer.encode(),)])
    assert scene.run() == ["leave", "agree", "look", "take"]
    assert told.told == [True]


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


def test_after_a_failure_it_is_tried_anew() -> None:
    """Whoever sleeps tries again, somebody who does not wait goes along, and the statement fails."""
    scene = Scene()
    scene.semaphore.theirs = {0, 1}
    scene.claim()
    scene.run()
    assert scene.owner is not None
    scene.owner.wake()
    _, told = scene.claim(wait=False)
    scene.shard.requests.clear()
    scene.owner.recover(scene.semaphore.found(), "take", None)
    assert scene.run() == ["take"]
    assert told.told == [False]


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


def test_a_slot_of_ours_that_comes_back_is_taken_by_who_sleeps() -> None:
    scene = Scene()
    scene.semaphore.theirs = {0}
    holder, _ = scene.claim()
    scene.run()
    _, told = scene.claim()
    assert scene.run() == ["take", "mark_slots"]
    scene.give_back(holder)
    assert scene.run() == ["give", "take", "unmark"]
    assert told.told == [True]


def test_who_comes_ends_the_lingering() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    scene.give_back(claim)
    scene.run()
    assert len(scene.shard.running()) == 1
    scene.claim()
    assert not scene.shard.running()


def test_an_agreement_that_the_server_does_not_know_is_made_anew() -> None:
    """Whatever happened to it: what it says after a failure is the truth."""
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    scene.give_back(claim)
    scene.run()
    _, told = scene.claim()
    (request,) = scene.shard.requests
    scene.shard.requests.clear()
    scene.semaphore.agreements.clear()
    request.owner.recover(scene.semaphore.found(), "take", None)
    assert scene.run() == ["agree", "look", "take"]
    assert told.told == [True]


def test_death_after_the_release_is_no_loss() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    done = scene.give_back(claim)
    scene.shard.requests.clear()
    scene.semaphore.forget_us()
    scene.shard.up = False
    assert scene.owner is not None
    scene.owner.link_died("gone")
    assert done.told == [True]
    assert not scene.shard.lost
    assert not scene.shard.owners


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
    tries: list[Answer] = []
    while scene.shard.requests:
        tries.append(scene.claim(wait=False)[1])
        scene.run(most=1)
    assert all(answer.told == [False] for answer in tries)
