"""Wake-ups between processes: who is told that a name may have changed, and how others are told.

Wake-ups travel on one channel for each namespace, and say which name (``wake_mark``). It is listened to while somebody
waits or watches, and some seconds longer. They are a matter of speed alone: where nothing can be listened to (behind a
transaction pooler without ``direct_url``), who waits looks every ``check`` seconds.

What we change ourselves our own watchers are told here and at once. So a wake-up that we have sent says nothing new to
us; above all it must not make us ask for what we have just given back to others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, Protocol

from ..clock import Clock
from ..errors import ConfigurationError, CoordinatorClosed, GivenUp
from ..events import EventStream, WakeFailed
from ..messenger import Messenger
from ..store import Subject
from .alarm import Alarm
from .answers import Gathering, Told

__all__ = ["Wakeable", "Wakes", "wake_channel", "wake_mark"]

_LINGER: Final = 10.0
_COALESCED: Final = 0.02
_WATCHED: Final = frozenset(("election", "member", "group"))


class Wakeable(Protocol):
    """Whoever waits for a name."""

    def wake(self) -> None: ...


class Wakes:
    """The ear of one engine, and its voice. ``woken`` gets the mark of every wake-up that others have sent."""

    def __init__(
        self,
        messenger: Messenger | None,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        namespace: str,
        woken: Callable[[bytes], None],
    ) -> None:
        self._messenger = messenger
        self._loop = loop
        self._clock = clock
        self._events = events
        self._namespace = namespace
        self._channel = wake_channel(namespace)
        self._woken = woken
        self._waiting: set[Wakeable] = set()
        self._watches: dict[bytes, dict[object, Callable[[], None]]] = {}
        self._listening = False
        self._deaf_for_ever = False
        self._closed = False
        self._said: dict[tuple[bytes, bytes], bool] = {}
        """What was said of queues a moment ago, and whether there was more since."""
        self.sent = Gathering()
        """The wake-ups that are on their way."""
        self._linger = Alarm(clock, loop)

    def listen(self, who: Wakeable) -> None:
        """Somebody waits."""
        if who not in self._waiting:
            self._waiting.add(who)
            self._listen()

    def unlisten(self, who: Wakeable) -> None:
        """It waits no more."""
        if who in self._waiting:
            self._waiting.discard(who)
            self._rest()

    def watch(self, subject: Subject, told: Callable[[], None]) -> object:
        """Call ``told`` whenever something about a subject may have changed; of a group, about any member."""
        handle = wake_mark(subject), object()
        self._watches.setdefault(handle[0], {})[handle] = told
        self._listen()
        return handle

    def unwatch(self, handle: Any) -> None:
        """Call it no more."""
        watches = self._watches.get(handle[0])
        if watches is not None and watches.pop(handle, None) is not None:
            if not watches:
                del self._watches[handle[0]]
            self._rest()

    def changed(self, subject: Subject, *, wake: bool = False) -> None:
        """We have changed it: tell those who watch it, and with ``wake`` those who wait for it elsewhere."""
        mark = wake_mark(subject)
        ours = subject.namespace == self._namespace
        if ours:
            self._tell(mark)
        if self._messenger is None or not (wake or subject.kind in _WATCHED):
            return
        channel = (self._channel if ours else wake_channel(subject.namespace)).encode()
        if subject.kind == "queue":
            self._say_now_and_then(channel, mark)
        else:
            self._say(channel, mark)

    def _say_now_and_then(self, channel: bytes, mark: bytes) -> None:
        """At once, and then not again for a moment: who is woken takes all that there is."""
        if (channel, mark) in self._said:
            self._said[channel, mark] = True
            return

        def again() -> None:
            if self._said.pop((channel, mark)):
                self._say_now_and_then(channel, mark)

        self._said[channel, mark] = False
        self._loop.call_later(_COALESCED * random.uniform(1.0, 1.5), again)
        self._say(channel, mark)

    def _say(self, channel: bytes, mark: bytes) -> None:
        messenger = self._messenger
        if messenger is None:
            return

        def failed(error: Exception) -> None:
            self._events.emit(WakeFailed(keys=1, error=str(error)))
            one.set_exception(error)

        one = self.sent.one()
        messenger.publish(channel, mark, Told(one.set_result, failed))

    def close(self) -> None:
        """Listen no more, for good. What was kept back for a moment is said now."""
        for (channel, mark), more in [*self._said.items()]:
            if more:
                self._said[channel, mark] = False
                self._say(channel, mark)
        self._closed = True
        self._linger.stop()
        self._stop()

    def end(self) -> None:
        """Say nothing more. Whoever watches shall look, and learn what has become of us; afterwards nobody watches."""
        self._messenger = None
        self._waiting.clear()
        watches, self._watches = self._watches, {}
        for told in [told for those in watches.values() for told in those.values()]:
            told()

    # the ear

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """A wake-up."""
        if not own:
            self._tell(payload)
            self._woken(payload)

    def ready(self) -> None:
        """From now on wake-ups are heard; what came before may have been missed."""
        for who in [*self._waiting]:
            who.wake()
        for mark in [*self._watches]:
            self._tell(mark)

    def deaf(self, reason: str) -> None:
        """Wake-ups are missed; who waits looks by itself."""

    def failed(self, error: Exception) -> None:
        """An attempt to listen failed."""
        if isinstance(error, ConfigurationError | GivenUp | CoordinatorClosed):
            self._deaf_for_ever = True
            self._stop()

    def _tell(self, mark: bytes) -> None:
        for told in [*self._watches.get(mark, {}).values()]:
            told()

    def _listen(self) -> None:
        self._linger.stop()
        if self._messenger is not None and not (self._listening or self._deaf_for_ever or self._closed):
            self._listening = True
            self._messenger.listen(self._channel, self)

    def _rest(self) -> None:
        if self._listening and not self._waiting and not self._watches:
            self._linger.set(self._clock.now() + _LINGER, self._stop)

    def _stop(self) -> None:
        if self._listening and self._messenger is not None:
            self._listening = False
            self._messenger.unlisten(self._channel, self)


def wake_channel(namespace: str) -> str:
    """Where the waiters of a namespace are woken. Version 1."""
    return f"pgconcert:session1:{blake2b(namespace.encode(), digest_size=4).hexdigest()}"


def wake_mark(subject: Subject) -> bytes:
    """What a wake-up says of a subject, in its namespace; all members of a group have one."""
    kind = "group" if subject.kind == "member" else subject.kind
    return blake2b(f"{kind}\0{subject.name}".encode(), digest_size=8).hexdigest().encode()
