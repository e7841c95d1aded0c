"""A silent network, or a listener that hears nothing, found out at once, and only where a test says so.

Theory: a keeper looks at its link five times per `network_timeout` and gives it up after three looks at silence. With a
short time-out a busy machine would lose links that are merely slow; with a long one each silence would take as long.
So in these tests the time-out is long and looks are frequent, and what they see counts only for coordinators that are
*hasty*: from the moment at which their network is silent on purpose until it flows again. In the same time a proof that
does not come back is given up at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from pgconcert.postgres.echoes import Echoes
from pgconcert.postgres.keeper import Keeper

__all__ = ["PATIENCE", "Haste"]

PATIENCE = 60.0
"""A `network_timeout` that is never over by itself."""

_LOOK_EVERY = 0.05
_PROOF = 0.3
_NEVER = -(10**9)


class Haste:
    """Which coordinators are hasty, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._names: set[str] = set()
        look, watch, limit = Keeper._look_at, Keeper._watch, Echoes._limit

        def look_at(keeper: Keeper, link: Any, signs: int, strikes: int, due: float) -> None:
            hasty = keeper._context.name in self._names
            look(keeper, link, signs, max(strikes, 0) if hasty else _NEVER, due)

        def watch_often(keeper: Keeper, link: Any, signs: int, strikes: int, due: float) -> None:
            watch(keeper, link, signs, strikes, min(due, keeper._context.loop.time() + _LOOK_EVERY))

        def limit_soon(echoes: Echoes, nonce: bytes, echo: Any, seconds: float) -> None:
            limit(echoes, nonce, echo, _PROOF if self._names else seconds)

        monkeypatch.setattr(Keeper, "_look_at", look_at)
        monkeypatch.setattr(Keeper, "_watch", watch_often)
        monkeypatch.setattr(Echoes, "_limit", limit_soon)

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The coordinator of this name is hasty inside the block."""
        self._names.add(name)
        try:
            yield
        finally:
            self._names.discard(name)
