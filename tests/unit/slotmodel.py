"""A model of a semaphore on the server, for ``test_slotowner.py``. The shard before it stands in ``lockmodel.py``.

Here lives what the server has granted, as it counts it: slots, agreements and marks. Theory as there: all that is ours
is one session, which is refused nothing because of itself. The parameters are read as the server reads them, because
what an owner asks for stands in them alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pgconcert.postgres.owner import Found
from tests.unit.lockmodel import LOOK, Served

BEYOND = 2**64


@dataclass
class ServerSemaphore(Served):
    """A semaphore. ``ours``, ``agreements`` and ``marks`` are counts of our session."""

    ours: Counter[int] = field(default_factory=Counter)
    agreements: Counter[int] = field(default_factory=Counter)
    marks: int = 0
    theirs: set[int] = field(default_factory=set)
    """Slots of other sessions."""
    others: dict[str, int] = field(default_factory=dict)
    """With how many permits other sessions use it."""
    other_mark: bool = False
    looking: bool = False
    """Another session that releases looks at the mark at this instant: nobody can mark."""

    def execute(self, verb: str, parameters: Sequence[bytes | None]) -> str:
        if verb == LOOK:
            return json.dumps(self.others)
        if verb == "unmark":
            assert self.marks, "unmarked what was not marked"
            self.marks -= 1
            return "t"
        if verb == "agree":
            (permits,) = _row(parameters)[1:]
            assert not +self.agreements, "agrees twice"
            if any(number != permits for number in self.others.values()):
                return "d"
            self.agreements[permits] += 1
            return "t"
        if verb == "leave":
            (permits,) = _row(parameters)[1:]
            assert not +self.ours, "leaves the agreement while it has slots"
            assert self.agreements[permits], "leaves what was not agreed"
            self.agreements[permits] -= 1
            return "t"
        if verb == "give":
            slots = _row(parameters)[1]
            known = [self._unlock(slot) for slot in slots]
            return "n" if not all(known) else "w" if self.other_mark or self.looking else "q"
        assert verb in ("take", "mark_slots")
        if verb == "mark_slots":
            if self.looking:
                return "b"
            self._mark()
        return self._take(parameters, 1000)

    def execute_partly(self, verb: str, parameters: Sequence[bytes | None]) -> None:
        if verb == "give":
            self._unlock(_row(parameters)[1][0])
        elif verb == "take":
            self._take(parameters, 1)
        elif verb == "mark_slots" and not self.looking:
            self._mark()

    def found(self) -> Found:
        return Found(marked=self.marks > 0, slots=frozenset(+self.ours), agreed=max(+self.agreements, default=0))

    def forget_us(self) -> None:
        self.ours.clear()
        self.agreements.clear()
        self.marks = 0

    def others_leave(self) -> None:
        self.theirs.clear()
        self.others.clear()
        self.other_mark = self.looking = False

    @staticmethod
    def others_seen(answer: str) -> list[tuple[str, int]]:
        """Whom the question who agrees has found."""
        return [*json.loads(answer).items()]

    def _mark(self) -> None:
        assert not self.marks, "marked twice"
        self.marks += 1

    def _unlock(self, slot: int) -> bool:
        known = self.ours[slot] > 0
        self.ours[slot] -= known
        return known

    def _take(self, parameters: Sequence[bytes | None], most: int) -> str:
        _, permits, start, wanted, excluded = _row(parameters)
        assert wanted >= 1
        assert set(excluded) == set(+self.ours), "the server would grant them again"
        free = (slot % permits for slot in range(start, start + permits))
        found = [slot for slot in free if slot not in excluded and slot not in self.theirs][: min(wanted, most)]
        self.ours.update(found)
        return ".".join(map(str, found)) or "-"


def _row(parameters: Sequence[bytes | None]) -> list[Any]:
    """The one row of arrays: ``{7}`` is a number, ``{"{1,2}"}`` a list."""
    row: list[Any] = []
    for parameter in parameters:
        assert parameter is not None
        (item,) = json.loads(b"[" + parameter[1:-1] + b"]")
        row.append(json.loads("[" + item[1:-1] + "]") if isinstance(item, str) else item)
    return row
