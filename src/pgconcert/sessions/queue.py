"""The claims of this process that compete for one name: who is next, who waits, and who only tries. Nothing else.

The preferred come first, then the others; each of these in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

from .claims import SessionClaim

__all__ = ["Queue"]


class Queue:
    """Claims from their coming to their outcome. A claim that leaves is gone at once, wherever it stood."""

    __slots__ = ("_others", "_preferred")

    def __init__(self) -> None:
        self._preferred: dict[SessionClaim, None] = {}
        self._others: dict[SessionClaim, None] = {}

    def __len__(self) -> int:
        return len(self._preferred) + len(self._others)

    def __iter__(self) -> Iterator[SessionClaim]:
        return chain(self._preferred, self._others)

    @property
    def first(self) -> SessionClaim | None:
        """Who is next."""
        return next(iter(self), None)

    @property
    def waits(self) -> bool:
        """Whether anybody does not only try."""
        return any(claim.wait for claim in self)

    @property
    def others_wait(self) -> bool:
        """Whether somebody waits behind the first."""
        return sum(claim.wait for claim in islice(self, 3)) > 1

    def add(self, claim: SessionClaim) -> None:
        """A claim comes."""
        self._of(claim)[claim] = None

    def remove(self, claim: SessionClaim) -> bool:
        """A claim leaves; whether it was here."""
        return self._of(claim).pop(claim, self) is None

    def refuse_tries(self) -> None:
        """Whoever only tries has failed."""
        self._end([claim for claim in self if not claim.wait], SessionClaim.refuse)

    def fail_tries(self, error: Exception) -> None:
        """Whoever only tries learns the error."""
        self._end([claim for claim in self if not claim.wait], lambda claim: claim.fail(error))

    def fail_all(self, error: Exception) -> None:
        """Everybody learns the error."""
        self._end([*self], lambda claim: claim.fail(error))

    def _end(self, claims: list[SessionClaim], end: Callable[[SessionClaim], object]) -> None:
        for claim in claims:
            self.remove(claim)
        for claim in claims:
            end(claim)

    def _of(self, claim: SessionClaim) -> dict[SessionClaim, None]:
        return self._preferred if claim.key.preferred else self._others
