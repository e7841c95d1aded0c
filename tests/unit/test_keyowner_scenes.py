"""The owner of a lock, step by step: which statements it sends, who is told what, and what was once wrong.

Here live short scenes of one owner and the model of the server in ``lockmodel.py``. Theory: the machine in
``test_keyowner.py`` proves what must never be; what is done with how few statements, and in which order, is said here.
"""

from __future__ import annotations

from typing import Any, Final, cast

from pgconcert.backend import Claim
from pgconcert.errors import StatementFailed
from pgconcert.keys import LockKey
from pgconcert.postgres.keyowner import KeyOwner
from pgconcert.postgres.verbs import VERBS
from tests.unit.lockmodel import Answer, ServerKey, Shard

VALUE: Final = -7


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


def test_of_two_writers_that_do_not_wait_one_is_refused() -> None:
    scene = Scene()
    told = [scene.claim(wait=False)[1] for _ in range(2)]
    assert scene.run() == ["try"]
    assert [answer.told for answer in told] == [[True], [False]]


def test_what_the_gate_has_told_a_reader_it_has_not_told_a_writer() -> None:
    """The reader that it kept outside has left: the writer behind it asks at once."""
    scene = Scene()
    scene.reader()
    scene.run()
    scene.key.other_gate = True
    reader, _ = scene.reader()
    scene.claim()
    scene.run()
    scene.key.other_gate = False
    scene.owner.withdraw(reader)
    assert scene.run() == ["close"]


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


def test_a_reader_that_does_not_wait_is_refused_by_the_gate() -> None:
    """Beside readers of its own process: the gate is closed by another, or a writer of ours comes first."""
    scene = Scene()
    scene.reader()
    scene.run()
    scene.key.other_gate = True
    _, first = scene.reader(wait=False)
    assert scene.run() == ["join"]
    scene.key.other_gate = False
    scene.claim()
    _, second = scene.reader(wait=False)
    scene.run()
    assert (first.told, second.told) == ([False], [False])


def test_a_mark_is_given_up_with_the_lock_held() -> None:
    """Else others would be woken in vain by whoever releases."""
    scene = Scene()
    scene.key.writer = True
    claim, told = scene.claim()
    scene.run()
    scene.key.writer = False
    scene.owner.wake()
    assert scene.run() == ["retry", "unmark"]
    assert told.told == [True]
    scene.give_back(claim)
    assert scene.run() == ["unlock"]


def test_who_is_behind_a_writer_is_tried_in_its_own_mode() -> None:
    scene = Scene()
    scene.key.readers = 1
    writer, _ = scene.claim()
    _, told = scene.reader()
    scene.run()
    scene.owner.withdraw(writer)
    assert scene.run() == ["open", "try_shared", "unmark"]
    assert told.told == [True]


def test_after_a_wanted_release_others_get_their_chance() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    _, told = scene.claim()
    scene.key.other_mark = True
    scene.give_back(claim)
    assert scene.run() == ["unlock"]
    (rest,) = scene.shard.running()
    rest.cancel()
    rest.call()
    assert scene.run() == ["try"]
    assert told.told == [True]


def test_the_end_of_a_rest_is_awaited_by_nobody_who_left() -> None:
    scene = Scene()
    claim, _ = scene.claim()
    scene.run()
    scene.key.other_mark = True
    scene.give_back(claim)
    assert scene.run() == ["unlock"]
    assert scene.shard.owners
    (rest,) = scene.shard.running()
    rest.cancel()
    rest.call()
    assert not scene.shard.owners


def test_readers_are_lost_together() -> None:
    scene = Scene()
    claims = [scene.reader()[0] for _ in range(3)]
    scene.run()
    scene.shard.up = False
    scene.key.forget_us()
    scene.owner.link_died("gone")
    assert scene.shard.lost == claims
    assert not scene.shard.owners


def test_after_a_failure_it_is_tried_anew() -> None:
    """Whoever sleeps tries again, a reader that does not wait goes along, and the statement fails."""
    scene = Scene()
    scene.key.writer = True
    scene.reader()
    scene.run()
    scene.owner.wake()
    _, told = scene.reader(wait=False)
    scene.fail(effect=False)
    assert scene.run() == ["try_shared"]
    assert told.told == [False]


def test_after_a_failure_a_reader_asks_the_gate_anew() -> None:
    scene = Scene()
    scene.reader()
    scene.run()
    scene.key.other_gate = True
    scene.reader()
    scene.run()
    scene.owner.wake()
    _, told = scene.reader(wait=False)
    scene.fail(effect=False)
    assert scene.run() == ["join"]
    assert told.told == [False]


def test_after_a_mark_without_its_try_it_is_tried() -> None:
    """What was released between the first try and the mark would be found by the next re-check only."""
    scene = Scene()
    scene.key.writer = True
    _, told = scene.claim()
    request = scene.shard.requests.pop(0)
    VERBS[request.verb].answered([scene.owner], [(b"f",)])
    (request,) = scene.shard.requests
    scene.key.execute_partly(request.verb)
    scene.key.writer = False
    scene.shard.requests.clear()
    scene.owner.recover(scene.key.found(), request.verb, None)
    assert scene.run() == ["try", "unmark"]
    assert told.told == [True]


def test_a_failure_that_is_final_is_told_to_all_who_wait() -> None:
    scene = Scene()
    _, first = scene.claim()
    _, second = scene.reader()
    failure = StatementFailed("failed", "XX000")
    scene.shard.requests.clear()
    scene.owner.recover(scene.key.found(), "try", failure)
    assert (first.told, second.told) == ([failure], [failure])
    assert not scene.shard.owners
