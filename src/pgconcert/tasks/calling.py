"""How the methods of a ``TaskSource`` are called: async ones here, plain ones in a thread, one at a time.

Theory. Whether a method is plain is not always known before it is called (a wrapper may return a coroutine), so
everything that is not plainly async is called in a thread, and what it returns is awaited here if it can be. What a
plain method returns as an iterable is read in the thread too, because some do their work while they are read.

A thread cannot be cancelled. Who is cancelled while its method runs leaves at once, but the next plain method begins
only when that one has returned: so an application need not think of two of them at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..offloop import off_loop

__all__ = ["Caller"]

T = TypeVar("T")


class Caller:
    """Calls the methods of one source. All calls belong to one loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def call(
        self,
        method: Callable[..., Any],
        *arguments: Any,
        read: bool = False,
        unclaimed: Callable[[Any], object] | None = None,
    ) -> Any:
        """What the method returns; with ``read``, an iterable other than a text as a tuple. Raises what it raises.

        ``unclaimed`` gets, in a thread, what a plain method returns after its caller was cancelled; a coroutine that
        it returns is not run, for nobody is left to await it.
        """
        try:
            if inspect.iscoroutinefunction(method):
                answer = await method(*arguments)
            else:
                answer = await self._in_thread(lambda: _read(method(*arguments), read), unclaimed)
                if inspect.isawaitable(answer):
                    answer = await answer
            return _read(answer, read)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # nobody cancelled us: something that the method awaited was cancelled by others
            raise RuntimeError(f"{_name(method)} ended by a cancellation of its own") from error

    async def _in_thread(self, work: Callable[[], T], unclaimed: Callable[[T], object] | None) -> T:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        await self._turn.acquire()

        def left(answer: T) -> None:
            if inspect.iscoroutine(answer):
                answer.close()  # nobody is left to await it
            elif unclaimed is not None:
                again = unclaimed(answer)
                if inspect.iscoroutine(again):
                    again.close()

        def run() -> T:
            try:
                return context.run(work)
            except StopIteration as error:  # no future takes it
                raise RuntimeError("a method of the source raised StopIteration") from error
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits for a turn
                    loop.call_soon_threadsafe(self._turn.release)

        return await off_loop(run, left)


def _read(answer: Any, read: bool) -> Any:
    if read and isinstance(answer, Iterable) and not isinstance(answer, str) and not inspect.isawaitable(answer):
        return tuple(answer)
    return answer


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__qualname__", None) or repr(method)
