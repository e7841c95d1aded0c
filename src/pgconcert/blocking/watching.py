"""What changes, seen by looking, for threads: the twin of ``pgconcert.watching``, whose looks run on the engine.

Here live also the ways from a thread to the store of sessions, which elections and groups share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from .. import acquiring
from ..errors import CoordinatorClosed
from ..sessions.register import SessionRegister
from ..store import Request
from ..watching import AsyncChanges
from ..watching import ask as ask_there
from .acquiring import Register
from .engine import Engine, not_in_a_loop

__all__ = ["Changes", "ask", "on_engine", "run"]

C = TypeVar("C")
T = TypeVar("T")

_TWIN: Final = "AsyncCoordinator"


def on_engine(of: SessionRegister[Register]) -> SessionRegister[acquiring.Register]:
    """The same for what runs on the engine."""
    return SessionRegister(of.register.on_engine, of.sessions, of.keys, of.events)


def run(of: SessionRegister[Register], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on the engine, and wait for it."""
    not_in_a_loop(_TWIN)
    return of.register.engine.run(work)


def ask(of: SessionRegister[Register], request: Request[T]) -> T:
    """Ask the store, and wait for the answer. Raises ``Unavailable``, ``SchemaMissing``, ``CoordinatorClosed``."""
    there = on_engine(of)
    return run(of, lambda: ask_there(there, request))


class Changes(Generic[C]):
    """Changes as they happen. ``with`` it, then iterate, or ``get()``.

    Entering it looks for the first time, so the present state is there at once. What was seen is kept until it is
    taken, however slow that is. Several threads may take from it: each change goes to one of them.
    """

    def __init__(self, engine: Engine, inner: AsyncChanges[C]) -> None:
        self._engine = engine
        self._inner = inner

    def get(self, timeout: float | None = None) -> C:
        """The next change.

        Raises ``TimeoutError`` after ``timeout`` seconds, ``CoordinatorClosed`` when this or its coordinator is closed,
        and what has ended the looking (``SchemaMissing``, ``StatementFailed``). Interrupted, it takes nothing.
        """
        not_in_a_loop(_TWIN)
        inner = self._inner
        return self._engine.run(lambda: inner.get(timeout), undo=inner._put_back)

    def __iter__(self) -> Iterator[C]:
        return self

    def __next__(self) -> C:
        if self.closed:
            raise StopIteration
        try:
            return self.get()
        except CoordinatorClosed:
            if self.closed:
                raise StopIteration from None
            raise

    @property
    def closed(self) -> bool:
        """Whether it was left, or ``close`` was called."""
        return self._inner.closed

    def __enter__(self) -> Self:
        not_in_a_loop(_TWIN)
        inner = self._inner
        self._engine.run(inner.__aenter__, undo=lambda entered: entered._abandon())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Look no more; what was not taken is dropped. Idempotent. Whoever iterates comes to the end."""
        not_in_a_loop(_TWIN)
        try:
            self._engine.run(self._inner.close)
        except CoordinatorClosed:
            self._inner._abandon()  # the engine has ended, and with it all that looks

    def __del__(self) -> None:
        inner: AsyncChanges[C] | None = getattr(self, "_inner", None)
        if inner is None or not inner._thrown_away():
            return
        shown = repr(self)
        if self._engine.crossing.post(inner._abandon):
            warnings.warn(f"{shown} was dropped without close", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        return repr(self._inner).replace(type(self._inner).__name__, type(self).__name__, 1)
