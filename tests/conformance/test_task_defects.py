"""The suite finds defects of tasks: the queues of the memory backend with one rule broken, and the case that says so.

Here lives the table; the mistakes stand in `taskdefects.py` and `queuedefects.py`. Those of sessions have a file of
their own, `test_session_defects.py`.
"""

from __future__ import annotations

import gc
import secrets

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.memory import MemoryBackend, World
from pgconcert.testing.conformance import Place, cases, run
from tests.conformance import queuedefects as also
from tests.conformance import taskdefects as wrong

_LIMIT = 1.0

DEFECTS: dict[type[wrong.Sound], str] = {
    wrong.RoundsDown: "turning.everybody_gets_the_share",
    wrong.SharesWithTheDead: "turning.only_runners_of_the_name_that_live_share",
    wrong.SharesWithEverybody: "turning.only_runners_of_the_name_that_live_share",
    wrong.KnowsNoCap: "turning.a_cap_bounds_what_a_session_has",
    wrong.TheCapIsForEachPickUp: "turning.a_cap_bounds_what_a_session_has",
    wrong.KnowsNoRest: "turning.what_it_has_counts",
    wrong.StartsAll: "turning.assigned_is_not_started",
    wrong.StartsNothing: "turning.assigned_is_not_started",
    wrong.StartsForAnybody: "turning.assigned_is_not_started",
    wrong.StartsTwice: "turning.assigned_is_not_started",
    wrong.StartsInItsOwnOrder: "turning.assigned_is_not_started",
    wrong.CountsFromNothing: "turning.assigned_is_not_started",
    wrong.HearsAnybody: "turning.only_its_owner_finishes",
    wrong.HearsOfWhatIsNotStarted: "turning.only_its_owner_finishes",
    wrong.RefusesNothing: "turning.only_its_owner_finishes",
    wrong.FinishesAnywhere: "turning.only_its_owner_finishes",
    wrong.CountsWhatItReports: "turning.all_is_said_in_one_turn",
    wrong.PicksUpWhatItReports: "turning.all_is_said_in_one_turn",
    wrong.NeverRests: "turning.what_failed_rests",
    wrong.ForgetsErrors: "turning.what_failed_rests",
    wrong.CountsNoAttempts: "turning.what_failed_rests",
    wrong.ReleasedIsFailed: "turning.what_is_released_is_as_before",
    wrong.NobodyDies: "turning.the_last_attempt_kills",
    wrong.DiesInSilence: "turning.the_last_attempt_kills",
    wrong.DiesTooEarly: "turning.the_last_attempt_kills",
    wrong.InheritsNothing: "inheriting.the_dead_leave_their_tasks",
    wrong.ListensToTheDead: "inheriting.the_dead_leave_their_tasks",
    wrong.FinishesForTheDead: "inheriting.an_ended_session_leaves_all_at_once",
    wrong.MovesForTheDead: "inheriting.the_dead_leave_their_tasks",
    wrong.CrashesForEver: "inheriting.who_crashed_with_the_last_attempt_kills",
    wrong.ACrashKillsAll: "inheriting.who_crashed_with_the_last_attempt_kills",
    wrong.ADeathWithoutAWord: "inheriting.who_crashed_with_the_last_attempt_kills",
    wrong.InheritsFromTheLiving: "inheriting.nobody_overtakes_the_living",
    wrong.ReleasesForTheLiving: "inheriting.all_is_released_at_the_end",
    wrong.ReleasesEverywhere: "inheriting.all_is_released_at_the_end",
    wrong.ReleasesWithTheAttempt: "inheriting.all_is_released_at_the_end",
    wrong.RecallsEverything: "inheriting.what_nobody_knows_of_is_recalled",
    wrong.RecallsWhatIsAssigned: "inheriting.what_nobody_knows_of_is_recalled",
    wrong.RecallsWithTheAttempt: "inheriting.what_nobody_knows_of_is_recalled",
    wrong.RecallsForTheDead: "inheriting.what_nobody_knows_of_is_recalled",
    also.ShowsNoIdleRunner: "inheriting.shares_are_shown",
    also.ShowsTheShareOfTheDead: "inheriting.shares_are_shown",
    also.ConfusesTheKindsOfWork: "inheriting.shares_are_shown",
    also.MovesWhatIsStarted: "inheriting.what_is_not_begun_moves",
    also.MovesTheFirst: "inheriting.what_is_not_begun_moves",
    also.MovesAll: "inheriting.what_is_not_begun_moves",
    also.MovesOutOfOrder: "inheriting.what_is_not_begun_moves",
    also.ThroughTheConnection: "inheriting.a_lost_answer_is_repaired",
    also.UnderstandsPayloads: "keeping.tasks_are_kept_as_they_are",
    also.OneIdForAll: "keeping.tasks_are_kept_as_they_are",
    also.PutsBackwards: "keeping.tasks_are_kept_as_they_are",
    also.FirstPutFirstServed: "keeping.first_come_first_served",
    also.EverythingIsDue: "keeping.what_is_not_due_waits",
    also.NothingFallsDue: "keeping.what_is_not_due_waits",
    wrong.CountsWhatIsNotDue: "keeping.what_is_not_due_waits",
    wrong.NeverSaysWhen: "keeping.what_is_not_due_waits",
    also.LooksWithoutALimit: "keeping.every_state_is_shown",
    also.LooksAtEveryState: "keeping.every_state_is_shown",
    also.LooksBackwards: "keeping.every_state_is_shown",
    also.CountsTheDeadAsWaiting: "keeping.every_state_is_shown",
    also.WhatTheDeadHadIsFree: "keeping.what_the_dead_had_looks_as_it_was",
    also.FoldsNames: "keeping.queues_are_told_apart",
    also.OneNamespace: "keeping.queues_are_told_apart",
    also.ListsWhatIsEmpty: "keeping.queues_are_told_apart",
    also.RetriesAll: "keeping.the_dead_wait_for_people",
    also.DiscardsAll: "keeping.the_dead_wait_for_people",
    also.TakesNoneForAll: "keeping.the_dead_wait_for_people",
    also.RetriesOnce: "keeping.the_dead_wait_for_people",
    also.KeepsNothing: "keeping.what_is_finished_goes_or_is_kept",
    also.KeepsForEver: "keeping.what_is_finished_goes_or_is_kept",
    also.KeepsEverything: "keeping.what_is_finished_goes_or_is_kept",
    also.ForgetsWhoFinished: "keeping.what_is_finished_goes_or_is_kept",
}


def place(defect: type[wrong.Sound]) -> Place:
    """A world that has the defect."""
    world = World.named(secrets.token_hex(8))
    world.ledger = defect(world.ledger._wall).ledger

    def lose(coordinator: AsyncCoordinator) -> None:
        backend = coordinator.backend
        assert isinstance(backend, MemoryBackend)
        backend.lose_connection()
        if defect is also.ThroughTheConnection:
            backend.expire_session()

    return Place(lambda **options: AsyncCoordinator(backend=MemoryBackend(world), **options), lose)


@pytest.mark.long
@pytest.mark.parametrize(("defect", "name"), DEFECTS.items(), ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.filterwarnings("ignore")  # what is broken leaves tasks and errors behind
def test_a_defect_is_found(defect: type[wrong.Sound], name: str) -> None:
    (case,) = [case for case in cases() if str(case) == name]
    with pytest.raises(AssertionError):
        run(case, place(defect), limit=_LIMIT)
    gc.collect()  # its warnings are ignored here, and would be a failure of some later test


@pytest.mark.parametrize("name", sorted({*DEFECTS.values()}))
def test_without_a_defect_nothing_is_found(name: str) -> None:
    (case,) = [case for case in cases() if str(case) == name]
    run(case, place(wrong.Sound))
