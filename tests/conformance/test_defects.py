"""The suite finds defects: the example with one thing done wrong, and the case that says so.

Here lives a table of small mistakes, each a subclass of the toy. Without it a suite that passes everything would pass.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest

from examples.toy_backend import ToyBackend, World
from pgconcert import AsyncCoordinator
from pgconcert.backend import DONE, GRANTED, Claim, Describer, Health
from pgconcert.hold import Grant, Waiter
from pgconcert.keys import LockKey
from pgconcert.testing.conformance import Place, cases, run


class GrantsEverything(ToyBackend):
    def acquire(self, claim: Claim) -> None:
        super().acquire(claim)
        claim.grant()


class KnowsOnlyItself(ToyBackend):
    def __init__(self, world: World, name: str | None = None) -> None:
        super().__init__({}, name)


class ForgetsToHandOver(ToyBackend):
    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        for claim in claims:
            assert isinstance(claim, Claim)
            claim.state = DONE
            self._claims.discard(claim)
            self._world.get(claim.key.value, {}).pop(claim, None)
        super().release_all((), waiter)


class LastComesFirst(ToyBackend):
    def _leave(self, claim: Grant) -> None:
        assert isinstance(claim, Claim)
        line = self._world.get(claim.key.value, {})
        waiting = [entry for entry in line.items() if entry[0].state != GRANTED]
        for waiter, _ in waiting:
            del line[waiter]
        line.update(waiting[::-1])
        super()._leave(claim)


class TriesWait(ToyBackend):
    def acquire(self, claim: Claim) -> None:
        claim.wait = True
        super().acquire(claim)


class KeepsWhatWasGrantedTooLate(ToyBackend):
    def withdraw(self, claim: Claim) -> None:
        if claim.state != GRANTED:
            super().withdraw(claim)


class KeepsWhoHasLeftInTheLine(ToyBackend):
    def withdraw(self, claim: Claim) -> None:
        if claim.state == GRANTED:
            super().withdraw(claim)


class KeepsWhatWasDropped(ToyBackend):
    def drop(self, claim: Grant) -> None:
        pass


class KeepsWhatWasLost(ToyBackend):
    def lose_connection(self, reason: str = "cut") -> None:
        for claim in [claim for claim in self._claims if claim.state == GRANTED]:
            claim.lose(reason)


class TellsNobodyOfALoss(ToyBackend):
    def lose_connection(self, reason: str = "cut") -> None:
        for claim in [claim for claim in self._claims if claim.state == GRANTED]:
            self._leave(claim)


class LosesWhoWaits(ToyBackend):
    def lose_connection(self, reason: str = "cut") -> None:
        super().lose_connection(reason)
        for claim in [*self._claims]:
            claim.fail(ConnectionError(reason))
            self._leave(claim)


class SilentToWhoWaitsAtTheClose(ToyBackend):
    async def close(self) -> None:
        self._closed = True
        for claim in [claim for claim in self._claims if claim.state == GRANTED]:
            claim.lose("the coordinator was closed")
            self._leave(claim)


class KeepsEverythingAtTheClose(ToyBackend):
    async def close(self) -> None:
        for claim in [*self._claims]:
            claim.fail(RuntimeError("closed"))


class OpenForEver(ToyBackend):
    async def close(self) -> None:
        await super().close()
        self._closed = False


class NamesNobody(ToyBackend):
    def describe(self, key: LockKey, waiter: Describer) -> None:
        waiter.set_result([])


class CountsNothing(ToyBackend):
    def health(self) -> Health:
        return Health(ready=True, links=(), locks_held=0, locks_waited_for=0, lock_budget=None)


class LeavesATask(ToyBackend):
    async def close(self) -> None:
        self.task = asyncio.create_task(asyncio.sleep(3600))
        await super().close()


class WithdrawsWhoeverHasIt(ToyBackend):
    def withdraw(self, claim: Claim) -> None:
        line = self._world.get(claim.key.value, {})
        for head in [*line][:1]:
            line[head]._leave(head)


DEFECTS: dict[type[ToyBackend], str] = {
    GrantsEverything: "exclusion.never_two_holders",
    KnowsOnlyItself: "exclusion.two_coordinators_exclude_each_other",
    ForgetsToHandOver: "exclusion.a_release_hands_over_inside_a_coordinator",
    LastComesFirst: "exclusion.waiters_of_a_coordinator_come_in_order",
    TriesWait: "exclusion.a_try_does_not_wait",
    KeepsWhatWasGrantedTooLate: "leaving.a_cancelled_waiter_leaves_nothing",
    KeepsWhoHasLeftInTheLine: "leaving.a_withdrawn_waiter_is_not_in_the_way",
    KeepsWhatWasDropped: "leaving.a_dropped_hold_is_released",
    KeepsWhatWasLost: "loss.what_is_lost_is_free",
    TellsNobodyOfALoss: "loss.a_loss_is_told",
    LosesWhoWaits: "loss.a_waiter_rides_through",
    SilentToWhoWaitsAtTheClose: "life.who_waits_learns_of_the_close",
    KeepsEverythingAtTheClose: "life.a_close_frees_everything",
    OpenForEver: "life.nothing_works_after_close",
    NamesNobody: "exclusion.a_time_out_tells_who_holds_it",
    CountsNothing: "exclusion.health_counts",
    LeavesATask: "exclusion.two_lock_objects_exclude_each_other",
    WithdrawsWhoeverHasIt: "leaving.many_waiters_leave",
}


def play(defect: type[ToyBackend], name: str) -> None:
    """Run a case over the example with a defect."""
    (case,) = [case for case in cases() if str(case) == name]
    world: World = {}

    def make(**options: Any) -> AsyncCoordinator:
        return AsyncCoordinator(backend=defect(world, options.get("name")), **options)

    def lose(coordinator: AsyncCoordinator) -> None:
        backend: Any = coordinator.backend
        backend.lose_connection()

    try:
        run(case, Place(make, lose), limit=0.5)
    finally:
        gc.collect()  # its warnings are ignored here, and would be a failure of some later test


@pytest.mark.parametrize(("defect", "name"), DEFECTS.items(), ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.filterwarnings("ignore")  # what is broken leaves holds and errors behind
@pytest.mark.long
def test_a_defect_is_found(defect: type[ToyBackend], name: str) -> None:
    with pytest.raises((AssertionError, ExceptionGroup, ConnectionError)):
        play(defect, name)
    gc.collect()  # here, where it is expected, and not in a test that comes later


@pytest.mark.filterwarnings("ignore")
def test_what_hangs_says_where_and_what_it_means() -> None:
    name = DEFECTS[ForgetsToHandOver]
    with pytest.raises(AssertionError, match=r"within 0\.5 s: it waits in line \d+ of exclusion\.py, await ") as broken:
        play(ForgetsToHandOver, name)
    (note,) = broken.value.__notes__
    assert note == f"What is broken, {name}: Who waits in the same coordinator gets the lock when it is released."
