"""``@c.exclusive``: a function of which one call runs at a time, over all processes. For coroutine functions here, for
plain ones in ``blocking/exclusive.py``; what both check stands here.

Theory. A call is a block under a lock and nothing else: it waits, runs, releases, and what goes wrong is what would go
wrong with the block. Nothing is kept between calls, and the coordinator is needed when a call begins, not when the
function is decorated: modules are imported before anything is open. What only makes a generator, or a coroutine, has
not run when it returns, and the lock would be free by then; so it is refused when it is decorated, and a coroutine that
a plain function returns (another decorator hides what it wraps) when it is called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Literal, ParamSpec, TypeVar, cast

from .errors import ConfigurationError, given
from .keys import KeySpace
from .locks import AsyncLock

__all__ = ["IfHeld", "KeyOf", "check_function", "exclusive", "has_run", "key_of"]

P = ParamSpec("P")
R = TypeVar("R")

IfHeld = Literal["wait", "skip"]
KeyOf = int | str | Callable[..., int | str]


def exclusive(
    make: Callable[[int | str], AsyncLock], find: Callable[..., int | str], if_held: IfHeld
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | None]]]:
    """The decorator. ``make`` makes a lock, ``find`` the key of a call."""

    def decorate(fn: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R | None]]:
        check_function(fn, coroutine=True)

        @functools.wraps(fn)
        async def alone(*args: P.args, **kwargs: P.kwargs) -> R | None:
            lock = make(find(*args, **kwargs))
            if if_held == "wait":
                async with lock:
                    return await fn(*args, **kwargs)
            hold = await lock.try_acquire()
            if hold is None:
                return None
            async with hold:
                return await fn(*args, **kwargs)

        return alone

    return decorate


def key_of(keys: KeySpace, key: Any, timeout: float | None, if_held: object) -> Callable[..., int | str]:
    """What finds the key of a call. Raises ``KeyInvalid`` for what can be no key, and ``ConfigurationError``."""
    if if_held not in ("wait", "skip"):
        raise ConfigurationError(f"if_held must be 'wait' or 'skip', not {given(if_held)}")
    if if_held == "skip" and timeout is not None:
        raise ConfigurationError(
            f"if_held='skip' waits for nothing, and timeout={timeout} says for how long to wait: leave one of them out"
        )
    if callable(key):
        return cast("Callable[..., int | str]", key)
    name = keys.key(key).name
    return lambda *_, **__: name


def check_function(fn: Any, *, coroutine: bool) -> None:
    """Raise ``ConfigurationError`` for what cannot be decorated."""
    if isinstance(fn, (staticmethod, classmethod)):
        raise ConfigurationError(f"exclusive decorates a function: write @{type(fn).__name__} above it")
    if not callable(fn) or isinstance(fn, type):
        raise ConfigurationError(f"exclusive decorates a function, not {given(fn)}: write @c.exclusive('name')")
    call = fn if inspect.isroutine(fn) or isinstance(fn, functools.partial) else type(fn).__call__
    name = getattr(fn, "__qualname__", type(fn).__name__)
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise ConfigurationError(
            f"exclusive cannot decorate {name}, which makes a generator: the lock would be free before its body runs. "
            "Take the lock inside it"
        )
    if inspect.iscoroutinefunction(call) is not coroutine:
        kinds = ("plain", "Coordinator") if coroutine else ("async", "AsyncCoordinator")
        raise ConfigurationError(
            f"{name} is {'a plain' if coroutine else 'an async'} function, and this coordinator is for "
            f"{'async' if coroutine else 'plain'} ones: {kinds[0]} functions are for {kinds[1]}.exclusive"
        )


def has_run(fn: Callable[..., Any], result: R) -> R:
    """What a plain function returned. Raises ``ConfigurationError`` for a coroutine, which will not run."""
    if not inspect.iscoroutine(result):
        return result
    result.close()
    raise ConfigurationError(
        f"{getattr(fn, '__qualname__', type(fn).__name__)} returned a coroutine, which would run without the lock: "
        "decorate the async function itself, with AsyncCoordinator.exclusive"
    )
