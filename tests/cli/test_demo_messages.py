"""The check of a demo's messages must find what is wrong; a check that finds nothing proves nothing.

Histories are written by hand here, in milliseconds. Process 101 listens; processes 102 and 103 send.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.cli.demo_history import Kind, Record
from pgconcert.cli.demo_messages import MAIL, Mail, accounts, judge_mail

MS = 1_000_000


def at(ms: float, kind: Kind, pid: int = 101, *, number: int = 0, peer: int = 0, took: float = 0) -> Record:
    return Record(kind, pid - 100, pid, round(ms * MS), round(took * MS), 0, number, peer)


def sent(ms: float, number: int, pid: int = 102, took: float = 1) -> Record:
    """Committed at that time; its sending began ``took`` before."""
    return at(ms, Kind.SENT, pid, number=number, took=took)


def heard(ms: float, *numbers: int, peer: int = 102) -> list[Record]:
    return [at(ms, Kind.HEARD, number=number, peer=peer) for number in numbers]


def done(ms: float, took: float = 1) -> Record:
    """All that was committed before ``took`` ago has been heard."""
    return at(ms, Kind.DONE, took=took)


READY = at(0, Kind.LISTENING)
GAP = at(50, Kind.GAP)
FIVE = [sent(10 * number, number) for number in range(1, 6)]


def found(records: list[Record]) -> tuple[int, list[int], list[int]]:
    (account,) = [each for each in accounts(records) if each.pid == 101]
    return account.heard, [each.number for each in account.told], [each.number for each in account.lost]


def test_all_are_heard() -> None:
    assert found([READY, *FIVE, *heard(60, 1, 2, 3, 4, 5), done(70)]) == (5, [], [])


@pytest.mark.parametrize(
    ("numbers", "missing"), [([1, 2, 4, 5], [3]), ([4, 5], [1, 2, 3]), ([1, 5], [2, 3, 4])], ids=["one", "head", "some"]
)
def test_a_hole_is_a_loss(numbers: list[int], missing: list[int]) -> None:
    assert found([READY, *FIVE, *heard(60, *numbers), done(70)]) == (len(numbers), [], missing)


def test_a_missing_end_is_a_loss() -> None:
    assert found([READY, *FIVE, *heard(60, 1, 2), done(70)]) == (2, [], [3, 4, 5])
    assert found([READY, *FIVE, done(70)]) == (0, [], [1, 2, 3, 4, 5])


def test_a_gap_in_the_hole_tells_of_it() -> None:
    assert found([READY, *FIVE, *heard(60, 1), GAP, *heard(60, 4, 5), done(70)]) == (3, [2, 3], [])
    assert found([READY, *FIVE, GAP, *heard(60, 4, 5), done(70)]) == (2, [1, 2, 3], [])
    assert found([READY, *FIVE, *heard(60, 1, 2), GAP, done(70)]) == (2, [3, 4, 5], [])


def test_a_gap_elsewhere_tells_nothing() -> None:
    assert found([READY, *FIVE, *heard(60, 1), GAP, *heard(60, 2, 5), done(70)]) == (3, [], [3, 4])
    assert found([READY, *FIVE, *heard(60, 1, 4), GAP, *heard(60, 5), done(70)]) == (3, [], [2, 3])


def test_a_gap_counts_for_each_sender_that_it_may_concern() -> None:
    other = [sent(10 * number, number, 103) for number in range(1, 4)]
    mixed = [*heard(60, 1), *heard(60, 1, peer=103), GAP, *heard(60, 3), *heard(60, 2, 3, peer=103)]
    assert found([READY, *FIVE[:3], *other, *mixed, done(70)]) == (5, [2], [])


def test_nobody_is_owed_what_was_sent_before() -> None:
    """One whose sending began before, and was committed after, may be heard or not."""
    early = [sent(-5, 1), sent(1, 2, took=2), sent(10, 3)]
    assert found([READY, *early, *heard(60, 3), done(70)]) == (1, [], [])
    assert found([READY, *early, *heard(60, 2, 3), done(70)]) == (2, [], [])
    assert found([READY, *early, done(70)]) == (0, [], [3])


def test_nobody_is_owed_what_was_committed_after_the_end() -> None:
    assert found([READY, *FIVE, *heard(45, 1, 2, 3, 4), done(52, took=3)]) == (4, [], [])


def test_a_killed_process_owes_what_came_before_the_last_it_heard() -> None:
    assert found([READY, *FIVE, *heard(60, 1, 2)]) == (2, [], [])
    assert found([READY, *FIVE, *heard(60, 1, 3)]) == (2, [], [2])


def test_a_number_that_was_never_committed_is_owed_to_nobody() -> None:
    assert found([READY, sent(10, 1), sent(30, 3), *heard(60, 1, 3), done(70)]) == (2, [], [])
    assert found([READY, sent(10, 1), sent(30, 3), *heard(60, 1, 2, 3), done(70)]) == (3, [], [])


@pytest.mark.parametrize("numbers", [[1, 1, 2, 3, 4, 5], [2, 1, 3, 4, 5]], ids=["twice", "out of order"])
def test_order_and_once(numbers: list[int]) -> None:
    wrong = judge_mail([READY, *FIVE, *heard(60, *numbers), done(70)], [101], [], 0)
    assert any(line.startswith("messages out of order: worker-1 (pid 101) heard number 1 ") for line in wrong)


def test_a_listener_that_was_never_ready_is_found() -> None:
    assert judge_mail([*heard(60, 1), done(70)], [101], [], 0)


def test_the_verdict_names_what_is_lost() -> None:
    records = [READY, *FIVE, *heard(60, 1, 2, 4, 5), done(70)]
    assert judge_mail(records, [101], [], 0) == [
        "lost without being reported: number 3 of worker-2 (pid 102), by worker-1 (pid 101)"
    ]


def test_who_was_not_killed_must_hear_to_the_end() -> None:
    records = [READY, *FIVE, *heard(60, 1, 2, 3, 4, 5)]
    assert judge_mail(records, [101], [101], 0) == []
    assert judge_mail(records, [101], [], 0) == ["process 101 did not hear its messages to their end"]


def test_a_cut_must_be_told() -> None:
    cut = at(20, Kind.SILENCED)
    right = [READY, *FIVE, *heard(60, 1), cut, GAP, *heard(60, 3, 4, 5), done(70)]
    assert judge_mail(right, [101], [], 1) == []
    assert judge_mail([READY, *FIVE, cut, *heard(60, 1, 2, 3, 4, 5), done(70)], [101], [], 1) == [
        "0 of 1 connections that listened were cut, and told of it"
    ]
    assert judge_mail([READY, done(70)], [101], [], 1)


def test_what_is_counted_on_the_way() -> None:
    mail = Mail()
    records = [READY, *FIVE, *heard(60, 1, 2), GAP, at(60, Kind.SILENCED), at(61, Kind.LISTENING)]
    for record in records:
        mail.take(record)
    assert {record.kind for record in records} <= MAIL
    assert (mail.sent, mail.heard, mail.gaps) == ({2: 5}, {1: 2}, {1: 1})
    assert (mail.links[1].at, [cut.at for cut in mail.cuts]) == (61 * MS, [60 * MS])


@given(st.sets(st.integers(1, 12)), st.integers(0, 12))
def test_every_message_is_heard_told_or_lost(numbers: set[int], place: int) -> None:
    """And told are exactly those of the hole that has the gap in it."""
    all_sent = [sent(number, number, took=0.5) for number in range(1, 13)]
    items = heard(60, *sorted(numbers))
    place = min(place, len(items))
    before = max([0, *sorted(numbers)[:place]])
    after = min([13, *sorted(numbers)[place:]])
    count, told, lost = found([READY, *all_sent, *items[:place], GAP, *items[place:], done(70)])
    assert count == len(numbers)
    assert told == [number for number in range(1, 13) if before < number < after]
    assert sorted([*numbers, *told, *lost]) == [*range(1, 13)]
