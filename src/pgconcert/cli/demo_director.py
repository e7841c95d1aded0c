"""The course of a demo: who is killed when, when it is over, and what is said about it. No terminal, no server here.

A fault is due at a fixed hour, and then waits for somebody to enter: it is meant for a holder in the middle of a hold.
Whether it hit is known only afterwards, from the history, because the holder may have left in the same instant; a miss
is repeated. The next fault waits until somebody has taken over. At closing time the demo goes on, within limits, until
every fault was answered and every process has had its turn: order between processes is not promised, a turn is hoped
for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from .demo_history import Fault, Interval, Kind, Record, read_history
from .demo_stage import Stage, WorkerFailed

__all__ = ["Director", "Mood", "Picture", "Plan", "View"]

Mood = Literal["plain", "killed", "cut", "good"]

_START_LIMIT: Final = 30.0
_TAKEOVER_LIMIT: Final = 10.0
_OVERTIME: Final = 15.0
_FRAME: Final = 0.04
_FRESH: Final = 0.025
_PATIENCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen. ``kills`` of the holder by SIGKILL, and one cut of its connection."""

    processes: int
    seconds: float
    kills: int

    @property
    def faults(self) -> list[Kind]:
        """In their order: the cut comes second, so that a viewer has seen a kill before."""
        faults = [Kind.KILLED] * self.kills
        faults.insert(1, Kind.CUT)
        return faults

    @property
    def longest_hold(self) -> float:
        """Seconds. With many processes shorter, so that everybody's turn comes round in the same time."""
        return 0.3 * min(1.0, 5 / self.processes)

    @property
    def shortest_hold(self) -> float:
        """Seconds."""
        return self.longest_hold / 6


@dataclass(slots=True)
class Picture:
    """All there is to see. ``begun`` is when every process was ready, in nanoseconds; 0 before."""

    plan: Plan
    records: list[Record] = field(default_factory=list)
    inside: Record | None = None
    begun: int = 0

    def since_begun(self, at: int) -> float:
        """Seconds of the demo's own clock."""
        return (at - self.begun) / 1e9 if self.begun else 0.0


class View(Protocol):
    """Who looks on."""

    def tell(self, at: int, mood: Mood, text: str) -> None:
        """Something worth a line happened."""

    def show(self, picture: Picture) -> None:
        """Time has passed. Called often."""


class Director:
    """Runs one demo on a stage. ``cut`` ends the session of a server process."""

    def __init__(self, stage: Stage, plan: Plan, cut: Callable[[int], object], view: View) -> None:
        self._stage, self._plan, self._cut, self._view = stage, plan, cut, view
        self.picture = Picture(plan)
        self._to_come = plan.faults
        self._under_way: Record | None = None
        self._announced = False

    def run(self) -> Sequence[Record]:
        """The demo, from the first process to the last; returns its history. Raises ``WorkerFailed``."""
        for worker in range(1, self._plan.processes + 1):
            self._stage.start(worker)
        self._wait_until_ready()
        while not self._is_over():
            self._take(self._stage.hear(_FRAME))
            if self._under_way is not None:
                self._follow(self._under_way)
            elif self._is_moment_for_fault():
                self._strike()
            self._view.show(self.picture)
        self._take(self._stage.dismiss())
        self._view.show(self.picture)
        return self.picture.records

    def _wait_until_ready(self) -> None:
        limit = time.monotonic() + _START_LIMIT
        while len([r for r in self.picture.records if r.kind is Kind.READY]) < self._plan.processes:
            if time.monotonic() > limit:
                raise WorkerFailed(f"the processes were not ready within {_START_LIMIT:g} s")
            self._take(self._stage.hear(_FRAME))
            self._view.show(self.picture)
        self.picture.begun = time.monotonic_ns()
        self._view.tell(self.picture.begun, "plain", f"{self._plan.processes} processes compete for one lock")

    def _take(self, heard: Sequence[Record]) -> None:
        for record in heard:
            self.picture.records.append(record)
            inside = self.picture.inside
            if record.kind is Kind.ENTERED:
                self.picture.inside = record
            elif inside is not None and record.pid == inside.pid and record.kind in (Kind.LEFT, Kind.LOST):
                self.picture.inside = None

    def _elapsed(self) -> float:
        return self.picture.since_begun(time.monotonic_ns())

    def _is_over(self) -> bool:
        elapsed = self._elapsed()
        if elapsed < self._plan.seconds:
            return False
        if elapsed > self._plan.seconds + _OVERTIME:
            return True
        answered = not self._to_come and self._under_way is None
        return answered and set(self._stage.pids) <= {r.pid for r in self.picture.records if r.kind is Kind.ENTERED}

    def _is_moment_for_fault(self) -> bool:
        inside = self.picture.inside
        if not self._to_come or inside is None:
            return False
        number = len(self._plan.faults) - len(self._to_come)
        due = self._plan.seconds * (number + 1) / (len(self._plan.faults) + 1)
        overdue = self._elapsed() - due
        if overdue < 0:
            return False
        # A holder that entered long ago is about to leave. On a busy machine there may be no better one.
        return overdue > _PATIENCE or (time.monotonic_ns() - inside.at) / 1e9 < _FRESH

    def _strike(self) -> None:
        inside, kind = self.picture.inside, self._to_come[0]
        assert inside is not None
        self._announced = False
        if kind is Kind.KILLED:
            self._under_way = self._stage.kill(inside.worker)
            self._take(self._stage.hear(0))
            if self.picture.inside is inside:
                self.picture.inside = None
            self._stage.start(inside.worker)
        else:
            self._under_way = Record(Kind.CUT, inside.worker, inside.pid, time.monotonic_ns(), backend=inside.backend)
            self._cut(inside.backend)
        self.picture.records.append(self._under_way)

    def _follow(self, struck: Record) -> None:
        """See what became of a fault."""
        fault = next(f for f in read_history(self.picture.records).faults if (f.pid, f.at) == (struck.pid, struck.at))
        left = any(r.kind is Kind.LEFT and r.pid == struck.pid and r.at >= struck.at for r in self.picture.records)
        if fault.hold is not None and not self._announced:
            self._announced = True
            self._announce(fault, fault.hold)
        if fault.hold is None and (struck.kind is Kind.KILLED or left):
            self._under_way = None
        elif fault.successor is not None:
            new, after = fault.successor, (fault.successor.start - fault.at) / 1e6
            verb = "has it again" if new.pid == fault.pid else "took over"
            self._view.tell(new.start, "good", f"worker-{new.worker} (pid {new.pid}) {verb} after {after:.0f} ms")
            self._under_way = None
            self._to_come.pop(0)
        elif (time.monotonic_ns() - struck.at) / 1e9 > _TAKEOVER_LIMIT:
            self._under_way = None
            self._to_come.pop(0)

    def _announce(self, fault: Fault, hold: Interval) -> None:
        who = f"worker-{fault.worker} (pid {fault.pid})"
        if fault.kind is Kind.KILLED:
            self._view.tell(fault.at, "killed", f"{who} is killed with SIGKILL while it holds the lock")
            return
        assert hold.end is not None
        self._view.tell(fault.at, "cut", f"{who} holds the lock, and its connection to the server is cut")
        told = (hold.end - fault.at) / 1e6
        self._view.tell(
            hold.end, "cut", f"worker-{fault.worker} was told so by LockLost after {told:.1f} ms; it goes on"
        )
