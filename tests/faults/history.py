"""What several processes did with locks, as records in one file, and what follows from them. Pure, except `Diary`.

A record is one fact with a time of the monotonic clock, which all processes of a machine share. A worker writes
*waiting* before it asks, *entered* once it has the lock, *left* before it begins to release, *told* where it learnt of
a loss. The director writes *killed* and *terminated* just before it does it, and *continued* just before a stopped
process goes on. So a recorded hold never reaches beyond the real one: what overlaps here did overlap.

A reader writes *reading* in place of *entered*: readers may overlap. A permit of a semaphore is a key of its own, by
its number, which is known on entry; so is each key of a set, in a turn of its own.

Between the end of a session and the moment its holder hears of it lies the window that nobody can close: the server
has freed the lock. From *terminated* on, such a hold is left out of the check for overlap; in exchange the window must
be short, counted from the moment when the holder could run again. A loss without any cause is a fault too.
"""

from __future__ import annotations

import enum
import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

_LAYOUT: Final = struct.Struct("<BHiiqq")
_SECOND: Final = 1_000_000_000

NOTICE: Final = 10 * _SECOND
"""The longest window, in nanoseconds: milliseconds in truth, and room for a machine that is busy with other things. Far
below the time after which a worker would believe that the network is dead (``worker.py``), so nothing but the watched
socket can have told."""


class Kind(enum.IntEnum):
    """What a record says."""

    WAITING = 1
    ENTERED = 2
    LEFT = 3
    TOLD = 4
    GONE = 5
    """The wait ended without a lock."""
    KILLED = 6
    TERMINATED = 7
    CONTINUED = 8
    READING = 9
    """As `ENTERED`, together with other readers."""


@dataclass(frozen=True, slots=True)
class Record:
    """One fact. `turn` numbers the attempts of a process; `backend` is the server process of the lock's session."""

    kind: Kind
    pid: int
    at: int
    key: int = 0
    turn: int = 0
    backend: int = 0

    def pack(self) -> bytes:
        return _LAYOUT.pack(self.kind, self.key, self.pid, self.backend, self.turn, self.at)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        kind, key, pid, backend, turn, at = _LAYOUT.unpack(data)
        return cls(Kind(kind), pid, at, key, turn, backend)


class Diary:
    """Appends records to a file that all processes share; the kernel keeps small appends whole."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, kind: Kind, *, pid: int | None = None, key: int = 0, turn: int = 0, backend: int = 0) -> None:
        """Write what happens now, to us or to `pid`."""
        record = Record(kind, os.getpid() if pid is None else pid, time.monotonic_ns(), key, turn, backend)
        os.write(self._file, record.pack())

    def close(self) -> None:
        os.close(self._file)


def count(path: Path) -> int:
    """How many records a file has; 0 while there is none."""
    return path.stat().st_size // _LAYOUT.size if path.exists() else 0


def read(path: Path) -> list[Record]:
    """All whole records of a file, by time."""
    data = path.read_bytes()
    size = _LAYOUT.size
    found = [Record.unpack(data[at : at + size]) for at in range(0, len(data) - size + 1, size)]
    return sorted(found, key=lambda record: record.at)


@dataclass(slots=True)
class Turn:
    """One attempt of one process at one key. `freed` is when its session was about to end under it."""

    pid: int
    key: int
    turn: int
    asked: int = 0
    entered: int | None = None
    ended: int | None = None
    how: Kind | None = None
    backend: int = 0
    freed: int | None = None
    shared: bool = False

    def __str__(self) -> str:
        how = self.how.name.lower() if self.how else "without end"
        freed = f", freed {self.freed}" if self.freed else ""
        return f"process {self.pid} turn {self.turn} key {self.key}: {self.entered}..{self.ended} {how}{freed}"


@dataclass(slots=True)
class Verdict:
    """What was found. `wrong` must be empty; the numbers show that the run was worth something."""

    wrong: list[str] = field(default_factory=list)
    holds: int = 0
    told: int = 0
    handovers: int = 0
    turns: list[Turn] = field(default_factory=list)


def judge(records: Sequence[Record], notice: int = NOTICE) -> Verdict:
    """Read a finished history, in the order of time."""
    verdict = Verdict()
    killed: dict[int, int] = {}
    freed: dict[int, int] = {}
    continued: dict[int, list[int]] = defaultdict(list)
    turns: dict[tuple[int, int], Turn] = {}
    for record in records:
        if record.kind is Kind.KILLED:
            killed[record.pid] = record.at
        elif record.kind is Kind.TERMINATED:
            freed.setdefault(record.backend, record.at)
        elif record.kind is Kind.CONTINUED:
            continued[record.pid].append(record.at)
        else:
            _note(record, turns, verdict)
    for turn in turns.values():
        _settle(turn, killed.get(turn.pid), freed.get(turn.backend), continued[turn.pid], notice, verdict)
    verdict.turns = list(turns.values())
    holds = [turn for turn in verdict.turns if turn.entered is not None]
    verdict.holds = len(holds)
    verdict.told = sum(turn.how is Kind.TOLD for turn in holds)
    by_key: dict[int, list[Turn]] = defaultdict(list)
    for turn in sorted(holds, key=lambda hold: hold.entered or 0):
        by_key[turn.key].append(turn)
    for series in by_key.values():
        verdict.handovers += sum(one.pid != two.pid for one, two in pairwise(series))
        verdict.wrong += _overlaps(series)
    return verdict


def _note(record: Record, turns: dict[tuple[int, int], Turn], verdict: Verdict) -> None:
    who = (record.pid, record.turn)
    if record.kind is Kind.WAITING:
        turns[who] = Turn(record.pid, record.key, record.turn, asked=record.at)
        return
    turn = turns.get(who)
    inside = turn is not None and turn.entered is not None
    enters = record.kind in (Kind.ENTERED, Kind.READING)
    if turn is None or turn.ended is not None or inside is (enters or record.kind is Kind.GONE):
        verdict.wrong.append(f"a record that makes no sense: {record}")
    elif enters:
        turn.entered, turn.backend, turn.key = record.at, record.backend, record.key
        turn.shared = record.kind is Kind.READING
    else:
        turn.ended, turn.how = record.at, record.kind


def _settle(
    turn: Turn, killed: int | None, freed: int | None, continued: list[int], notice: int, verdict: Verdict
) -> None:
    if turn.ended is None and killed is not None:
        turn.ended, turn.how = max(killed, turn.entered or turn.asked), Kind.KILLED
    if turn.ended is None:
        verdict.wrong.append(f"{'a wait' if turn.entered is None else 'a hold'} without end: {turn}")
        return
    if turn.entered is None:
        return
    if freed is not None and freed < turn.ended:
        turn.freed = max(freed, turn.entered)
        could_know = max([turn.freed, *(at for at in continued if turn.freed <= at <= turn.ended)])
        if turn.how is not Kind.KILLED and turn.ended - could_know > notice:
            verdict.wrong.append(f"told {(turn.ended - could_know) / _SECOND:.3f} s late: {turn}")
    if turn.how is Kind.TOLD and freed is None:
        verdict.wrong.append(f"lost without a cause: {turn}")


def _overlaps(series: Sequence[Turn]) -> list[str]:
    """Pairs of holds of one key, in order of entry, that share more than an instant."""
    found: list[str] = []
    active: list[Turn] = []
    for hold in series:
        assert hold.entered is not None
        if hold.freed is not None and hold.freed <= hold.entered:
            continue  # the grant was under way when its session ended: it never excluded anybody, and was told so
        active = [one for one in active if (_sure_end(one) or hold.entered + 1) > hold.entered]
        found += [f"overlap: {one} | {hold}" for one in active if not (one.shared and hold.shared)]
        active.append(hold)
    return found


def _sure_end(turn: Turn) -> int | None:
    """Until when a hold must exclude others; None is for ever."""
    ends = [end for end in (turn.ended, turn.freed) if end is not None]
    return min(ends) if ends else None


def crowd(turns: Iterable[Turn]) -> int:
    """The most holds that were there at one instant, whatever their keys; what the server had freed is not counted."""
    changes: list[tuple[int, int]] = []
    for turn in turns:
        if turn.entered is None or (turn.freed is not None and turn.freed <= turn.entered):
            continue
        end = _sure_end(turn)
        assert end is not None
        changes += [(turn.entered, 1), (end, -1)]
    most = inside = 0
    for _, change in sorted(changes):
        inside += change
        most = max(most, inside)
    return most


def longest_wait(turns: Iterable[Turn]) -> float:
    """Seconds from the request to the entry of whoever waited longest."""
    return max((turn.entered - turn.asked for turn in turns if turn.entered is not None), default=0) / _SECOND


def slow_handovers(turns: Iterable[Turn], limit: float) -> list[str]:
    """Releases after which somebody who was waiting already got nothing for more than `limit` seconds."""
    by_key: dict[int, list[Turn]] = defaultdict(list)
    for turn in turns:
        if turn.entered is not None and turn.ended is not None:
            by_key[turn.key].append(turn)
    found: list[str] = []
    for series in by_key.values():
        series.sort(key=lambda turn: turn.entered or 0)
        for before, after in pairwise(series):
            assert before.ended is not None
            assert after.entered is not None
            gap = (after.entered - max(before.ended, after.asked)) / _SECOND
            if gap > limit:
                found.append(f"key {before.key} stood free for {gap:.3f} s: {before} | {after}")
    return found
