"""What goes on while anything is listened to: the pings of all listeners of one database, and the hooks of a reconnect.

Theory. While the broker has a route, an ear of our own hears the channel of pings. Its ``ready`` and ``deaf`` tell when
listening as a whole begins and ends, because all channels are listened to in one transaction; so this is where hooks
start. Pings are sent every ``ping_interval`` seconds, so that elephantine's subscribers of the same database know that
they can hear, and it is watched whether any come (``health.py``). Missing pings alone are no proof of deafness, because
the pinger may be down: then a proof of our own decides, and only when that fails the listen link is replaced.

A hook runs in a task of its own after listening is proven. If it raises it is called again, after a pause that grows;
a reconnect that comes while it runs is told when it has ended.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ..errors import ConfigurationError, given
from ..events import HookFailed, PingFailed, PingsMissing
from ..events.stream import GOES_ON
from ..offloop import off_loop
from .broker import Broker
from .channels import PING_CHANNEL
from .health import PingWatch

__all__ = ["Home", "Hook", "PingSender", "Reconnected"]

_FIRST_PAUSE: Final = 0.5
_LAST_PAUSE: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnected:
    """Listening is proven. ``initial``: for the first time; else nothing was heard for ``deaf_for`` seconds."""

    initial: bool
    deaf_for: float | None


Hook = Callable[[Reconnected], Awaitable[object] | object]
"""Is called after listening was proven, at first and again; where state is loaded that notifications keep fresh."""


class PingSender(Protocol):
    """Sends pings on a connection of the caller's."""

    blocks: bool
    """Whether ``send`` waits for the server by itself; else what it returns is to be awaited."""

    def send(self) -> Awaitable[None] | None: ...


class Home:
    """The ear that is there whenever anything is."""

    def __init__(
        self, broker: Broker, interval: float, grace: float, pinger: PingSender | Literal["own"] | None
    ) -> None:
        self._broker = broker
        self._loop = broker.loop
        self._watch = PingWatch(interval, grace, broker.loop.time())
        self._grace = grace
        self._pinger: PingSender | Literal["own"] | None = pinger
        self._hooks: list[_Hook] = []
        self._listening = False
        self._ready: Reconnected | None = None
        self._deaf_since: float | None = None
        self._initial = True
        self._timer: asyncio.TimerHandle | None = None

    def on_reconnect(self, hook: Hook, initial: bool) -> Callable[[], None]:
        """Call ``hook`` whenever listening was proven. Returns the way to stop it."""
        if not callable(hook):
            raise ConfigurationError(f"a hook must be callable, not {given(hook)}")
        entry = _Hook(self._broker, hook, initial)
        self._hooks.append(entry)
        if self._ready is not None:
            entry.ready(Reconnected(initial=True, deaf_for=None))

        def remove() -> None:
            if entry in self._hooks:
                self._hooks.remove(entry)
                entry.stop()

        return remove

    def wanted(self, wanted: bool) -> None:
        """Something is listened to, or nothing any more."""
        if wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            self._broker.messenger.listen(PING_CHANNEL, self)
            self._schedule()
        else:
            self._broker.messenger.unlisten(PING_CHANNEL, self)
            self._ready = None
            self._deaf_since = None
            self._initial = True
            self._watch.deaf()
            if self._timer is not None:
                self._timer.cancel()

    # what the messenger tells

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self._watch.heard(self._loop.time())

    def ready(self) -> None:
        since, self._deaf_since = self._deaf_since, None
        self._ready = Reconnected(initial=self._initial, deaf_for=None if since is None else time.monotonic() - since)
        self._initial = False
        self._watch.listening(self._loop.time())
        self._schedule()
        for hook in [*self._hooks]:
            hook.ready(self._ready)

    def deaf(self, reason: str) -> None:
        self._ready = None
        self._deaf_since = time.monotonic()
        self._watch.deaf()

    def failed(self, error: Exception) -> None:
        """Whoever waits is told by its own ear."""

    # pings

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        times = [self._watch.judge_at] if self._watch.judge_at is not None else []
        if self._pinger is not None:
            times.append(self._watch.ping_at)
        self._timer = self._loop.call_at(min(times), self._due) if times else None

    def _due(self) -> None:
        now = self._loop.time()
        if self._pinger is not None and now >= self._watch.ping_at:
            self._watch.sent(now)
            self._ping(self._pinger)
        if self._watch.missing(now):
            self._broker.messenger.prove(_Proof(self._judge))
        self._schedule()

    def _ping(self, pinger: PingSender | Literal["own"]) -> None:
        if isinstance(pinger, str):
            self._broker.messenger.publish(PING_CHANNEL.encode(), b"", _Sent(self._failed_to_ping))
        else:
            _ = self._broker.task(self._ping_with(pinger), "pgconcert ping")

    async def _ping_with(self, pinger: PingSender) -> None:
        try:
            sent = await off_loop(pinger.send) if pinger.blocks else pinger.send()
            if sent is not None:
                await sent
        except Exception as error:
            self._failed_to_ping(error)

    def _failed_to_ping(self, error: Exception) -> None:
        if not self._broker.closed:
            self._broker.events.emit(PingFailed(error=str(error)))

    def _judge(self, error: Exception | None) -> None:
        if self._broker.closed or not self._listening:
            return
        self._broker.events.emit(PingsMissing(grace=self._grace, deaf=error is not None))
        if error is not None:
            self._broker.messenger.bounce(f"no ping for {self._grace:g} s, and no proof either: {error}")


class _Hook:
    """One hook, and what it has yet to be told."""

    def __init__(self, broker: Broker, hook: Hook, initial: bool) -> None:
        self._broker = broker
        self._hook = hook
        self._initial = initial
        self._pending: Reconnected | None = None
        self._stopped = False
        self._task: asyncio.Task[object] | None = None

    def ready(self, reconnected: Reconnected) -> None:
        """Listening was proven."""
        if reconnected.initial and not self._initial:
            return
        self._pending = reconnected
        if self._task is None or self._task.done():
            self._task = self._broker.task(self._run(), "pgconcert reconnect hook")

    def stop(self) -> None:
        """Call it no more."""
        self._stopped = True
        if self._task is not None and self._task is not asyncio.current_task():  # a hook may stop itself
            self._task.cancel()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        told: Reconnected | None = None
        # an eager task would run before all channels know that they are heard
        await asyncio.sleep(0)
        while not self._stopped:
            if self._pending is not None:
                told, self._pending = self._pending, None
                pause = _FIRST_PAUSE
            elif told is None:
                return
            try:
                result = self._hook(told)
                if inspect.isawaitable(result):
                    await result
                told = None
                continue
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                failure: BaseException = error
            except GOES_ON:
                raise
            except BaseException as error:
                failure = error
            name = getattr(self._hook, "__qualname__", repr(self._hook))
            self._broker.events.emit(HookFailed(hook=name, error=failure, retry_in=pause))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)


class _Sent:
    """The fate of a ping: only a failure is told."""

    __slots__ = ("_failed", "_settled")

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._settled = False

    def done(self) -> bool:
        return self._settled

    def set_result(self, result: bool, /) -> None:
        self._settled = True

    def set_exception(self, exception: Exception, /) -> None:
        self._settled = True
        self._failed(exception)


class _Proof:
    """The outcome of a proof."""

    __slots__ = ("_settled", "_told")

    def __init__(self, told: Callable[[Exception | None], None]) -> None:
        self._told = told
        self._settled = False

    def done(self) -> bool:
        return self._settled

    def set_result(self, result: float, /) -> None:
        self._settled = True
        self._told(None)

    def set_exception(self, exception: Exception, /) -> None:
        self._settled = True
        self._told(exception)
