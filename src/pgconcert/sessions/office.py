"""What names and their debts ask of the engine that they belong to: a protocol, so that no file needs the other's."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..clock import Clock
from ..events import EventStream
from ..store import Store
from .claims import SessionClaim
from .heart import Heart
from .wakes import Wakes

__all__ = ["Office"]


class Office(Protocol):
    """The engine, as a name sees it."""

    store: Store
    clock: Clock
    loop: asyncio.AbstractEventLoop
    events: EventStream
    heart: Heart
    wakes: Wakes
    closed: bool
    ever_answered: bool
    """Whether the store has ever answered: until then nobody waits for it in vain."""

    def request_release(self, claim: SessionClaim) -> None:
        """Somebody here wants it given back."""

    def forget(self, name: object) -> None:
        """Nobody wants it any more."""
