"""What happened to the election of a demo, and what follows from it. Pure: no clock, no process, no output.

Every process is a candidate all the time. Whoever leads writes *leads*, with the token of its term and the server's
time at which it began; before it gives it back *resigned*, and *deposed* when its body has been cancelled.

What is proven is what is promised: by the server's clock, which is in the terms that the server has noted, no term
begins before the one before it has ended, and each has a larger token. What the processes wrote must agree with that:
whoever led has a term of that token and that time, and no token was given twice. A process that is not run for a while
may act as leader beyond its term, so the machine's own clock proves nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ..store import Term
from .demo_history import Kind, Record

__all__ = ["ELECTION", "Election", "Succession", "judge_terms", "successions"]

ELECTION: Final = frozenset({Kind.LEADS, Kind.RESIGNED, Kind.DEPOSED})
"""The records about terms."""

_PRECISION: Final = 1_000_000


@dataclass(slots=True)
class Election:
    """The records so far, kills among them, and what can be said at once."""

    records: list[Record] = field(default_factory=list)
    leader: Record | None = None
    """How the one that leads began, as far as it is known."""

    def take(self, record: Record) -> None:
        """One more."""
        self.records.append(record)
        if record.kind is Kind.LEADS:
            self.leader = record
        elif self.leader is not None and self.leader.pid == record.pid:
            self.leader = None

    @property
    def terms(self) -> int:
        """How many there were."""
        return sum(record.kind is Kind.LEADS for record in self.records)


@dataclass(frozen=True, slots=True)
class Succession:
    """A leader that was killed, and who led next. ``on_purpose``: because it led, not because it held the lock."""

    killed: Record
    term: Record
    next: Record | None
    on_purpose: bool

    @property
    def takeover(self) -> int | None:
        """Nanoseconds from the kill to the next leader."""
        return self.next.at - self.killed.at if self.next else None


def successions(records: Sequence[Record]) -> list[Succession]:
    """Every kill that met a leader. The records of one process must be in its order."""
    found: list[Succession] = []
    for killed in records:
        if killed.kind not in (Kind.KILLED, Kind.BEHEADED):
            continue
        said = [record for record in records if record.pid == killed.pid and record.kind in ELECTION]
        if not said or said[-1].kind is not Kind.LEADS:
            continue
        later = [record for record in records if record.kind is Kind.LEADS and record.at > killed.at]
        heir = min(later, key=lambda record: record.at, default=None)
        found.append(Succession(killed, said[-1], heir, killed.kind is Kind.BEHEADED))
    return found


def judge_terms(records: Sequence[Record], terms: Iterable[Term], kills: int) -> list[str]:
    """What is wrong with the terms of a finished demo; nothing, if all promises were kept.

    ``terms`` as the server has noted them; ``kills`` is how many leaders should have been killed because they led.
    """
    noted = sorted(terms, key=lambda term: term.since)
    wrong: list[str] = []
    for before, after in pairwise(noted):
        if before.until is None or before.until > after.since:
            wrong.append(f"terms overlap by the server's clock: {_told(before)} | {_told(after)}")
        if after.token <= before.token:
            wrong.append(f"a token that did not grow: {_told(before)} | {_told(after)}")
    by_token = {term.token: term for term in noted}
    seen: set[int] = set()
    for record in records:
        if record.kind is not Kind.LEADS:
            continue
        who = f"worker-{record.worker} (pid {record.pid})"
        if record.number in seen:
            wrong.append(f"token {record.number} was given twice, the second time to {who}")
        seen.add(record.number)
        term = by_token.get(record.number)
        if term is None or term.leader.pid != record.pid or abs(term.since * 1e9 - record.waited) > _PRECISION:
            wrong.append(f"{who} led with token {record.number}, and the server has noted {_told(term)}")
    if not seen:
        wrong.append("nobody ever led")
    met = [succession for succession in successions(records) if succession.on_purpose]
    if len(met) < kills:
        wrong.append(f"{len(met)} of {kills} leaders were killed")
    wrong += [f"nobody led after worker-{s.term.worker} (pid {s.term.pid}) was killed" for s in met if s.next is None]
    return wrong


def _told(term: Term | None) -> str:
    if term is None:
        return "no such term"
    end = "without an end" if term.until is None else f"until {term.until:.6f} ({term.how})"
    return f"token {term.token} of pid {term.leader.pid} from {term.since:.6f} {end}"
