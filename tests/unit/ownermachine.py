"""What disturbs the owner of any key: callers, a link, failures and time, in every order that Hypothesis can think of.

Here live the rules and invariants that all kinds of owner have in common; ``test_keyowner.py`` and
``test_slotowner.py`` add what others do to their kind of key, and what must be true of it.

Theory: the owner may not assume anything about time. So a statement is *asked for*, *leaves* (its parameters are
written then, as by group commit), is *executed* and is *answered* in separate steps, and between any two of them
claims arrive, leave or are released, the link dies, other sessions do what they like, and wake-ups come that mean
nothing. At the end the world is made friendly: then every claim must get its answer, and nothing may stay behind.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgconcert.backend import GRANTED, WAITING, Claim
from pgconcert.errors import CoordinatorClosed, StatementFailed, Unavailable
from pgconcert.postgres.verbs import VERBS
from tests.unit.lockmodel import LOOK, Answer, Request, Shard

GIVE_UP_AFTER: Final = 3


class OwnerMachine(RuleBasedStateMachine):
    """Callers of one key, one link and time, in any order. Two keys would know nothing of each other."""

    def __init__(self, value: int, server: Any) -> None:
        super().__init__()
        self.value = value
        self.server = server
        self.shard = Shard({value: server})
        self.claims: list[Claim] = []
        self.answers: dict[Claim, Answer] = {}
        self.withdrawn: set[Claim] = set()
        self.releases: list[Answer] = []
        self.closes = False

    @abstractmethod
    def new_owner(self, claim: Claim) -> Any:
        """The owner that this claim calls for."""

    @abstractmethod
    def check_given_back(self, claim: Claim) -> None:
        """At the instant when whoever released learns that it is done."""

    @initialize(up=st.booleans(), heard=st.booleans(), closes=st.booleans())
    def begin(self, up: bool, heard: bool, closes: bool) -> None:
        self.shard.up, self.shard.heard, self.closes = up, heard, closes

    # callers

    def hand_in(self, claim: Claim, answer: Answer) -> None:
        self.claims.append(claim)
        self.answers[claim] = answer
        owner = self.owner
        if owner is None:
            owner = self.shard.owners[self.value] = self.new_owner(claim)
        owner.acquire(claim)

    @property
    def owner(self) -> Any:
        return self.shard.owners.get(self.value)

    @property
    def at_rest(self) -> bool:
        """Whether there is an owner whose notes must be true now: nothing is under way."""
        return self.shard.up and self.owner is not None and not self.owner.busy

    def held(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.state == GRANTED and not claim.over and claim.reason is None]

    def open_claims(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.state == WAITING and claim not in self.withdrawn] + self.held()

    @precondition(lambda self: self.open_claims())
    @rule(pick=st.integers(0, 99))
    def withdraw(self, pick: int) -> None:
        """The caller leaves while it waits; it may have been granted meanwhile, but it has not seen that."""
        known = self.open_claims()
        claim = known[pick % len(known)]
        self.withdrawn.add(claim)
        if self.owner is not None:
            self.owner.withdraw(claim)

    @precondition(lambda self: self.held())
    @rule(pick=st.integers(0, 99), wait=st.booleans())
    def release(self, pick: int, wait: bool) -> None:
        held = self.held()
        claim = held[pick % len(held)]
        claim.over = True
        done = Answer(lambda: self.check_given_back(claim)) if wait else None
        if done is not None:
            self.releases.append(done)
        assert self.owner is not None, "the owner of a held key has retired"
        self.owner.release(claim, done)

    @precondition(lambda self: self.held())
    @rule(transient=st.booleans(), effect=st.sampled_from(["none", "part", "all"]))
    def release_in_vain(self, transient: bool, effect: str) -> None:
        """The statement with which something is given back fails; or whatever is under way then."""
        self.release(0, wait=True)
        if self.shard.requests:
            self.fail(transient, effect)
            self.answer()

    # the link

    @property
    def request(self) -> Request:
        """The statement under way; there is never more than one."""
        (request,) = self.shard.requests
        return request

    @precondition(lambda self: self.shard.requests)
    @rule()
    def leave(self) -> None:
        request = self.request
        if request.parameters is None:
            request.parameters = () if request.verb == LOOK else VERBS[request.verb].one_parameters(request.owner)

    @precondition(lambda self: self.shard.requests)
    @rule()
    def execute(self) -> None:
        self.leave()
        request = self.request
        if request.answer is None and request.failure is None:
            request.answer = self.server.execute(request.verb, request.parameters)

    @precondition(lambda self: self.shard.requests)
    @rule()
    def answer(self) -> None:
        request = self.request
        self.execute()
        if request.failure is not None:
            self.reconcile(request)
            return
        assert request.answer is not None
        self.shard.requests.remove(request)
        if request.tell is not None:
            request.tell(self.server.others_seen(request.answer))
        else:
            VERBS[request.verb].answered([request.owner], [(b"{%s}" % request.answer.encode(),)])

    @precondition(lambda self: self.shard.requests)
    @rule(transient=st.booleans(), effect=st.sampled_from(["none", "part", "all"]))
    def fail(self, transient: bool, effect: str) -> None:
        """The statement fails, having done its work or not: what a failed batch did is unknown."""
        request = self.request
        if effect == "all":
            self.execute()
        elif request.answer is not None or request.failure is not None:
            return
        elif effect == "part":
            self.leave()
            assert request.parameters is not None
            self.server.execute_partly(request.verb, request.parameters)
        request.failure = StatementFailed("failed", "55P03" if transient else "XX000")

    def reconcile(self, request: Request) -> None:
        """As the shard does it: the server is asked what is ours, and the owner is told; or the link is given up."""
        owner = request.owner
        if owner.failures >= GIVE_UP_AFTER:
            self.link_dies()
            return
        self.shard.requests.remove(request)
        assert request.failure is not None
        error = None if request.failure.sqlstate == "55P03" else request.failure
        owner.recover(self.server.found(), "agree" if request.verb == LOOK else request.verb, error)

    @precondition(lambda self: any(request.failure is not None for request in self.shard.requests))
    @rule()
    def truth_cannot_be_read(self) -> None:
        assert self.request.failure is not None
        self.owner.fail(self.request.failure)
        self.link_dies()

    @precondition(lambda self: self.shard.up)
    @rule()
    def link_dies(self) -> None:
        self.shard.up = False
        self.shard.requests.clear()
        self.server.forget_us()
        if self.owner is not None:
            self.owner.link_died("the link died")

    @precondition(lambda self: not self.shard.up)
    @rule()
    def link_comes(self) -> None:
        self.shard.up = True
        if self.owner is not None:
            self.owner.step()

    @precondition(lambda self: not self.shard.up and self.owner is not None)
    @rule(final=st.booleans())
    def connect_fails(self, final: bool) -> None:
        self.owner.fail(Unavailable("no connection"), waiting_too=final)
        self.owner.step()

    @precondition(lambda self: self.shard.requests)
    @rule()
    def answer_all(self) -> None:
        """The world is quick for a while; without it the deep states are hardly ever reached."""
        for _ in range(12):
            if self.shard.requests:
                self.answer()

    # time, and wake-ups

    @rule()
    def wake(self) -> None:
        """A wake-up, perhaps in vain, as the locker passes it on."""
        if self.owner is not None and self.owner.queue:
            self.owner.wake()

    @rule()
    def channel_is_heard(self) -> None:
        self.shard.heard = True
        for owner in [*self.shard.watched]:
            if owner.watching:
                owner.wake()

    @rule()
    def channel_is_not_heard(self) -> None:
        self.shard.heard = False

    @precondition(lambda self: self.shard.up)
    @rule()
    def recheck(self) -> None:
        for owner in [*self.shard.watched]:
            verb = owner.again()
            if verb is not None:
                self.shard.ask[verb](owner)

    @precondition(lambda self: self.shard.running())
    @rule(pick=st.integers(0, 9))
    def time_passes(self, pick: int) -> None:
        running = self.shard.running()
        timer = running[pick % len(running)]
        timer.over = True
        timer.call()

    # what must be true at every instant

    @invariant()
    def a_waiter_is_told_once(self) -> None:
        assert all(len(answer.told) <= 1 for answer in self.answers.values())
        assert all(len(answer.told) <= 1 for answer in self.releases)

    @invariant()
    def claims_are_granted_in_the_order_of_arrival(self) -> None:
        """So no reader overtakes a writer of its own process either."""
        order = {claim: number for number, claim in enumerate(self.claims)}
        numbers = [order[claim] for claim in self.shard.grants]
        assert numbers == sorted(numbers)

    @invariant()
    def who_does_not_want_to_wait_does_not(self) -> None:
        if self.at_rest and self.owner.rest is None:
            assert all(claim.wait for claim in self.owner.queue if claim.state == WAITING)

    @invariant()
    def busy_means_under_way(self) -> None:
        assert bool(self.shard.requests) == (self.owner is not None and self.owner.busy)

    @invariant()
    def those_who_left_the_queue_are_counted(self) -> None:
        if self.owner is not None:
            there = [claim for claim in self.owner.queue if claim.state == WAITING]
            assert self.owner.patient == sum(claim.wait for claim in there)
            assert self.owner.impatient == sum(not claim.wait for claim in there)

    @invariant()
    def nobody_releases_what_is_not_ours(self) -> None:
        assert not self.shard.strange

    # the end

    def close(self) -> None:
        """As the locker closes: who waits is told, who holds has lost."""
        owner = self.owner
        if owner is not None:
            owner.fail(CoordinatorClosed("closed"))
            for claim in owner.claims:
                claim.lose("closed")
                owner.release(claim, None)
            owner.hurry()

    def teardown(self) -> None:
        self.server.others_leave()
        if not self.shard.up:
            self.link_comes()
        if self.closes:
            self.close()
        self.channel_is_heard()
        for _ in range(10 * len(self.claims) + 100):
            if self.owner is None:
                break
            for _ in range(20):
                if not self.shard.requests:
                    break
                self.answer()
                if not self.shard.up:
                    self.link_comes()
            while self.shard.running():
                self.time_passes(0)
            if self.held():
                self.release(0, wait=True)
            elif not self.shard.requests:
                self.recheck()
            self.who_does_not_want_to_wait_does_not()
        assert self.owner is None, "an owner never retired"
        assert not self.shard.watched
        assert not self.shard.running()
        for claim, answer in self.answers.items():
            assert claim.state != WAITING
            assert answer.told or claim in self.withdrawn, "a claim was never answered"
        assert all(answer.told == [True] for answer in self.releases)
        assert set(self.shard.lost) <= {claim for claim in self.claims if claim.reason}
