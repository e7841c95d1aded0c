"""The judge of histories is judged: everything that it exists to find, it finds. Negative controls, and no database."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.history import Diary, Kind, Record, crowd, judge, longest_wait, read, slow_handovers

SECOND = 1_000_000_000


def hold(
    pid: int, start: float, end: float | None, *, key: int = 1, turn: int = 1, backend: int = 0, how: Kind = Kind.LEFT
) -> list[Record]:
    """The records of one hold; times in seconds."""
    backend = backend or pid + 1000
    records = [
        Record(Kind.WAITING, pid, round(start * SECOND) - 1000, key, turn),
        Record(Kind.ENTERED, pid, round(start * SECOND), key, turn, backend),
    ]
    if end is not None:
        records.append(Record(how, pid, round(end * SECOND), key, turn))
    return records


def reading(records: list[Record]) -> list[Record]:
    """The same hold, as a reader's."""
    return [replace(record, kind=Kind.READING) if record.kind is Kind.ENTERED else record for record in records]


def at(kind: Kind, pid: int, when: float, backend: int = 0) -> Record:
    return Record(kind, pid, round(when * SECOND), backend=backend)


def wrong(*parts: Record | Iterable[Record]) -> list[str]:
    records = [record for part in parts for record in ([part] if isinstance(part, Record) else part)]
    return judge(sorted(records, key=lambda record: record.at)).wrong


def test_a_clean_history_is_clean() -> None:
    records = [*hold(1, 1, 2), *hold(2, 2, 3), *hold(1, 2.5, 4, key=2, turn=2)]
    verdict = judge(sorted(records, key=lambda record: record.at))
    assert verdict.wrong == []
    assert (verdict.holds, verdict.handovers, verdict.told) == (3, 1, 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 3), (2, 4)), ((1, 9), (2, 3)), ((1, 2.000001), (2, 3)), ((1, None), (2, 3))],
    ids=["crossing", "inside", "by a microsecond", "without end"],
)
def test_an_overlap_is_found(first: tuple[float, float | None], second: tuple[float, float]) -> None:
    assert any("overlap" in line for line in wrong(hold(1, *first), hold(2, *second)))


def test_an_overlap_within_one_process_is_found() -> None:
    assert any("overlap" in line for line in wrong(hold(1, 1, 3), hold(1, 2, 4, turn=2)))


def test_an_overlap_with_a_hold_long_past_others_is_found() -> None:
    assert len(wrong(hold(1, 1, 9), hold(2, 2, 3), hold(3, 4, 5), hold(3, 4.5, 6, key=2, turn=2))) == 2


def test_readers_may_overlap_and_a_writer_may_not() -> None:
    reader, other, writer = reading(hold(1, 1, 4)), reading(hold(2, 2, 5)), hold(3, 3, 6)
    assert wrong(reader, other) == []
    assert len(wrong(reader, writer)) == 1
    assert len(wrong(reader, other, writer)) == 2
    assert wrong(reader, hold(3, 4, 6)) == []


def test_a_permit_is_known_on_entry() -> None:
    waiting, entered, left = hold(1, 1, 3, key=2)
    assert wrong(replace(waiting, key=0), entered, left, hold(2, 2, 4, key=3)) == []
    assert any("overlap" in line for line in wrong(replace(waiting, key=0), entered, left, hold(2, 2, 4, key=2)))


def test_the_crowd_is_counted() -> None:
    records = [*hold(1, 1, 4, key=1), *hold(2, 2, 5, key=2), *hold(3, 3, 6, key=3), *hold(1, 5, 7, key=1, turn=2)]
    assert crowd(judge(sorted(records, key=lambda record: record.at)).turns) == 3
    cut = at(Kind.TERMINATED, 1, 2.5, backend=1001)
    lost = [replace(record, kind=Kind.TOLD) if record.kind is Kind.LEFT else record for record in records[:3]]
    told = sorted([*lost, cut, *hold(2, 2, 5, key=2), *hold(3, 3, 6, key=3)], key=lambda record: record.at)
    assert crowd(judge(told).turns) == 2
    assert crowd([]) == 0


def test_the_longest_wait() -> None:
    patient = [Record(Kind.WAITING, 2, SECOND, 1, 1), *hold(2, 3, 4)[1:]]
    assert longest_wait(judge([*hold(1, 0.5, 0.6), *patient]).turns) == 2.0
    assert longest_wait([]) == 0


def test_a_killed_holder_ends_at_its_death_and_not_before() -> None:
    assert wrong(hold(1, 1, None), at(Kind.KILLED, 1, 2), hold(2, 2.1, 3)) == []
    assert any("overlap" in line for line in wrong(hold(1, 1, None), at(Kind.KILLED, 1, 2), hold(2, 1.9, 3)))


def test_a_loser_is_excused_from_the_end_of_its_session_and_not_before() -> None:
    lost, cut = hold(1, 1, 2.1, how=Kind.TOLD), at(Kind.TERMINATED, 1, 2, backend=1001)
    assert wrong(lost, cut, hold(2, 2.05, 3)) == []
    assert any("overlap" in line for line in wrong(lost, cut, hold(2, 1.95, 3)))
    other = at(Kind.TERMINATED, 1, 2, backend=1003)
    assert any("overlap" in line for line in wrong(lost, other, hold(2, 2.05, 3)))


def test_a_grant_that_was_under_way_when_its_session_ended_is_excused() -> None:
    cut = at(Kind.TERMINATED, 1, 2, backend=1001)
    late = hold(1, 3, 3.1, how=Kind.TOLD)
    assert wrong(hold(2, 2.5, 4), cut, late, at(Kind.CONTINUED, 1, 2.9)) == []
    assert any("overlap" in line for line in wrong(hold(2, 2.5, 4), late))
    assert any("late" in line for line in wrong(hold(2, 2.5, 19), cut, hold(1, 3, 18, how=Kind.TOLD)))


def test_a_loser_that_is_told_late_is_found() -> None:
    cut = at(Kind.TERMINATED, 1, 2, backend=1001)
    assert any("late" in line for line in wrong(hold(1, 1, 19, how=Kind.TOLD), cut))
    assert any("late" in line for line in wrong(hold(1, 1, 19), cut))


def test_a_stopped_loser_must_know_soon_after_it_goes_on() -> None:
    cut = at(Kind.TERMINATED, 1, 2, backend=1001)
    assert wrong(hold(1, 1, 19, how=Kind.TOLD), cut, at(Kind.CONTINUED, 1, 18.5), hold(2, 3, 4)) == []
    assert any("late" in line for line in wrong(hold(1, 1, 19, how=Kind.TOLD), cut, at(Kind.CONTINUED, 1, 3)))
    assert any("late" in line for line in wrong(hold(1, 1, 19, how=Kind.TOLD), cut, at(Kind.CONTINUED, 2, 18.5)))


def test_a_loss_without_cause_is_found() -> None:
    assert any("without a cause" in line for line in wrong(hold(1, 1, 2, how=Kind.TOLD)))


def test_holds_and_waits_without_end_are_found() -> None:
    assert any("a hold without end" in line for line in wrong(hold(1, 1, None)))
    waiting = Record(Kind.WAITING, 1, 5, 1, 1)
    assert any("a wait without end" in line for line in wrong(waiting))
    assert wrong(waiting, Record(Kind.GONE, 1, 6, 1, 1)) == []
    assert wrong(waiting, at(Kind.KILLED, 1, 2)) == []


def test_nonsense_is_found() -> None:
    assert any("makes no sense" in line for line in wrong(Record(Kind.LEFT, 1, 5, 1, 1)))
    assert any("makes no sense" in line for line in wrong(hold(1, 1, 2), Record(Kind.LEFT, 1, 3 * SECOND, 1, 1)))
    assert any("makes no sense" in line for line in wrong(hold(1, 1, 2), Record(Kind.GONE, 1, 3 * SECOND, 1, 1)))


def test_a_key_that_stands_free_while_somebody_waits_is_found() -> None:
    late = hold(2, 3, 4)
    waited = [Record(Kind.WAITING, 2, SECOND, 1, 1), *late[1:]]
    assert len(slow_handovers(judge([*hold(1, 1, 2), *waited]).turns, 0.3)) == 1
    assert slow_handovers(judge([*hold(1, 1, 2), *waited]).turns, 1.1) == []
    assert slow_handovers(judge([*hold(1, 1, 2), *late]).turns, 0.3) == []


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history"
    diaries = [Diary(path), Diary(path)]
    diaries[0].write(Kind.ENTERED, key=7, turn=1 << 40, backend=5)
    diaries[1].write(Kind.KILLED, pid=99)
    for diary in diaries:
        diary.close()
    with path.open("ab") as half_written:
        half_written.write(b"\x01")
    first, second = read(path)
    assert (first.kind, first.pid, first.key, first.turn, first.backend) == (Kind.ENTERED, os.getpid(), 7, 1 << 40, 5)
    assert (second.kind, second.pid) == (Kind.KILLED, 99)
    assert first.at <= second.at
