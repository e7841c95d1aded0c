"""What happened to the lock of a demo, as records, and what follows from them. Pure: no clock, no process, no output.
The records of messages, terms and tasks stand here too; what follows from them: ``demo_messages.py``,
``demo_election.py``, ``demo_tasks.py``.

A record is one fact with a time of the machine's monotonic clock, which all its processes share. The process that holds
writes *entered*, and *left* before it releases, so that a recorded hold never reaches beyond the real one: whatever
overlaps here did overlap. *lost* is written when the body has been cancelled. The director writes *killed* and *cut*
just before it does it.

A hold ends with *left*, with *lost*, or with the kill of its process. A hold of which no end is known lasts for ever:
it overlaps with everything that follows. Between a cut and the end of its hold lies the one window that pgconcert
does not promise away: the server has freed the lock, and the loser is about to learn it. A hold of somebody else that
begins in this window is *excused* as long as the window is shorter than ``LONGEST_NOTICE``, and is counted on its own.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Self

__all__ = [
    "LONGEST_NOTICE",
    "Fault",
    "History",
    "Interval",
    "Kind",
    "Overlap",
    "Record",
    "Tally",
    "find_overlaps",
    "judge",
    "read_history",
    "tally",
    "unpack_all",
]

LONGEST_NOTICE: Final = 1_000_000_000
"""Nanoseconds within which a process must know that its connection is gone."""

_LAYOUT: Final = struct.Struct("<BHiiqqqi")


class Kind(enum.IntEnum):
    """What a record says."""

    READY = 1
    ENTERED = 2
    LEFT = 3
    LOST = 4
    KILLED = 5
    CUT = 6
    LISTENING = 7
    SENT = 8
    HEARD = 9
    GAP = 10
    DONE = 11
    SILENCED = 12
    LEADS = 13
    RESIGNED = 14
    DEPOSED = 15
    BEHEADED = 16
    SHARING = 17
    BEGUN = 18
    COMPLETED = 19
    DROPPED = 20
    REFUSED = 21


@dataclass(frozen=True, slots=True)
class Record:
    """One fact. ``at`` and ``waited`` are nanoseconds; ``backend`` is the server process of the connection concerned.

    Of a message, ``number`` is that of its sender, and ``peer`` the sender's process where another one writes. Of a
    term, ``number`` is its token, and ``waited`` the server's time when it began, in nanoseconds since 1970. Of a
    task, ``number`` is what was put into the queue; of *sharing*, the session, of *refused*, how many tasks.
    """

    kind: Kind
    worker: int
    pid: int
    at: int
    waited: int = 0
    backend: int = 0
    number: int = 0
    peer: int = 0

    SIZE = _LAYOUT.size

    def pack(self) -> bytes:
        """The record as ``SIZE`` bytes, few enough for one atomic write to a pipe."""
        return _LAYOUT.pack(
            self.kind, self.worker, self.pid, self.backend, self.at, self.waited, self.number, self.peer
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The reverse of ``pack``."""
        kind, worker, pid, backend, at, waited, number, peer = _LAYOUT.unpack(data)
        return cls(Kind(kind), worker, pid, at, waited, backend, number, peer)


def unpack_all(data: bytes) -> tuple[list[Record], bytes]:
    """All whole records at the head of ``data``, and the rest."""
    whole = len(data) - len(data) % Record.SIZE
    return [Record.unpack(data[at : at + Record.SIZE]) for at in range(0, whole, Record.SIZE)], data[whole:]


@dataclass(frozen=True, slots=True)
class Interval:
    """One hold. ``end`` is ``None`` while it lasts; ``how`` is the kind of record that ended it.

    ``freed`` is when the server was told to end the connection, if that is how the hold was lost.
    """

    worker: int
    pid: int
    start: int
    end: int | None
    how: Kind | None = None
    freed: int | None = None

    def __str__(self) -> str:
        end = "never" if self.end is None else f"{self.end} ns"
        how = f" ({self.how.name.lower()})" if self.how else ""
        return f"worker-{self.worker} (pid {self.pid}) entered at {self.start} ns, ended {end}{how}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A kill or a cut. ``hold`` is what it ended, if it met a holder, and ``successor`` the hold that came next."""

    kind: Kind
    worker: int
    pid: int
    at: int
    hold: Interval | None
    successor: Interval | None

    @property
    def takeover(self) -> int | None:
        """Nanoseconds from the fault to the entry of the next holder."""
        return self.successor.start - self.at if self.successor else None


@dataclass(frozen=True, slots=True)
class History:
    """Records, read. ``oddities`` are records that make no sense, in words; there must be none."""

    intervals: tuple[Interval, ...]
    faults: tuple[Fault, ...]
    oddities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two processes held at one time. ``excused``: the earlier one had been cut off and did not know it yet."""

    first: Interval
    second: Interval
    excused: bool

    def __str__(self) -> str:
        return f"{self.first} | {self.second}"


@dataclass(frozen=True, slots=True)
class Tally:
    """What one worker got. Waits are in nanoseconds."""

    turns: int
    median_wait: int
    longest_wait: int
    killed: int


def read_history(records: Iterable[Record]) -> History:
    """Make holds and faults of records. The records of one process must be in its order; processes may be mixed."""
    records = list(records)
    own: dict[tuple[int, int], list[Record]] = {}
    done_to: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        where = done_to if record.kind in (Kind.KILLED, Kind.CUT) else own
        where.setdefault((record.worker, record.pid), []).append(record)
    oddities: list[str] = []
    intervals: list[Interval] = []
    for who, said in own.items():
        intervals += _holds(said, done_to.get(who, []), oddities)
    intervals.sort(key=lambda hold: hold.start)
    faults = [_fault(record, intervals) for record in records if record.kind in (Kind.KILLED, Kind.CUT)]
    return History(tuple(intervals), tuple(sorted(faults, key=lambda fault: fault.at)), tuple(oddities))


def _holds(said: list[Record], done_to: list[Record], oddities: list[str]) -> list[Interval]:
    """The holds of one process from what it wrote and what was done to it."""
    holds: list[Interval] = []
    inside: Record | None = None
    before = 0
    for record in said:
        fits = (inside is not None) == (record.kind in (Kind.LEFT, Kind.LOST))
        if record.at < before or not fits:
            oddities.append(f"worker-{record.worker} (pid {record.pid}) wrote {record.kind.name} at {record.at} ns")
        before = max(before, record.at)
        if record.kind is Kind.ENTERED:
            if inside is not None:
                holds.append(Interval(inside.worker, inside.pid, inside.at, None))
            inside = record
        elif inside is not None and record.kind in (Kind.LEFT, Kind.LOST):
            cuts = [cut.at for cut in done_to if cut.kind is Kind.CUT and cut.at <= record.at]
            freed = max(inside.at, *cuts) if cuts and record.kind is Kind.LOST else None
            holds.append(Interval(inside.worker, inside.pid, inside.at, record.at, record.kind, freed))
            inside = None
    if inside is not None:
        kill = next((record for record in done_to if record.kind is Kind.KILLED), None)
        end, how = (max(inside.at, kill.at), Kind.KILLED) if kill else (None, None)
        holds.append(Interval(inside.worker, inside.pid, inside.at, end, how))
    return holds


def _fault(record: Record, intervals: Sequence[Interval]) -> Fault:
    ended_by = Kind.KILLED if record.kind is Kind.KILLED else Kind.LOST
    met = next(
        (
            hold
            for hold in intervals
            if hold.pid == record.pid and hold.how is ended_by and hold.end is not None and hold.end >= record.at
        ),
        None,
    )
    if met is None:
        return Fault(record.kind, record.worker, record.pid, record.at, None, None)
    later = (hold for hold in intervals if hold.start > record.at and hold is not met)
    return Fault(record.kind, record.worker, record.pid, record.at, met, next(later, None))


def find_overlaps(intervals: Iterable[Interval], longest_notice: int = LONGEST_NOTICE) -> list[Overlap]:
    """Every pair of holds of different processes that share more than an instant."""
    found: list[Overlap] = []
    active: list[Interval] = []
    for hold in sorted(intervals, key=lambda hold: hold.start):
        active = [earlier for earlier in active if earlier.end is None or earlier.end > hold.start]
        others = (earlier for earlier in active if (earlier.worker, earlier.pid) != (hold.worker, hold.pid))
        found += [Overlap(earlier, hold, _is_notice(earlier, hold, longest_notice)) for earlier in others]
        active.append(hold)
    return found


def _is_notice(earlier: Interval, later: Interval, longest: int) -> bool:
    if earlier.freed is None or earlier.end is None:
        return False
    return later.start >= earlier.freed and earlier.end - earlier.freed <= longest


def tally(records: Sequence[Record], worker: int) -> Tally:
    """What one worker, with all the processes that had its name, got."""
    waits = [record.waited for record in records if record.worker == worker and record.kind is Kind.ENTERED]
    killed = sum(record.worker == worker and record.kind is Kind.KILLED for record in records)
    return Tally(len(waits), round(median(waits)) if waits else 0, max(waits, default=0), killed)


def judge(records: Sequence[Record], pids: Iterable[int], kills: int, cuts: int) -> list[str]:
    """What is wrong with a finished demo; nothing, if it kept all its promises.

    ``pids`` are all processes that took part; ``kills`` and ``cuts`` are how many holders should have met their fault.
    """
    history = read_history(records)
    wrong = [f"overlap: {overlap}" for overlap in find_overlaps(history.intervals) if not overlap.excused]
    wrong += [f"a record that makes no sense: {oddity}" for oddity in history.oddities]
    wrong += [f"a hold without end: {hold}" for hold in history.intervals if hold.end is None]
    for kind, wanted, what in ((Kind.KILLED, kills, "killed"), (Kind.CUT, cuts, "cut off from the server")):
        met = [fault for fault in history.faults if fault.kind is kind and fault.hold]
        if len(met) < wanted:
            wrong.append(f"{len(met)} of {wanted} holders were {what}")
        wrong += [f"nobody took over from worker-{f.worker} (pid {f.pid})" for f in met if f.successor is None]
    had_a_turn = {hold.pid for hold in history.intervals}
    wrong += [f"process {pid} never got the lock" for pid in sorted(set(pids) - had_a_turn)]
    return wrong
