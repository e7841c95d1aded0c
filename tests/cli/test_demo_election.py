"""The check of a demo's terms must find what is wrong; a check that finds nothing proves nothing.

Histories are written by hand here, in seconds, and read by the functions that judge a real demo.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgconcert.cli.demo_election import Election, judge_terms, successions
from pgconcert.cli.demo_history import Kind, Record
from pgconcert.store import SessionInfo, Term

SECOND = 1_000_000_000
EPOCH = 281474976710656


def record(at: float, kind: Kind, worker: int, token: int = 0, since: float = 0.0) -> Record:
    return Record(kind, worker, 100 + worker, round(at * SECOND), round(since * SECOND), number=token)


def term(token: int, worker: int, since: float, until: float | None, how: str | None = "resigned") -> Term:
    leader = SessionInfo(
        id=worker, uuid="u", host="h", pid=100 + worker, application="", data=None, ttl=2, started=0, expires_in=0
    )
    return Term(token=EPOCH + token, leader=leader, data=None, since=since, until=until, how=how)


def leads(at: float, worker: int, token: int, since: float) -> Record:
    return record(at, Kind.LEADS, worker, EPOCH + token, since)


RECORDS = [
    leads(1, 1, 1, 11.0),
    record(3, Kind.RESIGNED, 1, EPOCH + 1),
    leads(3.1, 2, 2, 13.1),
    record(4, Kind.BEHEADED, 2),
    leads(6, 1, 3, 16.0),
    record(7, Kind.DEPOSED, 1, EPOCH + 3),
]
TERMS = [term(1, 1, 11.0, 13.0), term(2, 2, 13.1, 16.0, "lost"), term(3, 1, 16.0, None, None)]


def test_a_history_of_terms_is_right() -> None:
    assert judge_terms(RECORDS, TERMS, kills=1) == []
    (found,) = successions(RECORDS)
    assert (found.term.worker, found.next and found.next.worker, found.takeover) == (2, 1, 2 * SECOND)


def test_the_terms_may_come_in_any_order() -> None:
    assert judge_terms(RECORDS, TERMS[::-1], kills=1) == []


@pytest.mark.parametrize("until", [13.2, None])
def test_terms_that_overlap_are_found(until: float | None) -> None:
    wrong = judge_terms(RECORDS, [replace(TERMS[0], until=until), *TERMS[1:]], kills=1)
    assert len(wrong) == 1
    assert wrong[0].startswith(f"terms overlap by the server's clock: token {EPOCH + 1} of pid 101 from 11.000000 ")


def test_a_token_that_does_not_grow_is_found() -> None:
    records = [*RECORDS[:4], leads(6, 1, 0, 16.0)]
    wrong = judge_terms(records, [*TERMS[:2], term(0, 1, 16.0, None, None)], kills=1)
    assert [each.partition(":")[0] for each in wrong] == ["a token that did not grow"]


def test_a_token_that_is_given_twice_is_found() -> None:
    records = [*RECORDS, leads(8, 2, 3, 16.0)]
    wrong = judge_terms(records, TERMS, kills=1)
    assert f"token {EPOCH + 3} was given twice, the second time to worker-2 (pid 102)" in wrong


@pytest.mark.parametrize(
    "noted",
    [[], [term(1, 2, 11.0, 12.0)], [term(1, 1, 10.9, 12.0)]],
    ids=["nothing", "another process", "another time"],
)
def test_a_leader_of_whom_the_server_knows_something_else_is_found(noted: list[Term]) -> None:
    (wrong,) = judge_terms(RECORDS[:1], noted, kills=0)
    assert wrong.startswith(f"worker-1 (pid 101) led with token {EPOCH + 1}, and the server has noted ")


def test_an_election_without_leaders_is_found() -> None:
    assert judge_terms([], [], kills=0) == ["nobody ever led"]


def test_a_kill_that_met_no_leader_does_not_count() -> None:
    records = [leads(1, 1, 1, 11.0), record(3, Kind.RESIGNED, 1, EPOCH + 1), record(3, Kind.BEHEADED, 1)]
    assert successions(records) == []
    assert judge_terms(records, TERMS[:1], kills=1) == ["0 of 1 leaders were killed"]


def test_a_leader_that_nobody_followed_is_found() -> None:
    assert judge_terms(RECORDS[:4], TERMS[:2], kills=1) == ["nobody led after worker-2 (pid 102) was killed"]


def test_a_leader_that_was_killed_as_the_holder_of_the_lock_is_followed_too() -> None:
    records = [leads(1, 1, 1, 11.0), record(2, Kind.KILLED, 1), leads(4, 2, 2, 14.0)]
    (found,) = successions(records)
    assert (found.takeover, found.on_purpose) == (2 * SECOND, False)
    noted = [term(1, 1, 11.0, 14.0, "lost"), term(2, 2, 14.0, 15.0)]
    assert judge_terms(records, noted, kills=0) == []
    assert judge_terms(records, noted, kills=1) == ["0 of 1 leaders were killed"]


def test_who_leads_as_far_as_it_is_known() -> None:
    election = Election()
    known = []
    for each in RECORDS:
        election.take(each)
        known.append(election.leader and election.leader.worker)
    assert known == [1, None, 2, None, 1, None]
    assert election.terms == 3
    election.take(leads(8, 2, 4, 18.0))
    election.take(record(8, Kind.DEPOSED, 1))
    assert election.leader is not None
    assert election.leader.worker == 2, "the end of another one's term is not the end of this one"
