"""A keeper holds one link open for as long as its owner wants one: connects, probes, watches, reconnects.

States::

    idle --want--> connecting --proven--> ready --lost--> connecting
                     |    ^
                  failed  | after a delay
                     v    |
                    waiting            close() leads from anywhere to closed

Only the keeper's own task connects. The owner is told ``link_up``, ``link_down`` and ``connect_failed``, synchronously;
``link_down`` comes before any new attempt, so that what hung on the old session is known to be lost before anything
is asked on a new one. Delays grow from 50 ms to 5 s, jittered, for ever; or, with a ``limit``, until that many
attempts in a row have failed: then the owner is told ``GivenUp``, and the keeper is idle until it is wanted anew. An
owner with a limit says by ``trust`` that a link is as good as it looks; before that its loss is a failed attempt.

``bounce`` replaces a link that is up without a pause; while one is being made it does nothing.

A frozen network sends no sign, so the keeper looks at the link five times per ``network_timeout``: nothing has come
since the last look and nothing is under way: a ping leaves. Three looks in a row with something under way and no sign
of life (something came, or the socket took more of what waits to be sent): the link is closed, at most
``network_timeout`` after the last sign. A look that comes late (the loop was blocked) does not count, because the
answer may be waiting unread. Where statements are not ours they may be slow: there it takes as many looks more as their
owner has ``patience``, and until then a peer that is gone is noticed by TCP alone.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final, Protocol

from ..backend import LinkHealth
from ..errors import (
    ConfigurationError,
    CoordinatorClosed,
    GivenUp,
    PgconcertError,
    PoolerRefused,
    StandbyRefused,
    Unavailable,
)
from ..events import ConnectFailed, LinkClosed, LinkLost, LinkOpened, SettingRefused
from ..offloop import off_loop
from .addresses import Attempt, attempts, time_limit
from .context import Context, Role
from .link import Link, Reply, Rows
from .outage import Outage
from .probe import Proof, apply_settings, prove, settings
from .statements import PING

__all__ = ["Context", "Keeper", "LinkOwner"]

_LOOKS: Final = 5
_STRIKES: Final = 3
_FIRST_DELAY: Final = 0.05
_LAST_DELAY: Final = 5.0
_STABLE: Final = 1.0
_SMOOTHING: Final = 0.3
_NEED_A_SESSION: Final = ("lock", "listen")
_POOLED_SESSION: Final = (
    "the database address leads through a transaction pooler, where {role}s cannot work: every transaction may run on "
    "another session. Give the coordinator direct_url=, an address that leads to the server itself or to a pooler in "
    "session mode"
)
_STANDBY: Final = (
    "{server} is a hot standby (read-only): the advisory locks it grants exclude nobody on the primary, and it cannot "
    "notify. Point the address at the primary, or name all hosts and add target_session_attrs=read-write"
)


class LinkOwner(Protocol):
    """Whoever wants the link of a keeper."""

    def link_up(self, link: Link, proof: Proof) -> None: ...
    def link_down(self, reason: str) -> None: ...
    def connect_failed(self, error: PgconcertError) -> None: ...


class Keeper:
    """Keeps the link of one role. ``patience``: how often ``network_timeout`` a statement may take."""

    def __init__(
        self, context: Context, role: Role, owner: LinkOwner, limit: int | None = None, patience: int = 1
    ) -> None:
        self._context = context
        self._owner = owner
        self._limit = limit
        self._patience = patience
        self._failures = 0
        self._trusted = False
        self._died = False
        self._at_once = False
        self._task: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[str] | None = None
        self._look: asyncio.TimerHandle | None = None
        self._proof: Proof | None = None
        self._outage = Outage(context.loop.time())
        self._wanted = False
        self._attempts = 0
        self._last_error: str | None = None
        self._closed = False
        self._statements = 0
        self.role: Role = role
        self.link: Link | None = None
        self.round_trip: float | None = None
        self.ever_up = False
        self.application = context.application_name(role, None)
        """Our name on the server."""
        self.trouble: str | None = None
        """Why there is no link although one is wanted; None while all is well, or while the first attempt is made."""

    def want(self) -> None:
        """Keep a link open from now on."""
        if self._closed:
            return
        if not self._wanted:
            self._failures = 0
        self._wanted = True
        if self._task is None or self._task.done():
            self._task = self._context.loop.create_task(self._run(), name=f"pgconcert {self.role} link")

    def unwant(self, why: str = "it is not needed any more") -> None:
        """Close the link; nothing needs it now. ``want`` may follow at any time."""
        self._wanted = False
        self.trouble = None
        if self.link is not None:
            self._end(self.link, why)
        elif self._task is not None and self._task is not _running_task():
            self._task.cancel()
            self._task = None

    def trust(self) -> None:
        """The link does what it is for: from now on its loss is a loss, and no failed attempt."""
        self._trusted = True
        self._failures = 0

    def bounce(self, link: Link, reason: str, *, broken: bool = False) -> None:
        """Replace ``link`` by a fresh one, without a pause, if it is up. ``broken``: its end is reported as a loss."""
        if self.link is not link:
            return
        self._at_once = True
        if broken:
            link.close(reason)
        else:
            self._end(link, reason)

    async def close(self) -> None:
        """End for good. The owner is told ``link_down`` if a link was up."""
        self._closed = True
        task = self._task
        self.unwant("the coordinator was closed")
        if task is not None and task is not _running_task():
            await asyncio.wait([task])

    @property
    def context(self) -> Context:
        """What all links of the engine share."""
        return self._context

    def health(self) -> LinkHealth:
        """How it is."""
        gone = self._statements
        link = self.link
        if link is not None:
            state = "ready"
        elif self._closed:
            state = "closed"
        elif self._task is None:
            state = "idle" if self.trouble is None else "given up"
        else:
            state = "waiting" if self._last_error else "connecting"
        return LinkHealth(
            role=self.role,
            state=state,
            server=link.server if link else None,
            server_pid=link.pid if link else None,
            through=self._proof.through if link and self._proof else None,
            statements=gone + (link.statements if link else 0),
            round_trip=self.round_trip,
            attempts=self._attempts,
            last_error=self._last_error if state != "idle" or self._outage.recent(self._context.loop.time()) else None,
        )

    # what the link tells us

    def link_lost(self, link: Link, reason: str) -> None:
        """The link died. Called by the link."""
        self._died = True
        self.trouble = reason
        lost = LinkLost(role=self.role, server_pid=link.pid, reason=reason, unanswered=link.lost_answers)
        self._down(link, reason, lost)

    # the task

    async def _run(self) -> None:
        try:
            # an eager task would run inside the call that wants it, before what it wants it for is noted
            await asyncio.sleep(0)
            await self._keep()
        except asyncio.CancelledError:
            if self._wanted and self._task is _running_task():
                # not by us: somebody cancels all tasks, because the program is ending
                if self.link is not None:
                    self._end(self.link, "its task was cancelled")
                self._owner.connect_failed(CoordinatorClosed("the task that keeps the connection was cancelled"))
            raise
        finally:
            if self._task is _running_task():
                self._task = None

    async def _keep(self) -> None:
        loop = self._context.loop
        again = False
        if not self._outage.recent(loop.time()):
            self._outage = Outage(loop.time())
        delay = _FIRST_DELAY
        while self._wanted:
            self._attempts += 1
            try:
                link, proof = await self._connect()
            except (Exception, asyncio.CancelledError) as error:
                task = _running_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                failure = _as_ours(error)
                wait = delay * random.uniform(0.5, 1.0)
                delay = min(delay * 2, _LAST_DELAY)
                self._last_error = self.trouble = str(failure)
                last = self._failures + 1 == self._limit
                self._context.events.emit(
                    ConnectFailed(
                        role=self.role,
                        attempt=self._attempts,
                        error=str(failure),
                        retry_in=None if last else wait,
                        down_for=loop.time() - self._outage.since,
                        repeats=self._outage.fails(loop.time()) and not last,
                    )
                )
                if not self._given_up(failure):
                    self._owner.connect_failed(failure)
                if self._wanted:
                    await asyncio.sleep(wait)
                continue
            up_since = loop.time()
            self._lost = loop.create_future()
            self._trusted = self._limit is None
            self._died = False
            self._up(link, proof, up_since - self._outage.since if again or self._outage.failed else None)
            reason = await self._lost
            self._outage, again = Outage(loop.time()), True
            delay = _FIRST_DELAY if self._outage.since - up_since > _STABLE else min(delay * 2, _LAST_DELAY)
            at_once, self._at_once = self._at_once, False
            if not self._trusted and self._died:
                self._given_up(Unavailable(reason))
            if self._wanted:
                # many processes may have lost their links in the same instant
                await asyncio.sleep(0 if at_once else delay * random.random())

    def _given_up(self, failure: PgconcertError) -> bool:
        """Count a failed attempt. True if it was the last: the owner has been told."""
        self._failures += 1
        if not self._wanted or self._limit is None or self._failures < self._limit:
            return False
        self._wanted = False
        error = GivenUp(
            f"the {self.role} link is given up: it was tried {self._failures} times in vain "
            f"(reconnect_limit={self._limit}); the last failure: {failure}"
        )
        error.__cause__ = failure
        self.trouble = str(error)
        self._owner.connect_failed(error)
        return True

    def _up(self, link: Link, proof: Proof, down_for: float | None) -> None:
        self._attempts = 0
        self._last_error = self.trouble = None
        self._proof = proof
        self._context.own.came(proof)
        self.link = link
        self.ever_up = True
        link.owner = self
        self._context.events.emit(
            LinkOpened(
                role=self.role,
                server_pid=link.pid,
                server=link.server,
                version=link.version,
                through=proof.through,
                down_for=down_for,
            )
        )
        self._watch(link, link.signs, 0, self._context.loop.time() + self._context.network_timeout / _LOOKS)
        self._owner.link_up(link, proof)

    async def _connect(self) -> tuple[Link, Proof]:
        context = self._context
        needs_session = self.role in _NEED_A_SESSION
        source = context.direct_address if needs_session and context.direct_address else context.address
        parameters = await source.parameters()
        self.application = context.application_name(self.role, parameters.get("application_name"))
        parameters["application_name"] = self.application
        parameters.setdefault("tcp_user_timeout", str(round(context.network_timeout * 1000)))
        parameters.setdefault("keepalives_idle", str(max(1, round(context.network_timeout / 2))))
        limit = time_limit(parameters.pop("connect_timeout", ""), context.connect_timeout)
        places = await off_loop(lambda: attempts(parameters))
        failures: list[str] = []
        for place in places:
            try:
                return await self._prove(place, limit)
            except (StandbyRefused, ConfigurationError):
                if place is places[-1]:
                    raise
                failures.append(f"{place.label}: not suitable")
            except TimeoutError:
                failures.append(f"{place.label}: no answer within {limit:g} s")
            except PgconcertError as error:
                failures.append(f"{place.label}: {error}")
        raise Unavailable("; ".join(failures))

    async def _prove(self, place: Attempt, limit: float) -> tuple[Link, Proof]:
        link: Link | None = None
        try:
            async with asyncio.timeout(limit):
                link = await Link.connect(place.conninfo)
                proof = await prove(link, lambda: Link.connect(place.conninfo))
                self._refuse_unfit(link, proof)
                if proof.through != "transaction pooler":
                    await self._settle(link)
                # catalogue caches are warm now: what is measured is the way there and back
                started = self._context.loop.time()
                await link.execute(PING)
                self.round_trip = self._context.loop.time() - started
            if link.dead is not None:
                raise Unavailable(link.dead)
            return link, proof
        except BaseException:
            if link is not None:
                link.close("given up while connecting")
            raise

    def _refuse_unfit(self, link: Link, proof: Proof) -> None:
        if proof.through == "transaction pooler" and self.role in _NEED_A_SESSION:
            raise PoolerRefused(_POOLED_SESSION.format(role=self.role))
        if proof.standby:
            raise StandbyRefused(_STANDBY.format(server=link.server))

    async def _settle(self, link: Link) -> None:
        timeout = self._context.network_timeout
        # a NOTIFY waits for the server's notify lock at its commit; nothing else of ours may wait
        lock_timeout = 0.1 if self.role == "lock" else timeout / 4
        wanted = settings(link.version, network_timeout=timeout, lock_timeout=lock_timeout)
        for name, error in (await apply_settings(link, wanted)).items():
            self._context.events.emit(SettingRefused(role=self.role, setting=name, error=error))

    # the watch over a silent network

    def _watch(self, link: Link, signs: int, strikes: int, due: float) -> None:
        self._look = self._context.loop.call_at(due, self._look_at, link, signs, strikes, due)

    def _look_at(self, link: Link, signs: int, strikes: int, due: float) -> None:
        timeout = self._context.network_timeout
        now = self._context.loop.time()
        if link.signs != signs:
            strikes = 0
        elif link.unanswered:
            strikes += now - due < timeout / _LOOKS
            if strikes == _STRIKES + (self._patience - 1) * _LOOKS:
                times = "" if self._patience == 1 else f"{self._patience} times "
                link.close(f"no answer from the server within {times}network_timeout={timeout:g} s")
                return
        else:
            link.send(PING, (), self._pong(now))
        self._watch(link, link.signs, strikes, now + timeout / _LOOKS)

    def _pong(self, sent: float) -> Reply:
        def measure(rows: Rows, error: Exception | None) -> None:
            if error is None:
                before = self.round_trip or 0.0
                self.round_trip = before + (self._context.loop.time() - sent - before) * _SMOOTHING

        return measure

    def _end(self, link: Link, reason: str) -> None:
        link.owner = None
        link.close(reason)
        self._down(link, reason, LinkClosed(role=self.role, server_pid=link.pid))

    def _down(self, link: Link, reason: str, event: LinkLost | LinkClosed) -> None:
        # in this order, and read in the other: who counts on another thread may miss a link, and never has it twice
        self.link = None
        self._statements += link.statements
        if self._proof is not None:
            self._context.own.went(self._proof, self._context.loop)
        if self._look is not None:
            self._look.cancel()
        # first the task, which runs later: whatever the owner does, the next connection will be made
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)
        try:
            self._context.events.emit(event)
        finally:
            self._owner.link_down(reason)


def _as_ours(error: BaseException) -> PgconcertError:
    if isinstance(error, PgconcertError):
        return error
    # the text of somebody else's error may hold a secret: it is chained, not quoted
    failure = Unavailable(f"connecting failed with {type(error).__name__} (see __cause__)")
    failure.__cause__ = error
    return failure


def _running_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
