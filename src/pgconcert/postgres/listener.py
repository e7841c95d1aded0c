"""The one LISTEN link of a process: what is wanted, what is heard, and the proof that it is.

Theory. Registrations say which channels are *wanted*. The link has a set of channels that are *heard*. Whenever the two
differ and nothing is under way, all LISTENs and UNLISTENs leave as one transaction; when its answer is there, the
channels are heard. A fresh link is trusted only after a notification to itself has come back, so that a proxy which
swallows notifications is found out. A channel without registrations is still heard for ten seconds (it is often wanted
again at once). When nothing is wanted and nothing lingers, the link is closed.

A registration is *ready* while its channel is heard on a proven link. ``on_ready`` is called each time it becomes so:
after a reconnect as well, which is when something may have been missed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from ..errors import PgconcertError, StatementFailed
from .keeper import Context, Keeper
from .link import Link, Notification, Rows, Statement
from .probe import Proof
from .statements import NOTIFY

__all__ = ["Listener", "Registration"]

_LINGER: Final = 10.0
_QUEUE_FULL: Final = "54000"


class Registration:
    """Somebody wants a channel."""

    __slots__ = ("channel", "deliver", "on_ready", "ready")

    def __init__(self, channel: bytes, deliver: Callable[[Notification], None], on_ready: Callable[[], None]) -> None:
        self.channel = channel
        self.deliver = deliver
        self.on_ready = on_ready
        self.ready = False


class Listener:
    """Owns the LISTEN link."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = context.loop
        self._wanted: dict[bytes, list[Registration]] = {}
        self._lingering: dict[bytes, asyncio.TimerHandle] = {}
        self._heard: set[bytes] = set()
        self._under_way = False
        self._proven = False
        self._proof_channel = b""
        self._proof_limit: asyncio.TimerHandle | None = None
        self.keeper = Keeper(context, "listen", self)

    def add(self, channel: str, deliver: Callable[[Notification], None], on_ready: Callable[[], None]) -> Registration:
        """Want a channel. ``on_ready`` is called when it is heard; at once, if it is heard already."""
        registration = Registration(channel.encode(), deliver, on_ready)
        self._wanted.setdefault(registration.channel, []).append(registration)
        lingering = self._lingering.pop(registration.channel, None)
        if lingering is not None:
            lingering.cancel()
        self.keeper.want()
        if self._proven and registration.channel in self._heard:
            registration.ready = True
            on_ready()
        else:
            self._reconcile()
        return registration

    def remove(self, registration: Registration) -> None:
        """Want a channel no longer."""
        registrations = self._wanted[registration.channel]
        registrations.remove(registration)
        registration.ready = False
        if not registrations:
            del self._wanted[registration.channel]
            self._lingering[registration.channel] = self._loop.call_later(_LINGER, self._forget, registration.channel)

    async def close(self) -> None:
        """Hear nothing more."""
        self._stop_timers()
        await self.keeper.close()

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """A fresh link: hear everything that is wanted, in one transaction, and prove that it works."""
        self._heard = set()
        self._proven = False
        self._under_way = False
        nonce = secrets.token_hex(8)
        self._proof_channel = f"pgconcert:proof:{nonce}".encode()
        self._proof_limit = self._loop.call_later(
            self._context.network_timeout, link.close, "a notification to ourselves did not come back"
        )
        self._reconcile()

    def link_down(self, reason: str) -> None:
        """Nothing is heard now."""
        if self._proof_limit is not None:
            self._proof_limit.cancel()
        self._proven = False
        for registrations in self._wanted.values():
            for registration in registrations:
                registration.ready = False

    def connect_failed(self, error: PgconcertError) -> None:
        """The keeper tries again; who waits for a channel has a limit of its own."""

    def notified(self, notification: Notification) -> None:
        """Hand a notification to whoever wants its channel."""
        if notification.channel == self._proof_channel:
            self._prove()
            return
        for registration in tuple(self._wanted.get(notification.channel, ())):
            registration.deliver(notification)

    # the work

    def _reconcile(self) -> None:
        link = self.keeper.link
        if link is None or self._under_way:
            return
        wanted = self._wanted.keys() | self._lingering.keys()
        if not self._proven:
            wanted = wanted | {self._proof_channel}
        missing = sorted(wanted - self._heard)
        surplus = sorted(self._heard - wanted)
        if not missing and not surplus:
            return
        self._under_way = True

        def answered(rows: Rows, error: Exception | None) -> None:
            self._under_way = False
            if link.dead is not None:
                return
            if error is not None:
                link.close(f"LISTEN failed: {error}")
                return
            self._heard.update(missing)
            self._heard.difference_update(surplus)
            if self._proof_channel in missing:
                link.send(NOTIFY, (self._proof_channel, b""), self._proof_sent)
            else:
                self._tell_ready()
            self._reconcile()

        link.send_together(
            [(_command("listen", channel), ()) for channel in missing]
            + [(_command("unlisten", channel), ()) for channel in surplus],
            answered,
        )

    def _proof_sent(self, rows: Rows, error: Exception | None) -> None:
        link = self.keeper.link
        if error is None or link is None or link.dead is not None:
            return
        if isinstance(error, StatementFailed) and error.sqlstate == _QUEUE_FULL:
            # nobody can notify now, so nothing can be missed; LISTEN itself was committed
            self._prove()
        else:
            link.close(f"a notification to ourselves failed: {error}")

    def _prove(self) -> None:
        if self._proven:
            return
        self._proven = True
        if self._proof_limit is not None:
            self._proof_limit.cancel()
        self._tell_ready()
        self._reconcile()

    def _tell_ready(self) -> None:
        if not self._proven:
            return
        for channel in [*self._wanted]:
            if channel in self._heard:
                for registration in tuple(self._wanted.get(channel, ())):
                    if not registration.ready:
                        registration.ready = True
                        registration.on_ready()

    def _forget(self, channel: bytes) -> None:
        self._lingering.pop(channel, None)
        if self._wanted or self._lingering:
            self._reconcile()
        else:
            self._heard = set()
            self.keeper.unwant()

    def _stop_timers(self) -> None:
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        if self._proof_limit is not None:
            self._proof_limit.cancel()


def _command(verb: str, channel: bytes) -> Statement:
    return Statement(b"", b'%s "%s"' % (verb.encode(), channel.replace(b'"', b'""')))
