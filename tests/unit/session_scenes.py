"""What tests of the engine of sessions share: engines in one still world, an observer at each one's store, claims.

Here live helpers without assertions of their own, except what must be true of every end.

Theory. The store is that of `memory://`, and time is a clock that the test moves. Between an engine and its store is
an `Observer`: it passes everything on and notes it. It can also keep answers back, as a slow network does, and then
deliver or lose them; what was asked is carried out all the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from pgconcert import AcquireTimeout
from pgconcert.acquiring import Register
from pgconcert.backend import GRANTED, Claim
from pgconcert.clock import Clock, FakeClock
from pgconcert.errors import PgconcertError, Unavailable
from pgconcert.events import Event, EventStream
from pgconcert.keys import KeySpace
from pgconcert.memory import MemoryBackend, World
from pgconcert.messenger import Answer, Messenger
from pgconcert.sessions.answers import Told, ignore
from pgconcert.sessions.claims import SessionClaim, SessionKey, session_key
from pgconcert.sessions.engine import Sessions
from pgconcert.sessions.hold import AsyncSessionHold
from pgconcert.sessions.session import Session
from pgconcert.sessions.timing import Timing, timing
from pgconcert.store import Entry, Kind, Look, Request, SessionInfo, Store, Subject
from tests.unit.ears import turns

T = TypeVar("T")

TEN = timing(10.0)
"""Heartbeats every 2.5 s, 1.25 s of patience, who waits looks after 5 s; trusted for 9 s."""

KEYS = KeySpace("")


class Observer:
    """Stands before a store. ``asked``: all that was asked of it, in its order."""

    def __init__(self, store: Store) -> None:
        self.asked: list[Request[Any]] = []
        self.bounced: list[str] = []
        self.keeps: set[type[Request[Any]]] = set()
        """Answers to these are kept back."""
        self.kept: list[tuple[Request[Any], Callable[[], None], Answer[Any]]] = []
        self.deaf = False
        """Nothing reaches the store, and nothing is answered."""
        self.stalled: list[tuple[float, Request[Any]]] = []
        """What did not reach it, and when."""
        self._store = store

    @property
    def schema(self) -> str | None:
        return self._store.schema

    @property
    def clock(self) -> Clock | None:
        return self._store.clock

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        self.asked.append(request)
        if self.deaf:
            self.stalled.append((self.clock.now() if self.clock is not None else 0.0, request))
            self.kept.append((request, partial(answer.set_exception, Unavailable("it never arrived")), answer))
        elif type(request) in self.keeps:
            self._store.ask(request, Told(partial(self._keep, request, answer), partial(self._fail, request, answer)))
        else:
            self._store.ask(request, answer)

    def bounce(self, reason: str) -> None:
        self.bounced.append(reason)
        self.lose(reason)
        self._store.bounce(reason)

    def deliver(self) -> None:
        """The answers that were kept back arrive."""
        kept, self.kept = self.kept, []
        for _, arrive, _ in kept:
            arrive()

    def lose(self, reason: str = "lost on the way") -> None:
        """The answers that were kept back never arrive."""
        kept, self.kept = self.kept, []
        for _, _, answer in kept:
            answer.set_exception(Unavailable(reason))

    def arrive_late(self) -> list[Request[Any]]:
        """What did not reach the store reaches it now, although it was asked again long ago. What it was."""
        stalled = [request for _, request in self.stalled]
        self.stalled.clear()
        for request in stalled:
            self._store.ask(request, Told(ignore, ignore))
        return stalled

    def count(self, *kinds: type[Request[Any]]) -> int:
        """How many of these were asked."""
        return sum(isinstance(request, kinds) for request in self.asked)

    def kinds(self) -> Counter[str]:
        """How many of each were asked since the last time."""
        counted = Counter(type(request).__name__ for request in self.asked)
        self.asked.clear()
        return counted

    def _keep(self, request: Request[T], answer: Answer[T], result: T) -> None:
        self.kept.append((request, lambda: answer.set_result(result), answer))

    def _fail(self, request: Request[T], answer: Answer[T], error: Exception) -> None:
        self.kept.append((request, lambda: answer.set_exception(error), answer))


class Asked:
    """One claim, and what became of it."""

    def __init__(self, engine: Sessions, key: SessionKey, *, wait: bool = True) -> None:
        self.engine = engine
        self.future: asyncio.Future[bool] = engine.loop.create_future()
        self._given: asyncio.Future[bool] = engine.loop.create_future()
        self.future.add_done_callback(_looked_at)
        self.claim = SessionClaim(key, self.future, wait=wait)
        engine.acquire(self.claim)

    @property
    def granted(self) -> bool:
        """Whether it has it, or had it."""
        return self.claim.state == GRANTED

    @property
    def held(self) -> bool:
        """Whether it has it now, as far as anybody here may believe."""
        return self.granted and not self.claim.over and self.claim.reason is None

    def give(self) -> None:
        """Give it back."""
        self.claim.over = True
        self.engine.release(self.claim, self._given)

    async def given(self) -> None:
        """Give it back, and wait until it is free."""
        self.give()
        await self._given

    def withdraw(self) -> None:
        """Leave."""
        self.engine.withdraw(self.claim)
        self.future.cancel()

    def outcome(self) -> bool | type[BaseException] | None:
        """What it was told, if it was."""
        if not self.future.done() or self.future.cancelled():
            return None
        error = self.future.exception()
        return self.future.result() if error is None else type(error)


class House:
    """One engine, with all that a test looks at."""

    def __init__(self, backend: MemoryBackend, store: Observer, engine: Sessions, events: list[Event]) -> None:
        self.backend = backend
        self.store = store
        self.engine = engine
        self.events = events
        self.register = Register(engine, engine.loop, lambda: "", None, SessionClaim)

    def told(self, *kinds: type[Event]) -> list[Event]:
        """What happened, of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def sessions(self) -> list[Session]:
        return self.engine.heart.sessions

    def ask(self, name: str = "n", *, wait: bool = True, timing: Timing = TEN, kind: Kind = "job", **how: Any) -> Asked:
        """Hand in a claim."""
        return Asked(self.engine, key(name, timing, kind, **how), wait=wait)

    async def acquire(self, name: str = "n", timeout: float | None = None, timing: Timing = TEN) -> AsyncSessionHold:
        """Wait for it, as a coordinator does."""

        def granted(claim: Claim) -> AsyncSessionHold:
            register = self.register
            return AsyncSessionHold(claim, register.loop, self.engine.release, self.engine.drop, "cancel")

        async def expired(timeout: float) -> AsyncSessionHold:
            raise AcquireTimeout(f"not within {timeout:g} s")

        return await self.register.claim(key(name, timing), False, timeout, granted, expired)

    async def look(self, request: Request[T]) -> T:
        """Ask the store, beside the engine."""
        answer: asyncio.Future[T] = self.engine.loop.create_future()
        self.backend.store.ask(request, answer)
        return await answer

    async def entry(self, name: str = "n", kind: Kind = "job") -> Entry:
        """How it stands with a name on the server."""
        (found,) = await self.look(Look(kind=kind, name=name))
        return found

    async def holder(self, name: str = "n") -> SessionInfo | None:
        """Who has a name on the server."""
        found = await self.look(Look(kind="job", name=name))
        return found[0].session if found else None

    async def marks(self, name: str = "n", kind: Kind = "job") -> int:
        """How many sessions wait for a name, as the server sees it."""
        return (await self.entry(name, kind)).waiting

    async def close(self) -> None:
        """The end, as a coordinator comes to it."""
        await self.engine.close()
        await self.backend.close()


def key(name: str, timing: Timing = TEN, kind: Kind = "job", **how: Any) -> SessionKey:
    """The key of a name."""
    return session_key(KEYS, Subject(kind, "", name), timing, **how)


async def opened(world: World, *, messenger: Any = True, limit: float = 5.0, watchdog: bool = False) -> House:
    """An engine at a backend of its own. ``messenger``: that of the backend, none, or another. ``limit`` is the network
    timeout, in real seconds."""
    events = EventStream()
    told: list[Event] = []
    events.subscribe(told.append)
    backend = MemoryBackend(world, network_timeout=1_000_000.0)
    await backend.open(events)
    store = Observer(backend.store)
    heard: Messenger | None = backend.messenger if messenger is True else messenger or None
    loop = asyncio.get_running_loop()
    engine = Sessions(
        store, heard, loop, events, namespace="", application="tests", watchdog=watchdog, network_timeout=limit
    )
    return House(backend, store, engine, told)


async def pass_time(clock: FakeClock, seconds: float, step: float = 0.25) -> None:
    """Let time pass in steps, with the loop running between them."""
    left = seconds
    while left > 1e-9:
        clock.advance(min(step, left))
        left -= step
        await turns(8)


async def moved_on(houses: Sequence[House], clock: FakeClock, seconds: float = 12.0) -> None:
    """Time passes until nothing of what was given back lingers."""
    await turns(8)
    await pass_time(clock, seconds, 0.5)


def left_over(house: House) -> dict[str, Any]:
    """What an engine still has of names, marks and users; empty once nobody wants anything."""
    engine: Any = house.engine
    found: dict[str, Any] = {
        "names": [*engine._names.values()],
        "marks": [*engine._by_mark],
        "waiting": [*engine.wakes._waiting],
        "watches": [*engine.wakes._watches],
        "users": [
            (session, session.users, session.claims) for session in house.sessions if session.users or session.claims
        ],
    }
    return {what: things for what, things in found.items() if things}


async def left(*houses: House) -> None:
    """Everybody closes; in the world and on the clock nothing is left."""
    for house in houses:
        await house.close()
    await turns(8)
    for house in houses:
        assert not left_over(house), left_over(house)
    world = houses[0].backend.world
    clock = world.clock
    assert isinstance(clock, FakeClock)
    assert (world.empty, world.members) == (True, set())
    assert clock.waiting() == 0


async def fails(future: asyncio.Future[Any]) -> PgconcertError:
    """The error of something that must fail."""
    try:
        result = await future
    except PgconcertError as error:
        return error
    raise AssertionError(f"it has not failed: {result!r}")


def _looked_at(future: asyncio.Future[bool]) -> None:
    if not future.cancelled():
        future.exception()  # not every test asks what became of every claim
