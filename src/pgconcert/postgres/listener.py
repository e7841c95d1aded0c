"""The one LISTEN link of a process: what is wanted, what is heard, and the proof that it is.

Theory. Ears say which channels are *wanted*. The link has a set of channels that are *heard*. Whenever the two differ
and nothing is under way, all LISTENs and UNLISTENs leave as one transaction; when its answer is there, the channels are
heard. A channel counts as heard no more from the instant its UNLISTEN leaves. A channel without ears is still listened
to for ten seconds (it is often wanted again at once). When nothing is wanted and nothing lingers, the link is closed.

A fresh link is trusted only after a notification to itself has come back (``echoes.py``), so that a proxy which
swallows notifications is found out; from then on ``pulse.py`` says when to try again. If the server lets nobody notify
now (its queue is full, or its lock is held), nothing can be missed either: the link is trusted, and the pulse tries.

An ear is *hearing* while its channel is heard on a trusted link; it is told each time that begins and ends, and what
comes before, while the proof is under way, is kept from it: it lies in the gap of which ``ready`` is the end. A
notification costs one call of an ear: which ears a channel has is worked out once, and again after a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from ..errors import ConfigurationError, PgconcertError, StatementFailed, Unavailable
from ..events import ListenerBounced, ListenerDeaf, ListenerReady
from ..messenger import Answer, Ear, Hearing
from .echoes import Echoes, nobody_can_notify
from .keeper import Context, Keeper
from .link import Link, Rows, Statement
from .probe import Proof
from .pulse import Heartbeat

__all__ = ["Listener"]

_LINGER: Final = 10.0
_NAME_AT_FAULT: Final = "22"  # the class of SQLSTATEs that says so


class _Seat:
    """An ear at its channel. ``heard`` is that of the ear, and does nothing once the ear has left."""

    __slots__ = ("ear", "heard")

    def __init__(self, ear: Ear) -> None:
        self.ear = ear
        self.heard: Callable[[bytes, int, bool], object] = ear.heard


_Route = tuple[_Seat | Echoes | Heartbeat, ...]
"""Who hears a channel."""


class _Channel:
    """A wanted channel."""

    __slots__ = ("hearing", "seats")

    def __init__(self) -> None:
        self.seats: dict[int, _Seat] = {}
        self.hearing = False


class Listener:
    """Owns the LISTEN link."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = context.loop
        self._own = context.own.pids
        self._channels: dict[bytes, _Channel] = {}
        self._lingering: dict[bytes, asyncio.TimerHandle] = {}
        self._changed: set[bytes] = set()
        self._heard: set[bytes] = set()
        self._routes: dict[bytes, _Route] = {}
        self._unspellable: dict[bytes, ConfigurationError] = {}
        """Names that this database, by its encoding, does not have."""
        self._singly = False
        self._under_way = False
        self._trusted = False
        self._link: Link | None = None
        self._deaf_since: float | None = None
        self._connects = 0
        self._own_at: float | None = None
        self._others_at: float | None = None
        self._bouncing: asyncio.Handle | None = None
        self._echoes = Echoes(self._loop, context.network_timeout, self._deafened)
        self._heart = Heartbeat(self._loop, context.pulse_interval, context.network_timeout, self._deafened)
        self.keeper = Keeper(context, "listen", self, context.reconnect_limit)

    def listen(self, channel: str, ear: Ear) -> None:
        """Let an ear hear a channel; again changes nothing. It is told when it does; at once, if that is so already."""
        name = channel.encode()
        place = self._channels.get(name)
        if place is None:
            place = self._channels[name] = _Channel()
            place.hearing = self._trusted and name in self._heard
            self._changed.add(name)
            lingering = self._lingering.pop(name, None)
            if lingering is not None:
                lingering.cancel()
        self.keeper.want()
        if id(ear) in place.seats:
            return
        place.seats[id(ear)] = seat = _Seat(ear)
        self._routes.pop(name, None)
        if place.hearing:
            self._tell(seat, ear.ready)
        elif name in self._unspellable:
            self._tell(seat, ear.failed, self._unspellable[name])
        else:
            self._reconcile()

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Let it hear no more."""
        name = channel.encode()
        place = self._channels.get(name)
        seat = None if place is None else place.seats.pop(id(ear), None)
        if place is None or seat is None:
            return
        seat.heard = _nothing
        self._routes.pop(name, None)
        if not place.seats:
            del self._channels[name]
            self._lingering[name] = self._loop.call_later(_LINGER, self._forget, name)

    def prove(self, answer: Answer[float]) -> None:
        """Send a notification to ourselves: how long it took, or ``Unavailable``."""
        self._echoes.ask(answer)

    def bounce(self, reason: str) -> None:
        """Replace the link as soon as the loop comes round; asked twice until then, it is done once."""
        if self._link is not None and self._trusted and self._bouncing is None:
            self._bouncing = self._loop.call_soon(self._bounce, self._link, reason)

    def hearing(self) -> Hearing:
        """How the link is."""
        latencies = (self._echoes.latest, self._heart.latest)
        latest = max((one for one in latencies if one is not None), default=None)
        return Hearing(
            proven=self._trusted,
            own_at=self._own_at,
            others_at=self._others_at,
            latency=latest[1] if latest is not None else None,
            connects=self._connects,
        )

    async def close(self) -> None:
        """Hear nothing more."""
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        if self._bouncing is not None:
            self._bouncing.cancel()
        await self.keeper.close()

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """A fresh link: hear everything that is wanted, in one transaction, and prove that it works."""
        self._link = link
        link.hear = self._hear
        self._heard = set()
        self._unspellable = {}
        self._singly = False
        self._under_way = False
        self._echoes.up(link)
        self._heart.up(link)
        self._routes = {}
        self._changed = {*self._channels, *self._lingering, self._echoes.channel, self._heart.channel}
        self._reconcile()
        self._echoes.ask(_FirstEcho(self, link))

    def link_down(self, reason: str) -> None:
        """Nothing is heard now."""
        trusted = self._trusted
        self._trusted = False
        self._link = None
        if self._bouncing is not None:
            self._bouncing.cancel()
            self._bouncing = None
        self._echoes.down(reason)
        self._heart.down()
        if trusted:
            self._deaf_since = self._loop.time()
        for place in [*self._channels.values()]:
            hearing, place.hearing = place.hearing, False
            for seat in [*place.seats.values()]:
                if hearing:
                    self._tell(seat, seat.ear.deaf, reason)
                elif not trusted:
                    self._tell(seat, seat.ear.failed, Unavailable(f"listening could not be proven: {reason}"))

    def connect_failed(self, error: PgconcertError) -> None:
        """Whoever does not hear learns why; the keeper tries again unless it says otherwise."""
        for place in [*self._channels.values()]:
            for seat in [*place.seats.values()]:
                if not place.hearing:
                    self._tell(seat, seat.ear.failed, error)

    # what the link tells us

    def _hear(self, channel: bytes, pid: int, payload: bytes) -> None:
        route = self._routes.get(channel)
        if route is None:
            route = self._route(channel)
        link = self._link
        assert link is not None
        own = pid in self._own
        if own:
            self._own_at = link.heard_at
        else:
            self._others_at = link.heard_at
        for one in route:
            try:
                one.heard(payload, pid, own)
            except Exception as bug:
                self._report(bug)

    # the work

    def _route(self, channel: bytes) -> _Route:
        place = self._channels.get(channel)
        ours = [one for one in (self._echoes, self._heart) if one.channel == channel]
        route: _Route = (*ours, *(place.seats.values() if place is not None and place.hearing else ()))
        if route:  # what nobody wants comes late, and never again
            self._routes[channel] = route
        return route

    def _reconcile(self) -> None:
        link = self._link
        if link is None or self._under_way or not self._changed:
            return
        changed, self._changed = self._changed, set()
        missing = sorted(name for name in changed if name not in self._heard and self._is_wanted(name))
        if self._singly:
            # our own first: the proof must not stand behind a thousand names
            missing.sort(key=lambda name: name not in (self._echoes.channel, self._heart.channel))
            self._changed.update(missing[1:])
            del missing[1:]
        surplus = sorted(name for name in changed if name in self._heard and not self._is_wanted(name))
        if not missing and not surplus:
            return
        self._under_way = True
        self._heard.difference_update(surplus)

        def answered(rows: Rows, error: Exception | None) -> None:
            if link.dead is not None or self._link is not link:
                return
            self._under_way = False
            if isinstance(error, StatementFailed) and error.sqlstate.startswith(_NAME_AT_FAULT):
                self._heard.update(surplus)  # nothing of the transaction was done
                self._changed.update(missing, surplus)
                self._singly = True
                if len(missing) == 1:
                    self._refuse(missing[0], error)
                self._reconcile()
                return
            if error is not None:
                link.close(f"LISTEN failed: {error}")
                return
            self._heard.update(missing)
            if self._singly and self._echoes.channel in missing:
                self._echoes.again()
            if self._trusted:
                self._tell_ready(missing)
            self._reconcile()

        link.send_together(
            [(_command(b"listen", name), ()) for name in missing]
            + [(_command(b"unlisten", name), ()) for name in surplus],
            answered,
        )

    def _refuse(self, name: bytes, error: StatementFailed) -> None:
        """The others must not go deaf because of a name that the database cannot spell."""
        self._changed.discard(name)
        why = ConfigurationError(f"this database cannot hear the channel {name.decode()!r}: {error}")
        self._unspellable[name] = why
        place = self._channels.get(name)
        for seat in [*place.seats.values()] if place is not None else ():
            self._tell(seat, seat.ear.failed, why)

    def _is_wanted(self, name: bytes) -> bool:
        if name in self._unspellable:
            return False
        return name in self._channels or name in self._lingering or name in (self._echoes.channel, self._heart.channel)

    def proven(self, link: Link, error: Exception | None) -> None:
        """The first notification to ourselves is back, or will not come."""
        if link.dead is not None or self._link is not link:
            return
        if error is not None and not nobody_can_notify(error):
            if self._loop.time() - link.heard_at < self._context.network_timeout:
                self._echoes.ask(_FirstEcho(self, link))  # others are heard: ours stands in a long line
            else:
                link.close(f"a notification to ourselves failed: {error}")
            return
        initial = not self._connects
        deaf_for = None if self._deaf_since is None else self._loop.time() - self._deaf_since
        self._trusted = True
        self._deaf_since = None
        self._connects += 1
        self.keeper.trust()
        self._tell_ready([*self._channels])
        self._context.events.emit(ListenerReady(channels=len(self._channels), initial=initial, deaf_for=deaf_for))

    def _tell_ready(self, names: Iterable[bytes]) -> None:
        for name in names:
            place = self._channels.get(name)
            if place is None or place.hearing or name not in self._heard:
                continue
            place.hearing = True
            self._routes.pop(name, None)
            for seat in [*place.seats.values()]:
                self._tell(seat, seat.ear.ready)

    def _tell(self, seat: _Seat, call: Callable[..., None], *arguments: object) -> None:
        if seat.heard is _nothing:
            return
        try:
            call(*arguments)
        except Exception as bug:
            self._report(bug)

    def _report(self, bug: Exception) -> None:
        self._loop.call_exception_handler({"message": "pgconcert: an ear raised", "exception": bug})

    def _forget(self, name: bytes) -> None:
        self._lingering.pop(name, None)
        self._changed.add(name)
        if self._channels or self._lingering:
            self._reconcile()
        else:
            self.keeper.unwant()
            self._deaf_since = None  # nobody wanted to hear

    # deafness

    def _deafened(self, link: Link, reason: str) -> None:
        self._context.events.emit(ListenerDeaf(reason=reason))
        if self._trusted:
            self.keeper.bounce(link, reason, broken=True)
        else:
            link.close(reason)

    def _bounce(self, link: Link, reason: str) -> None:
        self._bouncing = None
        if self.keeper.link is link:
            self._context.events.emit(ListenerBounced(reason=reason))
            self.keeper.bounce(link, reason)


class _FirstEcho:
    """Waits for the notification that proves a fresh link."""

    def __init__(self, listener: Listener, link: Link) -> None:
        self._listener = listener
        self._link = link

    def done(self) -> bool:
        return False

    def set_result(self, result: float, /) -> None:
        self._listener.proven(self._link, None)

    def set_exception(self, exception: Exception, /) -> None:
        self._listener.proven(self._link, exception)


def _nothing(payload: bytes, pid: int, own: bool) -> None:
    """What is called instead of an ear that has left."""


def _command(verb: bytes, channel: bytes) -> Statement:
    return Statement(b"", b'%s "%s"' % (verb, channel.replace(b'"', b'""')))
