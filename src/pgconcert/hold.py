"""What you have when you hold something: ``Grant``, the engine's side of it, and ``AsyncHold``, the caller's.

States of a grant: *held*, then once and for ever *over* (released) or *lost* (``reason`` is set). The engine moves it
to lost, the caller to released; whoever comes second changes nothing. The engine keeps grants and never holds, so a
hold that its owner drops is collected, and its finaliser hands in the release.

The scope (``async with hold``) cancels the body when the hold is lost:

* Loss sets the flag at once and schedules the cancel with ``call_soon_threadsafe``: never a synchronous
  ``task.cancel()``, which on Python 3.11 and 3.12 would leave a pending cancel behind that hits code after the block.
* The entering task is cancelled once, while it waits or is about to go on: so the body gets the cancel before the exit
  runs, and the exit takes it back with ``uncancel()``.
* A cancel from somebody else goes on unchanged. If the body ended, swallowed our cancel or was cancelled by us,
  ``HoldLost`` is raised; any other error goes on with a note.
* A body that does not await cannot be interrupted; tasks and threads that it started are not reached. An ``async with``
  around a ``yield`` should use ``on_lost="report"``: no cancel, the rest is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NoReturn, Protocol, Self, SupportsIndex

from .errors import HoldLost, LockLost, shown

__all__ = ["AsyncHold", "Grant", "Held", "Name", "OnLost", "Waiter"]

OnLost = Literal["cancel", "report"]
"""What a scope does when its hold is lost: cancel the body, or only report it (flag, ``wait_lost``, error at exit)."""


class Waiter(Protocol):
    """Whoever waits for one answer of the engine; ``asyncio.Future`` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: bool, /) -> None: ...
    def set_exception(self, exception: Exception, /) -> None: ...


Name = int | str | tuple[int | str, ...]


class Grant:
    """The engine's side of a hold. Only the engine calls ``lose``."""

    __slots__ = ("name", "over", "permit", "reason", "scope", "shared", "watchers")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.shared = False
        self.permit: int | None = None
        self.reason: str | None = None
        self.over = False
        self.scope: weakref.ref[AsyncHold] | None = None
        """The hold whose body is to be cancelled on loss; weak, because engines keep grants and never holds."""
        self.watchers: list[Callable[[], None]] | None = None

    @property
    def remains(self) -> bool:
        """Whether, although it is lost, there is something left to be given back."""
        return False

    def lose(self, reason: str, noted: Callable[[], None] | None = None) -> bool:
        """Mark as lost and tell the watchers. False if it was lost or released before.

        ``noted`` is called between: what it records is there before anybody can act on the loss.
        """
        if self.over or self.reason is not None:
            return False
        self.reason = reason
        self._tell_loss(noted)
        return True

    def _tell_loss(self, noted: Callable[[], None] | None) -> None:
        if noted is not None:
            noted()
        for watcher in list(self.watchers or ()):
            watcher()
        scope = self.scope() if self.scope is not None else None
        if scope is not None:
            scope.tell_loss()

    def forked(self) -> None:
        """In a forked child: it is lost, and so is a set that it belongs to. Nobody is told, for the loop is the
        parent's."""
        self.reason = "forked"
        for watcher in self.watchers or ():
            group = getattr(watcher, "__self__", None)
            if isinstance(group, Grant):
                group.forked()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` when lost (at once if it is), on the engine's thread. It may be called twice."""
        if self.watchers is None:
            self.watchers = []
        self.watchers.append(watcher)
        if self.reason is not None:
            watcher()

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Stop calling ``watcher``."""
        if self.watchers is not None:
            self.watchers.remove(watcher)


class Held:
    """What every hold tells, with asyncio and in the blocking twin."""

    __slots__ = ("__weakref__", "_dropped", "_grant", "_release")

    _lost_error: type[HoldLost] = LockLost

    def __init__(
        self,
        grant: Grant,
        release: Callable[[Grant, Waiter | None], object],
        dropped: Callable[[Grant], object],
    ) -> None:
        """``dropped`` must be callable from any thread."""
        self._grant = grant
        self._release = release
        self._dropped = dropped

    @property
    def key(self) -> Name:
        """The key, as the caller wrote it; of several at once, all of them in the order in which they were taken."""
        return self._grant.name

    @property
    def shared(self) -> bool:
        """Whether it is held together with other readers."""
        return self._grant.shared

    @property
    def permit(self) -> int | None:
        """Which permit of a semaphore this is, from 0; ``None`` of a lock. No two holders have the same at one time."""
        return self._grant.permit

    @property
    def lost(self) -> bool:
        """Whether this hold was lost. It never becomes false again; nothing is re-acquired behind your back."""
        return self._grant.reason is not None

    @property
    def reason(self) -> str | None:
        """Why it was lost; ``None`` while it is not."""
        return self._grant.reason

    @property
    def released(self) -> bool:
        """Whether this hold was given back, or is being given back."""
        return self._grant.over

    def check(self) -> None:
        """Raise ``HoldLost`` if it was lost. Sends nothing: call it as often as you like, before any side effect."""
        if self._grant.reason is not None:
            raise self._lost_error(self._grant.name, self._grant.reason)

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError("a hold cannot be copied or pickled: only one object can give it back")

    @property
    def _to_be_given_back(self) -> bool:
        grant = self._grant
        return not grant.over and (grant.reason is None or grant.remains)

    def __repr__(self) -> str:
        state = f"lost: {self.reason}" if self.lost else "released" if self._grant.over else "held"
        return f"<{type(self).__name__} {shown(self.key)} {state}>"

    def __del__(self) -> None:
        if not self._to_be_given_back:
            return
        grant = self._grant
        grant.over = True
        self._dropped(grant)
        warnings.warn(f"the hold of {shown(grant.name)} was dropped without release", ResourceWarning, stacklevel=1)


class AsyncHold(Held):
    """What you hold. Only this object releases it.

    Use it as ``async with hold:`` to have the body cancelled on loss and the hold released at the end. A hold may be
    released from any task of its event loop. A hold that is dropped unreleased is released with a ``ResourceWarning``.
    """

    __slots__ = ("_cancelled_by_us", "_cancels_before", "_loop", "_on_lost", "_scoped", "task")

    def __init__(
        self,
        grant: Grant,
        loop: asyncio.AbstractEventLoop,
        release: Callable[[Grant, Waiter | None], None],
        dropped: Callable[[Grant], None],
        on_lost: OnLost = "cancel",
        scoped: Callable[[Grant, asyncio.Task[object], bool], None] | None = None,
    ) -> None:
        """``dropped`` must be callable from any thread; ``scoped`` learns which task enters and leaves."""
        self._scoped = scoped
        self._grant = grant
        self._release = release
        self._dropped = dropped
        self._loop = loop
        self._on_lost = on_lost
        self.task: asyncio.Task[object] | None = None
        """The task inside the scope, if any."""
        self._cancels_before = 0
        self._cancelled_by_us = False

    async def wait_lost(self) -> str:
        """Wait until it is lost and return the reason. Waits for ever on a hold that is released first."""
        self._here()
        if self._grant.reason is not None:
            return self._grant.reason
        waiter: asyncio.Future[None] = self._loop.create_future()

        def settle() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def tell() -> None:
            _post(self._loop, settle)

        self._grant.watch(tell)
        try:
            await waiter
        finally:
            self._grant.unwatch(tell)
        assert self._grant.reason is not None
        return self._grant.reason

    async def release(self) -> None:
        """Give it back; when this returns, the server has freed it.

        Releasing again, or after a loss, does nothing; ``HoldLost`` if the server says that it was not ours. If the
        caller is cancelled meanwhile, the release goes on.
        """
        self._here()
        if not self._to_be_given_back:
            return
        grant = self._grant
        grant.over = True
        held = grant.reason is None
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._release(grant, waiter)
        await waiter
        if held:
            self.check()  # the server may say that it was not ours any more

    def _here(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"the hold of {shown(self.key)} belongs to another event loop")

    async def __aenter__(self) -> Self:
        self._here()
        self.check()
        if self.task is not None:
            raise RuntimeError(f"the hold of {shown(self.key)} is entered already")
        if self._grant.over:
            raise RuntimeError(f"the hold of {shown(self.key)} was released already")
        task = asyncio.current_task(self._loop)
        assert task is not None
        self.enter(task)
        return self

    def enter(self, task: asyncio.Task[object]) -> None:
        """Begin the scope in ``task``, the running one. For our own context managers; people write ``async with``."""
        self.task = task
        if self._scoped is not None:
            self._scoped(self._grant, task, True)
        if self._on_lost == "cancel":
            self._cancels_before = task.cancelling()
            self._grant.scope = weakref.ref(self)
            if self._grant.reason is not None:
                self.tell_loss()

    def tell_loss(self) -> None:
        """It was lost: cancel the body, from the loop. For engines; callable from any thread."""
        _post(self._loop, self._cancel_body)

    def _cancel_body(self) -> None:
        if self.task is not None and not self._cancelled_by_us and not self.task.done():
            self._cancelled_by_us = True
            self.task.cancel(f"the hold of {shown(self.key)} was lost")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self.task = self.task, None
        grant = self._grant
        grant.scope = None
        if self._scoped is not None and task is not None:
            self._scoped(grant, task, False)
        if not grant.over and (grant.reason is None or grant.remains):
            grant.over = True
            waiter: asyncio.Future[bool] = self._loop.create_future()
            self._release(grant, waiter)
            await waiter
            if grant.reason is None:
                return
        if grant.reason is None:
            return
        cancelled = isinstance(error, asyncio.CancelledError)
        theirs = cancelled
        if self._cancelled_by_us and task is not None:
            others = task.uncancel() > self._cancels_before
            if task is asyncio.current_task(self._loop):
                theirs = cancelled and others
        if theirs:
            return
        lost = self._lost_error(grant.name, grant.reason)
        if error is None or cancelled:
            raise lost from error
        error.add_note(f"while this happened, the hold was lost: {lost}")

    def __del__(self) -> None:
        if self.task is not None and self._scoped is not None:
            self._scoped(self._grant, self.task, False)
        if not self._grant.over:
            super().__del__()


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Run ``call`` on the loop; if the loop has ended, nobody is left who could be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
