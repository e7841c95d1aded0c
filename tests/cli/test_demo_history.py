"""The check of a demo's history must find what is wrong; a check that finds nothing proves nothing.

Histories are written by hand here, in milliseconds, and read by the functions that judge a real demo.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.cli.demo_history import (
    Interval,
    Kind,
    Record,
    find_overlaps,
    judge,
    read_history,
    tally,
    unpack_all,
)

MS = 1_000_000


def at(ms: float, kind: Kind, worker: int, pid: int | None = None, waited: float = 0) -> Record:
    return Record(kind, worker, pid if pid is not None else 100 + worker, round(ms * MS), round(waited * MS))


def hold(start: float, end: float | None, worker: int) -> list[Record]:
    entered = at(start, Kind.ENTERED, worker)
    return [entered] if end is None else [entered, at(end, Kind.LEFT, worker)]


GOOD = [*hold(0, 100, 1), *hold(101, 200, 2), *hold(200, 300, 1)]


def test_a_history_of_turns_is_right() -> None:
    assert judge(GOOD, [101, 102], kills=0, cuts=0) == []


@pytest.mark.parametrize(
    ("second", "where"),
    [
        (hold(150, 250, 2), "begins inside"),
        (hold(50, 101, 2), "ends inside"),
        (hold(110, 120, 2), "lies inside"),
        (hold(50, 250, 2), "lies around"),
        (hold(100, 200, 2), "is the same"),
    ],
)
def test_an_overlap_is_found(second: list[Record], where: str) -> None:
    found = find_overlaps(read_history([*hold(100, 200, 1), *second]).intervals)
    assert [{overlap.first.pid, overlap.second.pid} for overlap in found] == [{101, 102}], where
    assert not found[0].excused
    wrong = judge([*hold(100, 200, 1), *second], [101, 102], kills=0, cuts=0)
    assert len(wrong) == 1
    assert wrong[0].startswith("overlap: ")
    assert "worker-1 (pid 101)" in wrong[0]
    assert "worker-2 (pid 102)" in wrong[0]


def test_every_pair_is_found_also_with_a_neighbour_in_between() -> None:
    records = [*hold(0, 1000, 1), *hold(10, 20, 2), *hold(30, 40, 3), *hold(35, 50, 2)]
    pairs = [(o.first.worker, o.second.worker) for o in find_overlaps(read_history(records).intervals)]
    assert sorted(pairs) == [(1, 2), (1, 2), (1, 3), (3, 2)]


def test_touching_is_not_overlapping() -> None:
    assert find_overlaps(read_history([*hold(0, 100, 1), *hold(100, 200, 2)]).intervals) == []


def test_a_killed_holder_held_until_the_kill() -> None:
    records = [*hold(0, None, 1), at(60, Kind.KILLED, 1), *hold(70, 100, 2)]
    history = read_history(records)
    assert [(i.end, i.how) for i in history.intervals] == [(60 * MS, Kind.KILLED), (100 * MS, Kind.LEFT)]
    assert [fault.takeover for fault in history.faults] == [10 * MS]
    assert judge(records, [101, 102], kills=1, cuts=0) == []


def test_entering_before_the_holder_is_killed_is_an_overlap() -> None:
    records = [*hold(0, None, 1), *hold(59, 100, 2), at(60, Kind.KILLED, 1), *hold(110, 120, 3)]
    assert [overlap.excused for overlap in find_overlaps(read_history(records).intervals)] == [False]


def test_a_hold_without_end_overlaps_with_all_that_follows() -> None:
    records = [*hold(0, None, 1), *hold(500, 510, 2), *hold(900, 910, 3)]
    assert len(find_overlaps(read_history(records).intervals)) == 2
    assert any("without end" in line for line in judge(records, [], kills=0, cuts=0))


def test_a_kill_between_holds_hits_nobody() -> None:
    records = [*hold(0, 50, 1), at(55, Kind.KILLED, 1), *hold(60, 100, 2)]
    fault = read_history(records).faults[0]
    assert (fault.hold, fault.takeover) == (None, None)
    assert judge(records, [101, 102], kills=1, cuts=0) == ["0 of 1 holders were killed"]


def test_records_that_arrive_after_the_kill_are_read_in_their_order() -> None:
    # The director notes the kill at once; what the dead process wrote before may still be in the pipe.
    records = [at(60, Kind.KILLED, 1), at(0, Kind.ENTERED, 1), *hold(70, 100, 2)]
    assert read_history(records).intervals[0].end == 60 * MS


def cut_and_lost(entered_by_other: float, told: float) -> list[Record]:
    return [
        at(0, Kind.ENTERED, 1),
        at(50, Kind.CUT, 1),
        *hold(entered_by_other, entered_by_other + 10, 2),
        at(told, Kind.LOST, 1),
    ]


def test_a_lost_hold_ends_when_the_loser_knows() -> None:
    records = cut_and_lost(entered_by_other=90, told=55)
    history = read_history(records)
    assert (history.intervals[0].end, history.intervals[0].freed) == (55 * MS, 50 * MS)
    assert history.faults[0].takeover == 40 * MS
    assert judge(records, [101, 102], kills=0, cuts=1) == []


def test_entering_between_the_cut_and_the_notice_is_seen_and_excused() -> None:
    records = cut_and_lost(entered_by_other=52, told=55)
    assert [overlap.excused for overlap in find_overlaps(read_history(records).intervals)] == [True]
    assert judge(records, [101, 102], kills=0, cuts=1) == []


@pytest.mark.parametrize(
    ("entered_by_other", "told"), [(49, 55), (52, 1051)], ids=["before the cut", "the loser learns it too late"]
)
def test_other_overlaps_with_a_lost_hold_are_not_excused(entered_by_other: float, told: float) -> None:
    records = cut_and_lost(entered_by_other, told)
    assert [overlap.excused for overlap in find_overlaps(read_history(records).intervals)] == [False]
    assert judge(records, [101, 102], kills=0, cuts=1)[0].startswith("overlap: ")


def test_a_loss_without_a_cut_excuses_nothing() -> None:
    records = [at(0, Kind.ENTERED, 1), *hold(52, 60, 2), at(55, Kind.LOST, 1)]
    assert [overlap.excused for overlap in find_overlaps(read_history(records).intervals)] == [False]


def test_a_missing_takeover_is_found() -> None:
    records = [*hold(0, 10, 2), *hold(20, None, 1), at(60, Kind.KILLED, 1)]
    assert judge(records, [101, 102], kills=1, cuts=0) == ["nobody took over from worker-1 (pid 101)"]


def test_a_process_without_a_turn_is_found() -> None:
    assert judge(GOOD, [101, 102, 103], kills=0, cuts=0) == ["process 103 never got the lock"]


@pytest.mark.parametrize(
    "records",
    [
        [at(0, Kind.LEFT, 1)],
        [at(0, Kind.LOST, 1)],
        [at(0, Kind.ENTERED, 1), at(1, Kind.ENTERED, 1), at(2, Kind.LEFT, 1)],
        [at(0, Kind.ENTERED, 1), at(1, Kind.READY, 1), at(2, Kind.LEFT, 1)],
        [at(5, Kind.ENTERED, 1), at(4, Kind.LEFT, 1)],
    ],
)
def test_records_that_make_no_sense_are_found(records: list[Record]) -> None:
    assert read_history(records).oddities
    assert judge(records, [], kills=0, cuts=0)


def test_a_tally_covers_all_processes_of_a_worker() -> None:
    records = [
        at(0, Kind.ENTERED, 1, pid=7, waited=10),
        at(1, Kind.KILLED, 1, pid=7),
        at(5, Kind.ENTERED, 1, pid=8, waited=30),
        at(6, Kind.ENTERED, 2, pid=9, waited=99),
    ]
    got = tally(records, 1)
    assert (got.turns, got.median_wait, got.longest_wait, got.killed) == (2, 20 * MS, 30 * MS, 1)
    assert tally(records, 3).turns == 0


@given(
    st.lists(
        st.builds(
            Record,
            st.sampled_from(Kind),
            st.integers(0, 2**16 - 1),
            st.integers(0, 2**31 - 1),
            st.integers(0, 2**63 - 1),
            st.integers(0, 2**63 - 1),
            st.integers(0, 2**31 - 1),
            st.integers(0, 2**63 - 1),
            st.integers(0, 2**31 - 1),
        )
    ),
    st.integers(0, Record.SIZE - 1),
)
def test_records_survive_the_pipe(records: list[Record], cut: int) -> None:
    data = b"".join(record.pack() for record in records) + b"\1" * cut
    assert unpack_all(data) == (records, b"\1" * cut)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(1, 4)), max_size=8))
def test_the_sweep_finds_what_comparing_all_pairs_finds(spans: list[tuple[int, int, int]]) -> None:
    holds = [Interval(worker, worker, start, start + length) for start, length, worker in spans]
    expected = sum(
        a.worker != b.worker and max(a.start, b.start) < min(a.start + la, b.start + lb)
        for i, (a, (_, la, _)) in enumerate(zip(holds, spans, strict=True))
        for b, (_, lb, _) in list(zip(holds, spans, strict=True))[i + 1 :]
    )
    assert len(find_overlaps(holds)) == expected
