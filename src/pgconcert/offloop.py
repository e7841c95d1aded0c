"""One function: run something that blocks without holding up the event loop or the end of the program.

It is not the loop's default executor, because that one may be full of the application's own work just when a reconnect
needs a name look-up, and because leaving the loop waits for its threads: a resolver that hangs would hang the exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["off_loop"]

T = TypeVar("T")


async def off_loop(work: Callable[[], T], unclaimed: Callable[[T], object] | None = None) -> T:
    """Run ``work`` in a daemon thread of its own. Cancelled, we leave and the thread ends when it ends.

    ``unclaimed`` gets a result that nobody is left to take, in a thread as well: to give it back.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            if error is None and unclaimed is not None:
                threading.Thread(target=unclaimed, args=(result,), name="pgconcert-unclaimed", daemon=True).start()
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the loop has ended; nobody waits any more
            if failure is None and unclaimed is not None:
                unclaimed(result)  # type: ignore[arg-type]

    try:
        threading.Thread(target=run, name="pgconcert-off-loop", daemon=True).start()
    except RuntimeError:
        # from Python 3.12 on no thread begins once the main thread has ended, while others may still need a link
        run()
    try:
        return await answer
    except asyncio.CancelledError:
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            settle(answer.result(), None)  # it came in the instant in which we leave
        raise
