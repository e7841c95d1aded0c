"""``@c.exclusive`` for plain functions. The theory stands in ``pgconcert/exclusive.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ..exclusive import IfHeld, check_function, has_run
from .locks import Lock

__all__ = ["exclusive"]

P = ParamSpec("P")
R = TypeVar("R")


def exclusive(
    make: Callable[[int | str], Lock], find: Callable[..., int | str], if_held: IfHeld
) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """The decorator. ``make`` makes a lock, ``find`` the key of a call."""

    def decorate(fn: Callable[P, R]) -> Callable[P, R | None]:
        check_function(fn, coroutine=False)

        @functools.wraps(fn)
        def alone(*args: P.args, **kwargs: P.kwargs) -> R | None:
            lock = make(find(*args, **kwargs))
            if if_held == "wait":
                with lock:
                    return has_run(fn, fn(*args, **kwargs))
            hold = lock.try_acquire()
            if hold is None:
                return None
            with hold:
                return has_run(fn, fn(*args, **kwargs))

        return alone

    return decorate
