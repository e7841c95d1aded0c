"""What ``transaction.run`` makes of failures: whether a transaction is tried again, and where the error of a rollback
is kept. Nothing here talks to anybody.

Theory. An error that fn lets pass may be the driver's, or stand before it; so the whole chain is asked, but not what
the caller of ``run`` was handling already. The error of a rollback must not hide the one that led to it: it becomes a
note of that, and the last of its chain, where tracebacks show it first.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from .servererrors import told_by

__all__ = ["Attempts", "keep", "report"]

_AGAIN: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the server gave up a transaction that may succeed when it is done once more."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0

logger = logging.getLogger("pgconcert")


class Attempts:
    """How often a transaction was tried, and whether that is done once more."""

    def __init__(
        self, retries: int, handled: BaseException | None, chance: Callable[[float, float], float] = random.uniform
    ) -> None:
        """``handled``: what the caller was handling already: it stands behind each error and belongs to none."""
        self._left = retries
        self._handled = handled
        self._chance = chance
        self._longest = _FIRST_PAUSE
        self._made = 0
        self._nested = False

    def begun(self, *, nested: bool) -> None:
        """A try has begun: inside a transaction that was open already, or not."""
        self._made += 1
        self._nested = nested

    def left(self, rolled_back: bool) -> None:
        """A try is over. One that could not be rolled back is the last: its connection was closed, and what the next
        one met there would hide why."""
        if not rolled_back:
            self._left = 0

    def again(self, error: Exception) -> bool:
        """Whether this error of a transaction means that it is tried again."""
        if self._left and not self._nested and any(found.sqlstate in _AGAIN for found in told_by(error, self._handled)):
            self._left -= 1
            return True
        if self._made > 1:
            _add_note(error, f"transaction.run had tried it {self._made} times")
        return False

    def pause(self) -> float:
        """Seconds until the next try."""
        longest, self._longest = self._longest, min(self._longest * 2, _LONGEST_PAUSE)
        return self._chance(longest / 2, longest)


def report(error: BaseException | None, failed: BaseException) -> None:
    """A rollback has failed, because of ``error`` or for no reason known. The connection was closed."""
    if error is None:
        logger.warning("a rollback failed, and its connection was closed: %s", _line(failed), exc_info=failed)
    else:
        keep(error, failed)


def keep(error: BaseException, failed: BaseException) -> None:
    """Keep the error of a rollback with the one that led to it."""
    if failed is not error:
        _add_note(error, f"the rollback failed too, and the connection was closed: {_line(failed)}")
    chain = _chain(error)
    own = _chain(failed, chain)
    if not own:
        return  # it is one of them
    if own[-1].__cause__ is None:
        _set(own[-1], "__context__", None)  # it was raised while the other was handled: here it stands behind that
        if chain[-1].__cause__ is None and chain[-1].__context__ is None:
            _set(chain[-1], "__context__", failed)


def _chain(error: BaseException, but: Sequence[BaseException] = ()) -> list[BaseException]:
    """An error and those that stand behind it, as far as none comes again, and none of others."""
    seen = {id(one) for one in but}
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        chain.append(one)
        one = one.__context__ if one.__cause__ is None else one.__cause__
    return chain


def _add_note(error: BaseException, note: str) -> None:
    _set(error, "__notes__", [*getattr(error, "__notes__", ()), note])


def _set(error: BaseException, name: str, value: object) -> None:
    """Set an attribute even of an error that is frozen."""
    BaseException.__setattr__(error, name, value)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
