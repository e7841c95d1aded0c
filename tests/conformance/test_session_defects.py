"""The suite finds defects of sessions: the memory backend with one rule broken, and the case that says so.

Here lives the table; the mistakes stand in `sessiondefects.py`. Those of locks are in `test_defects.py`, those of
messages in `test_message_defects.py`.
"""

from __future__ import annotations

import gc
import secrets

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.memory import MemoryBackend, World
from pgconcert.memory.sessionbook import SessionBook
from pgconcert.testing.conformance import Place, cases, run
from tests.conformance import sessiondefects as wrong

_LIMIT = 1.0

Defect = type[wrong.Sound] | type[SessionBook]

DEFECTS: dict[Defect, str] = {
    wrong.NeverOver: "storing.what_is_over_is_taken_over",
    wrong.RevivesTheDead: "storing.what_is_over_never_comes_back",
    wrong.RenewsNothing: "storing.a_renewal_counts_from_now",
    wrong.LivesForTwice: "storing.a_renewal_counts_from_now",
    wrong.RenewsOneOfMany: "storing.all_are_renewed_together",
    wrong.EndsNothing: "storing.an_ended_session_lets_go_of_everything",
    wrong.EndsTwice: "storing.an_ended_session_lets_go_of_everything",
    wrong.GivesToEverybody: "storing.one_session_has_it",
    wrong.RefusesItsHolder: "storing.who_has_it_may_take_it_again",
    wrong.TakesForTheDead: "storing.what_is_over_never_comes_back",
    wrong.KnowsNoHolder: "storing.one_session_has_it",
    wrong.LeavesTheDeadTheirNames: "storing.what_is_over_is_taken_over",
    wrong.TokensStandStill: "storing.tokens_grow",
    wrong.NoEpoch: "storing.tokens_grow",
    wrong.GivesForAnybody: "storing.siblings_are_independent",
    wrong.LooksAtNoToken: "storing.a_gift_is_of_what_is_ours",
    wrong.AlwaysOurs: "storing.a_gift_is_of_what_is_ours",
    wrong.ConfusesBatches: "storing.many_are_taken_at_once",
    wrong.ForgetsMarks: "wanting.who_gives_learns_who_waits",
    wrong.KeepsMarks: "wanting.who_gives_learns_who_waits",
    wrong.DropsMarks: "wanting.our_own_mark_wakes_nobody",
    wrong.IsMarkedAtOnce: "wanting.who_gives_learns_who_waits",
    wrong.TellsOfItsOwnMark: "wanting.our_own_mark_wakes_nobody",
    wrong.TellsNobodyWaits: "wanting.who_gives_learns_who_waits",
    wrong.MarksStay: "wanting.marks_are_taken_away",
    wrong.RaisesNoRevision: "wanting.what_is_revoked_is_free",
    wrong.RevokesForNobody: "wanting.what_is_revoked_is_free",
    wrong.KeepsRequests: "wanting.a_request_reaches_the_holder",
    wrong.KeepsTheLeastTimeAfterARevoke: "wanting.it_is_held_for_the_least_time",
    wrong.ForgetsTheLeastTime: "wanting.it_is_held_for_the_least_time",
    wrong.PrefersNobody: "wanting.the_preferred_come_first",
    wrong.AsksThePreferredToo: "wanting.the_preferred_are_equal_among_themselves",
    wrong.TheFirstWordOfAMarkCounts: "wanting.a_mark_says_what_was_said_last",
    wrong.ThePreferredNeverDie: "wanting.a_preferred_mark_counts_while_its_session_lives",
    wrong.FoldsNames: "showing.names_are_kept_as_they_are",
    wrong.CutsOffNames: "showing.names_are_kept_as_they_are",
    wrong.OneNamespace: "showing.kinds_and_namespaces_are_apart",
    wrong.OneKind: "showing.kinds_and_namespaces_are_apart",
    wrong.UnderstandsData: "showing.data_is_kept_as_it_is",
    wrong.UpdatesForAnybody: "showing.data_is_kept_as_it_is",
    wrong.LooksBackwards: "showing.a_look_is_filtered_and_ordered",
    wrong.LooksPastTheMember: "showing.a_look_is_filtered_and_ordered",
    wrong.ShowsTheDeadAsHolders: "showing.an_entry_is_shown",
    wrong.TheLostHaveLeft: "showing.a_member_that_left_is_not_one_that_was_lost",
    wrong.DeletesGroupsWithMembers: "showing.a_group_is_there_or_not",
    wrong.TermsOfEverything: "showing.only_elections_have_terms",
    wrong.ForgetsHowItEnded: "showing.terms_tell_who_led",
    wrong.TermsOfTheDeadGoOn: "showing.terms_tell_who_led",
    wrong.TellsOldTermsAgain: "showing.terms_tell_who_led",
    wrong.ThroughTheConnection: "storing.a_lost_connection_ends_no_session",
}


def place(defect: Defect) -> Place:
    """A world that has the defect."""
    world = World.named(secrets.token_hex(8))
    if issubclass(defect, SessionBook):
        world.ledger = type(defect.__name__, (wrong.Sound,), {"book": defect})()
    else:
        world.ledger = defect()

    def lose(coordinator: AsyncCoordinator) -> None:
        backend = coordinator.backend
        assert isinstance(backend, MemoryBackend)
        backend.lose_connection()
        if defect is wrong.ThroughTheConnection:
            backend.expire_session()

    return Place(lambda **options: AsyncCoordinator(backend=MemoryBackend(world), **options), lose)


@pytest.mark.long
@pytest.mark.parametrize(("defect", "name"), DEFECTS.items(), ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.filterwarnings("ignore")  # what is broken leaves tasks and errors behind
def test_a_defect_is_found(defect: Defect, name: str) -> None:
    (case,) = [case for case in cases() if str(case) == name]
    with pytest.raises(AssertionError):
        run(case, place(defect), limit=_LIMIT)
    gc.collect()  # its warnings are ignored here, and would be a failure of some later test


@pytest.mark.parametrize("name", sorted({*DEFECTS.values()}))
def test_without_a_defect_nothing_is_found(name: str) -> None:
    (case,) = [case for case in cases() if str(case) == name]
    run(case, place(wrong.Sound))
