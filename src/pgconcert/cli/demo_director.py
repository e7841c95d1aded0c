"""The course of a demo: who is killed when, when it is over, and what is said about it. No terminal, no server here.

A fault is due at a fixed hour, and then waits for somebody to enter: it is meant for a holder in the middle of a hold.
Whether it hit is known only afterwards, from the history, because the holder may have left in the same instant; a miss
is repeated. The next fault waits until somebody has taken over. One fault is for messages: the connection over which a
process listens is cut, and the next one waits until that process was told of the gap and hears again. And now and
then it is the leader that is killed, outside the lock, and the next one waits until somebody else leads.

At closing time the demo goes on, within limits, until every fault was answered and every process has had its turn:
order between processes is not promised, a turn is hoped for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from .demo_election import ELECTION, Election, successions
from .demo_history import Fault, Interval, Kind, Record, read_history
from .demo_messages import MAIL, Mail
from .demo_stage import Stage, WorkerFailed

__all__ = ["Director", "Mood", "Picture", "Plan", "View"]

Mood = Literal["plain", "killed", "cut", "deaf", "good"]

_START_LIMIT: Final = 30.0
_TAKEOVER_LIMIT: Final = 10.0
_OVERTIME: Final = 60.0
_FRAME: Final = 0.04
_FRESH: Final = 0.025
_PATIENCE: Final = 2.0
_MESSAGES_PER_SECOND: Final = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen. ``kills`` of the holder by SIGKILL, one cut of its connection, one of a listener's; with an
    ``election`` half as many kills of the leader as of the holder."""

    processes: int
    seconds: float
    kills: int
    election: bool = True

    @property
    def faults(self) -> list[Kind]:
        """In their order: the cuts come after a kill, which a viewer understands at once."""
        faults = [Kind.KILLED] * self.kills
        faults[1:1] = [Kind.CUT, Kind.SILENCED]
        for number in range(self.leader_kills):
            faults.insert(2 + 3 * number, Kind.BEHEADED)
        return faults

    @property
    def leader_kills(self) -> int:
        """How many leaders are killed because they lead."""
        return (self.kills + 1) // 2 if self.election else 0

    @property
    def longest_hold(self) -> float:
        """Seconds. With many processes shorter, so that everybody's turn comes round in the same time."""
        return 0.3 * min(1.0, 5 / self.processes)

    @property
    def shortest_hold(self) -> float:
        """Seconds."""
        return self.longest_hold / 6

    @property
    def pause(self) -> float:
        """Seconds from message to message of one process: so many that a short gap has some in it."""
        return self.processes / _MESSAGES_PER_SECOND


@dataclass(slots=True)
class Picture:
    """All there is to see. ``records`` are those of the lock, ``mail`` has those of messages, ``election`` those of
    terms; ``begun`` is when every process was ready, in nanoseconds; 0 before."""

    plan: Plan
    records: list[Record] = field(default_factory=list)
    mail: Mail = field(default_factory=Mail)
    election: Election = field(default_factory=Election)
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
        talk = "talk, and elect a leader" if self._plan.election else "talk"
        text = f"{self._plan.processes} processes compete for one lock, and {talk}"
        self._view.tell(self.picture.begun, "plain", text)

    def _take(self, heard: Sequence[Record]) -> None:
        for record in heard:
            if record.kind in MAIL:
                self.picture.mail.take(record)
                continue
            if record.kind in ELECTION:
                self.picture.election.take(record)
                continue
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
        elected = not self._plan.election or self.picture.election.terms > 0
        return (
            answered
            and elected
            and set(self._stage.pids) <= {r.pid for r in self.picture.records if r.kind is Kind.ENTERED}
        )

    def _is_moment_for_fault(self) -> bool:
        if not self._to_come:
            return False
        number = len(self._plan.faults) - len(self._to_come)
        due = self._plan.seconds * (number + 1) / (len(self._plan.faults) + 1)
        overdue = self._elapsed() - due
        if overdue < 0:
            return False
        if self._to_come[0] is Kind.SILENCED:
            return self._listener() is not None
        if self._to_come[0] is Kind.BEHEADED:
            return self._leader(impatient=overdue > _PATIENCE) is not None
        inside = self.picture.inside
        if inside is None:
            return False
        # A holder that entered long ago is about to leave. On a busy machine there may be no better one.
        return overdue > _PATIENCE or (time.monotonic_ns() - inside.at) / 1e9 < _FRESH

    def _listener(self) -> Record | None:
        """Somebody who listens, and does not hold the lock, so that only one thing happens at a time."""
        inside = self.picture.inside
        there = (link for _, link in sorted(self.picture.mail.links.items()) if link.pid not in self._stage.killed)
        return next((link for link in there if inside is None or link.pid != inside.pid), None)

    def _leader(self, *, impatient: bool) -> Record | None:
        """Who leads, had its turn with the lock, and, unless it takes too long, is not inside now."""
        leader, inside = self.picture.election.leader, self.picture.inside
        if leader is None or (not impatient and inside is not None and inside.pid == leader.pid):
            return None
        had_a_turn = any(r.kind is Kind.ENTERED and r.pid == leader.pid for r in self.picture.records)
        return leader if had_a_turn else None

    def _strike(self) -> None:
        kind = self._to_come[0]
        if kind is Kind.SILENCED:
            self._silence()
            return
        if kind is Kind.BEHEADED:
            self._behead()
            return
        inside = self.picture.inside
        assert inside is not None
        self._announced = False
        if kind is Kind.KILLED:
            self._under_way = self._kill(inside.worker)
            self.picture.election.take(self._under_way)
        else:
            self._under_way = Record(Kind.CUT, inside.worker, inside.pid, time.monotonic_ns(), backend=inside.backend)
            self._cut(inside.backend)
            self.picture.records.append(self._under_way)

    def _kill(self, worker: int) -> Record:
        """End a process, hear what it still said, and start another in its place."""
        killed = self._stage.kill(worker)
        self._take(self._stage.hear(0))
        if self.picture.inside is not None and self.picture.inside.pid == killed.pid:
            self.picture.inside = None
        self._stage.start(worker)
        self.picture.records.append(killed)
        return killed

    def _behead(self) -> None:
        leader = self._leader(impatient=True)
        assert leader is not None
        killed = replace(self._kill(leader.worker), kind=Kind.BEHEADED)
        self.picture.election.take(killed)
        self._under_way = killed
        self._announced = False

    def _follow_succession(self, killed: Record) -> None:
        met = next((s for s in successions(self.picture.election.records) if s.killed is killed), None)
        if met is None:  # it had resigned in that instant: again
            self._under_way = None
            return
        who = f"worker-{killed.worker} (pid {killed.pid})"
        if not self._announced:
            self._announced = True
            self._view.tell(killed.at, "killed", f"{who} is killed with SIGKILL while it leads")
        if met.next is not None and met.takeover is not None:
            new = met.next
            text = f"worker-{new.worker} (pid {new.pid}) leads after {met.takeover / 1e6:.0f} ms, token {new.number}"
            self._view.tell(new.at, "good", text)
        elif (time.monotonic_ns() - killed.at) / 1e9 <= _TAKEOVER_LIMIT:
            return
        self._under_way = None
        self._to_come.pop(0)

    def _silence(self) -> None:
        link = self._listener()
        assert link is not None
        cut = Record(Kind.SILENCED, link.worker, link.pid, time.monotonic_ns(), backend=link.backend)
        self._under_way = cut
        self._cut(link.backend)
        self.picture.mail.take(cut)
        who = f"worker-{cut.worker} (pid {cut.pid})"
        self._view.tell(cut.at, "deaf", f"{who} listens, and that connection is cut")

    def _follow_silence(self, cut: Record) -> None:
        theirs = [each for each in self.picture.mail.records if each.pid == cut.pid and each.at > cut.at]
        gap = next((each for each in theirs if each.kind is Kind.GAP), None)
        again = next((each for each in theirs if gap and each.kind is Kind.HEARD and each.at > gap.at), None)
        if gap is not None and again is not None:
            after = (gap.at - cut.at) / 1e6
            text = f"worker-{cut.worker} hears again, and was told of the gap after {after:.0f} ms"
            self._view.tell(gap.at, "good", text)
        elif (time.monotonic_ns() - cut.at) / 1e9 <= _TAKEOVER_LIMIT:
            return
        self._under_way = None
        self._to_come.pop(0)

    def _follow(self, struck: Record) -> None:
        """See what became of a fault."""
        if struck.kind is Kind.SILENCED:
            self._follow_silence(struck)
            return
        if struck.kind is Kind.BEHEADED:
            self._follow_succession(struck)
            return
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
