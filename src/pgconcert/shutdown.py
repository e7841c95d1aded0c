"""``graceful_shutdown``: signals that end a program, turned into an orderly end. It knows nothing of coordinators.

Nothing is installed unless a program asks for it. States of a ``Shutdown``, and who moves them::

    (made) --with, install()--> watching --signal, stop()--> stopping --end of the block, remove()--> (removed)

The first signal begins the end: the body is interrupted, and what was given is closed when it has left. At that
instant the default actions take the place of our handlers, so the second signal is the kernel's business and works
however busy or stuck this process is. So does the limit: a thread that waits for it in the kernel raises the signal
again, one second after ``timeout``. Only process number 1 has no default actions, and is ended by ``_exit`` instead.

Handlers run in the main thread between any two steps of it, so they take no lock: they set a flag, post to the event
loop, and start the thread that watches the time.

Nested uses form a chain, found in the handlers that were there before: the first signal begins the end of all of it.
A handler that is called where it does not belong (removed in another order than installed, or inherited by a forked
child) puts back what was there before it and raises the signal again.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self, cast

from .errors import ConfigurationError, given

__all__ = ["SIGNALS", "Closable", "Shutdown", "graceful_shutdown"]

_GRACE: Final = 1.0
"""Seconds after ``timeout`` at which a process that has not come to its end is ended."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)
"""Those that end a program by default."""

Handlers = dict[signal.Signals, Any]


class Closable(Protocol):
    """What can be closed; ``close`` may be a coroutine function."""

    def close(self) -> object: ...


def graceful_shutdown(
    *closing: Closable | Callable[[], object],
    timeout: float = 10.0,
    cancel: bool = True,
    signals: Iterable[int] = SIGNALS,
) -> Shutdown:
    """Let signals end a program in good order. To be used as ``async with``, as ``with``, or by ``install()``.

    The first signal interrupts the body of the block; at its end, for whatever reason, everything in ``closing`` is
    closed; then the program goes on behind the block, as soon as that is done, and says by its own exit status how it
    went. The second signal quits at once, by the default action of the signal, which the exit status shows.

    With ``async with`` the task that entered the block is cancelled once, and the block takes that back. With ``with``,
    in the main thread, ``SystemExit(0)`` is raised there, and the block takes it.

    :param closing: in the order of closing: objects with ``close()``, or callables; in ``async with`` either may be
        asynchronous. All are called even if some fail; then the first error is raised, the others as its notes.
    :param timeout: seconds from the first signal to the end of the block. An asynchronous closing that takes longer is
        cancelled, and ``TimeoutError`` raised. A body that does not leave, or a closing that blocks, is ended one
        second later together with the process, as by a second signal.
    :param cancel: False lets the body run on; it asks ``stopping``, or waits with ``wait``.
    :param signals: which ones. None at all is right outside of the main thread, the only one where Python runs
        handlers; ``stop()`` works everywhere. A signal that is ignored (``nohup``) stays ignored.

    ``SIGABRT`` from outside is handled like the others. ``abort()`` in the process itself, of a C library that has
    found its memory damaged, ends it at once as ever: no handler written in Python runs for that. The server frees the
    locks all the same. ``faulthandler`` does not report ``SIGABRT`` any more.
    """
    return Shutdown(closing, timeout, cancel, signals)


class Shutdown:
    """Made by ``graceful_shutdown``. Used once."""

    def __init__(self, closing: Iterable[object], timeout: float, cancel: bool, signals: Iterable[int]) -> None:
        seconds: object = timeout
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise ConfigurationError(f"timeout must be a number of seconds >= 0, not {given(seconds)}")
        self._closing = [(thing, _way_to_close(thing)) for thing in closing]
        self._timeout = float(timeout)
        self._cancel = cancel
        self._signals = _checked(signals)
        self._before: Handlers = {}
        self._outer: Shutdown | None = None
        self._pid = 0
        self._used = False
        self._stopping = False
        self._cause: signal.Signals | None = None
        self._signalled: float | None = None
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = asyncio.Event()
        self._asynchronous = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._cancels_before = 0
        self._in_block = False

    def __repr__(self) -> str:
        why = f" ({self._cause.name})" if self._cause is not None else ""
        return f"<Shutdown {'stopping' + why if self._stopping else 'watching' if self._used else 'new'}>"

    @property
    def stopping(self) -> bool:
        """Whether the end has begun, by a signal or by ``stop``. Safe from any thread."""
        return self._stopping

    @property
    def cause(self) -> signal.Signals | None:
        """The first signal that came; ``None`` before."""
        return self._cause

    def stop(self) -> None:
        """Begin the end by hand, from any thread. Idempotent; a signal afterwards counts as the first.

        The body of an ``async with`` is cancelled as by a signal. That of a ``with`` is not interrupted: it asks
        ``stopping``.
        """
        self._stopping = True
        if self._loop is None:
            self._begun.set()
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and whoever waited there too
            self._loop.call_soon_threadsafe(self._begin)

    async def wait(self) -> None:
        """Wait until the end has begun."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if not self.stopping:
            await self._begun.wait()

    def install(self) -> Callable[[], None]:
        """Watch for the signals without a block, and return ``remove``. Idempotent.

        The first signal sets ``stopping`` and ends ``wait``; nothing is interrupted or closed, and from then on
        ``timeout`` runs. Raises ``ConfigurationError`` outside of the main thread.
        """
        if not self._used:
            self._used = True
            with contextlib.suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
            self._install()
        return self.remove

    def remove(self) -> None:
        """Put back the handlers that were there before. Idempotent; to be called in the main thread."""
        if self._over.locked():
            self._over.release()
        before, self._before = self._before, {}
        for number, handler in before.items():
            current = signal.getsignal(number)
            # whoever came later finds us removed when it puts us back
            if current == self._come or (self._cause is not None and current == self._second()):
                signal.signal(number, handler)
            else:
                self._before[number] = handler
        self._pid = 0

    async def __aenter__(self) -> Self:
        self._enter()
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._asynchronous = True
        self._task = task
        self._cancels_before = task.cancelling()
        self._install()
        if self._stopping:
            self.stop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        assert task is not None
        ours = False
        if self._cancelled:
            others = task.uncancel() > self._cancels_before
            ours = isinstance(error, asyncio.CancelledError) and not others
        closing = asyncio.ensure_future(self._close_all((self._signalled or time.monotonic()) + self._timeout))
        impatient: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError as cancel:
                impatient = cancel  # it goes on when everything is closed, which has a limit
        self.remove()
        _raise(closing.result(), impatient or (None if ours else error))
        if impatient is not None:
            raise impatient
        return ours

    def __enter__(self) -> Self:
        self._enter()
        for thing, close in self._closing:
            if inspect.iscoroutinefunction(close):
                raise _asynchronous(thing)
        try:
            self._install()
            self._in_block = True
            if self._cause is not None and self._cancel:  # it came on the way in
                raise _Interrupted(0)
        except BaseException as error:
            failures: list[BaseException | None] = []
            if isinstance(error, _Interrupted):
                failures += [_close(thing, close) for thing, close in self._closing]
            self.remove()
            _raise(failures, error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        failures: list[BaseException | None] = []
        try:
            self._in_block = False
        finally:  # the signal may come just before
            try:
                failures += [_close(thing, close) for thing, close in self._closing]
            finally:
                self.remove()
        ours = (
            isinstance(error, _Interrupted)
            and self._cause is not None
            and not any(one._interruptible() for one in self._chain())
        )
        _raise(failures, None if ours else error)
        return ours

    def _enter(self) -> None:
        if self._used:
            raise RuntimeError("this graceful_shutdown was used already: make another")
        self._used = True

    def _install(self) -> None:
        if not self._signals:
            return
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError(
                f"Python runs the handlers of signals in the main thread only, and this is "
                f"{threading.current_thread().name}: use graceful_shutdown there, or give signals=() here and call "
                "stop() yourself"
            )
        self._pid = os.getpid()
        for number in self._signals:
            before = signal.getsignal(number)
            if before is signal.SIG_IGN:
                continue
            # None: a handler that was not made by Python, which Python cannot put back
            self._before[number] = signal.SIG_DFL if before is None else before
            outer = getattr(before, "__self__", None)
            if isinstance(outer, Shutdown):
                self._outer = outer
            signal.signal(number, self._come)

    def _come(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        which = signal.Signals(number)
        if self._pid != os.getpid():
            signal.signal(which, self._before.get(which, signal.SIG_DFL))
            signal.raise_signal(which)
            return
        if self._cause is not None:  # an inner one was told first, and has put us back
            _quit(which)
        for installed in self._before:
            signal.signal(installed, self._second())
        chain = [*self._chain()]
        for one in chain:
            one._cause = which
            one._signalled = time.monotonic()
            one.stop()
            with contextlib.suppress(RuntimeError):  # no thread is to be had; the second signal still works
                _thread.start_new_thread(one._watch, (which,))
        # a task is cancelled instead, and an exception would go through its event loop
        if any(one._interruptible() for one in chain) and not any(one._asynchronous for one in chain):
            raise _Interrupted(0)

    def _chain(self) -> Iterator[Shutdown]:
        """This one, and those around it, as far as they are installed."""
        one: Shutdown | None = self
        while one is not None:
            if one._pid:
                yield one
            one = one._outer

    def _second(self) -> Any:
        return signal.SIG_DFL if self._pid != 1 else _quit

    def _interruptible(self) -> bool:
        return self._in_block and self._cancel and self._cause is not None

    def _watch(self, number: signal.Signals) -> None:
        if not self._over.acquire(timeout=min(self._timeout + _GRACE, threading.TIMEOUT_MAX)):
            _quit(number)

    def _begin(self) -> None:
        """On the event loop."""
        self._begun.set()
        if self._cancel and self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel("graceful_shutdown: the program is to end")

    async def _close_all(self, end: float) -> list[BaseException | None]:
        outcomes: list[BaseException | None] = []
        for thing, close in self._closing:
            try:
                closing = close()
                if not isinstance(closing, Awaitable):
                    continue
                work = asyncio.ensure_future(cast("Awaitable[object]", closing))
            except Exception as failure:
                outcomes.append(failure)
                continue
            await asyncio.wait([work], timeout=max(end - time.monotonic(), 0))
            if work.done():
                outcomes.append(None if work.cancelled() else work.exception())
            else:
                work.cancel()
                outcomes.append(TimeoutError(f"closing {given(thing)} took longer than {self._timeout:g} s"))
        return outcomes


class _Interrupted(SystemExit):
    """Raised by the handler in the body of a ``with``."""


def _quit(number: int, frame: FrameType | None = None) -> None:
    """End the process by the default action of the signal. In any thread; that action is in place."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)


def _close(thing: object, close: Callable[[], object]) -> BaseException | None:
    try:
        closing = close()
    except Exception as failure:
        return failure
    if inspect.iscoroutine(closing):
        closing.close()
        return _asynchronous(thing)
    return None


def _asynchronous(thing: object) -> ConfigurationError:
    return ConfigurationError(f"{given(thing)} is closed asynchronously: use 'async with graceful_shutdown(...)'")


def _way_to_close(thing: object) -> Callable[[], object]:
    close = getattr(thing, "close", None)
    if callable(close) and not isinstance(thing, type):
        return cast("Callable[[], object]", close)
    if callable(thing):
        return cast("Callable[[], object]", thing)
    raise ConfigurationError(f"graceful_shutdown closes objects with close(), and callables, not {given(thing)}")


def _checked(signals: Iterable[int]) -> tuple[signal.Signals, ...]:
    try:
        numbers = tuple(signal.Signals(number) for number in signals)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"signals must be numbers of signals, such as signal.SIGTERM: {error}") from None
    if signal.SIGKILL in numbers or signal.SIGSTOP in numbers:
        raise ConfigurationError("signals must not name SIGKILL or SIGSTOP: no process can handle them")
    return numbers


def _raise(outcomes: Iterable[BaseException | None], body: BaseException | None) -> None:
    """Raise what went wrong while closing; an error of the body goes on, with notes."""
    failures = [outcome for outcome in outcomes if outcome is not None]
    first = failures.pop(0) if failures and body is None else None
    for failure in failures:
        (first or body or failure).add_note(f"another failure, in closing: {type(failure).__name__}: {failure}")
    if first is not None:
        raise first
