"""The lock around views, commands and tasks. ``pgconcert/exclusive.py`` says what a decorated call is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, overload

from asgiref.sync import iscoroutinefunction

from ...blocking.exclusive import exclusive as around_plain
from ...composition import seconds
from ...errors import ConfigurationError
from ...exclusive import IfHeld, KeyOf, key_of
from ...exclusive import exclusive as around_coroutine
from ...keys import KeySpace
from .asgi import async_coordinator
from .coordinators import coordinator

__all__ = ["exclusive"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def exclusive(
    key: KeyOf, *, timeout: float | None = None, if_held: Literal["wait"] = "wait", using: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@overload
def exclusive(
    key: KeyOf, *, timeout: None = None, if_held: Literal["skip"], using: str | None = None
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
def exclusive(
    key: KeyOf, *, timeout: float | None = None, if_held: IfHeld = "wait", using: str | None = None
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Decorate a function: one call of it runs at a time, over all processes of the project.

    Plain functions wait by ``coordinator``, coroutine functions by ``async_coordinator``, when they are called: nothing
    is opened by decorating. For the methods of a class, use Django's ``method_decorator``.

    The lock belongs outside the transaction (``@exclusive(...)`` above ``@transaction.atomic``), or the next call may
    begin before this one has committed. With ``ATOMIC_REQUESTS`` the transaction is always outside: add
    ``@non_atomic_requests``, or use ``pgconcert.transaction.lock``, which the commit frees.

    :param key: as for ``Coordinator.lock``; or a function that gets the arguments of the call and returns the key.
    :param timeout: how long a call waits, in seconds; then it raises ``AcquireTimeout``. ``None`` waits for ever.
    :param if_held: ``"wait"``, or ``"skip"``: a call that finds the lock held returns ``None`` at once.
    :param using: an alias of ``DATABASES``, for plain functions.
    """
    waits = seconds(timeout)
    find = key_of(KeySpace(), key, waits, if_held)

    def decorate(fn: Callable[P, Any]) -> Callable[P, Any]:
        if iscoroutinefunction(fn) or iscoroutinefunction(type(fn).__call__):
            if using is not None:
                raise ConfigurationError(
                    f"using={using!r} is for plain functions: the coordinator of an event loop was opened for one alias"
                )
            return around_coroutine(lambda found: async_coordinator().lock(found, timeout=waits), find, if_held)(
                fn if inspect.iscoroutinefunction(fn) else _as_function(fn)
            )
        return around_plain(lambda found: coordinator(using).lock(found, timeout=waits), find, if_held)(fn)

    return decorate


def _as_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function of what Django takes for one: ``sync_to_async``, what ``markcoroutinefunction`` marked."""

    @functools.wraps(fn)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return awaited
