"""A process of several clients with short sessions that take from each other, through the store itself.

It gets its orders as JSON in its first argument, says "ready" when all clients are at work, ends them when it is told
"end", writes what they believed, and says "done". An error that no fault explains ends it with a traceback.

Theory: a client has one session and does what comes to its mind, without any of the care that the engine takes: it
renews late, on behalf of others too, pauses for longer than its session lives, takes several names at once, gives and
takes again, loses answers, revokes. All clients of a process share a link, so what they ask at one time travels
together. What they believe follows the rule of the engine without its margin: a session is trusted until its ttl after
the last answered heartbeat was sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pgconcert.backend import Options
from pgconcert.errors import Unavailable
from pgconcert.events import EventStream
from pgconcert.postgres.engine import PostgresBackend
from pgconcert.store import (
    EndSession,
    Give,
    Kind,
    Look,
    Own,
    Renew,
    Request,
    RequestRelease,
    Revoke,
    StartSession,
    Store,
    Subject,
    Take,
    Taken,
    Unmark,
)
from tests.faults.takeover_history import Belief

T = TypeVar("T")

PROGRAM: Final = Path(__file__)


@dataclass(frozen=True, slots=True)
class Orders:
    """``cuts``: how likely a client is to break the link at every turn. Times in seconds."""

    url: str
    folder: str
    clients: int = 3
    ttls: tuple[float, ...] = (0.08, 0.12, 0.2)
    cuts: float = 0.0
    operators: bool = True

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def subjects() -> list[Subject]:
    """Few names, of all kinds that hang on a session."""
    kinds: list[tuple[Kind, str, str]] = [
        ("job", "a", ""),
        ("job", "b", ""),
        ("election", "e", ""),
        ("member", "g", "m"),
    ]
    return [Subject(kind, "stress", name, member) for kind, name, member in kinds]


def shown(subject: Subject) -> str:
    """As the history has it."""
    return f"{subject.kind} {subject.name} {subject.member}"


@dataclass(eq=False)
class Held:
    """A session as its client sees it, and since when it trusts to have what. ``read``: the revision after which it
    has read what it has."""

    id: int
    ttl: float
    deadline: float
    revision: int = 0
    read: int = 0
    has: dict[Subject, Belief] = field(default_factory=dict)


class Clients:
    """All clients of this process."""

    def __init__(self, store: Store, orders: Orders) -> None:
        self._store = store
        self._orders = orders
        self._sessions: list[Held] = []
        self._all = subjects()
        self.ending = False
        self.beliefs: list[Belief] = []
        self.revoked: list[tuple[str, float]] = []
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        """One client, until the end."""
        while not self.ending:
            session = await self._start()
            self._sessions.append(session)
            try:
                await self._live(session)
            finally:
                self._sessions.remove(session)
                self._close(session, time.time())

    async def _live(self, session: Held) -> None:
        """What a session lives through, until it is known to be over."""
        turns = [
            (self._renew, 25),
            (self._renew_all, 5),
            (self._take_one, 25),
            (self._take_many, 10),
            (self._give, 10),
            (self._look, 3),
            (self._revoke, 4 if self._orders.operators else 0),
            (self._nap, 15),
            (self._sleep, 3),
        ]
        while not self.ending:
            if random.random() < 0.02:
                await self._end(session)
                return
            if random.random() < self._orders.cuts:
                self.done["cut"] += 1
                asyncio.get_running_loop().call_later(random.uniform(0, 0.01), self._store.bounce, "for a test")
            (turn,) = random.choices([one for one, _ in turns], [weight for _, weight in turns])
            try:
                if await turn(session):
                    return
            except Unavailable:
                self.done["answer lost"] += 1

    async def _ask(self, request: Request[T]) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._store.ask(request, answer)
        return await answer

    async def _start(self) -> Held:
        ttl = random.choice(self._orders.ttls)
        while True:
            sent = time.time()
            try:
                number = await self._ask(
                    StartSession(uuid="u", ttl=ttl, host="h", pid=os.getpid(), application="stress")
                )
            except Unavailable:
                continue
            return Held(number, ttl, sent + ttl)

    async def _renew(self, session: Held) -> bool:
        return await self._heartbeat([session], session)

    async def _renew_all(self, session: Held) -> bool:
        return await self._heartbeat(random.sample(self._sessions, len(self._sessions)), session)

    async def _heartbeat(self, sessions: list[Held], ours: Held) -> bool:
        sent = time.time()
        answer = await self._ask(Renew(tuple(session.id for session in sessions)))
        now = time.time()
        for session in sessions:
            self._lapse(session, now)
            revision = answer.get(session.id, -1)
            if revision is None:
                self._close(session, now)
                session.deadline = 0.0
            elif revision >= 0 and session.deadline:
                session.deadline = max(session.deadline, sent + session.ttl)
                session.revision = max(session.revision, revision)
                if session.read == session.revision:
                    self._confirm(session, sent)
        for session in sessions:
            if session.read != session.revision:
                await self._own(session, sent)
        return answer.get(ours.id, -1) is None

    async def _own(self, session: Held, sent: float) -> None:
        revision = session.revision
        has = {one.subject: one.token for one in await self._ask(Own(session.id))}
        now = time.time()
        self._lapse(session, now)
        for subject in [*session.has]:
            if has.get(subject) != session.has[subject].token:
                self.done["told"] += 1
                self._believed(session, subject, now)
        session.read = max(session.read, revision)
        if session.read == session.revision:
            self._confirm(session, sent)

    async def _take_one(self, session: Held) -> bool:
        return await self._take(session, random.choice(self._all))

    async def _take_many(self, session: Held) -> bool:
        taking = [self._take(session, subject) for subject in random.sample(self._all, len(self._all))]
        outcomes = await asyncio.gather(*taking, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Unavailable):
                raise outcome
        return True in outcomes

    async def _take(self, session: Held, subject: Subject) -> bool:
        answer = await self._ask(
            Take(subject=subject, session=session.id, mark=random.random() < 0.3, preferred=random.random() < 0.1)
        )
        now = time.time()
        self._lapse(session, now)
        if isinstance(answer, Taken):
            self._believed(session, subject, now)
            if now < session.deadline:
                session.has[subject] = Belief(shown(subject), session.id, answer.token, now, 0.0, 0.0)
            return False
        return answer.over

    async def _give(self, session: Held) -> bool:
        self._lapse(session, time.time())
        if session.has:
            subject = random.choice([*session.has])
            token = session.has[subject].token
            self._believed(session, subject, time.time())
            await self._ask(Give(subject=subject, session=session.id, token=token))
        else:
            await self._ask(Unmark(random.choice(self._all), session.id))
        return False

    async def _look(self, session: Held) -> bool:
        await self._ask(Look(kind=random.choice(self._all).kind))
        await self._ask(RequestRelease(random.choice(self._all)))
        return False

    async def _revoke(self, session: Held) -> bool:
        subject = random.choice(self._all)
        if await self._ask(Revoke(subject)):
            self.revoked.append((shown(subject), time.time()))
        return False

    async def _nap(self, session: Held) -> bool:
        await asyncio.sleep(random.uniform(0, session.ttl / 4))
        return False

    async def _sleep(self, session: Held) -> bool:
        self.done["pause"] += 1
        await asyncio.sleep(random.uniform(0.5, 2) * session.ttl)
        return False

    async def _end(self, session: Held) -> None:
        self._close(session, time.time())
        try:
            await self._ask(EndSession(session.id))
        except Unavailable:
            self.done["answer lost"] += 1

    def _confirm(self, session: Held, sent: float) -> None:
        """A heartbeat sent then gave no reason to doubt what we had by then."""
        for subject, belief in session.has.items():
            if belief.since < sent:
                session.has[subject] = belief._replace(confirmed=max(belief.confirmed, sent))

    def _lapse(self, session: Held, now: float) -> None:
        if now >= session.deadline:
            self._close(session, now)

    def _close(self, session: Held, now: float) -> None:
        for subject in [*session.has]:
            self._believed(session, subject, now)

    def _believed(self, session: Held, subject: Subject, now: float) -> None:
        """The belief is over now, or was at the deadline."""
        if (belief := session.has.pop(subject, None)) is not None:
            self.beliefs.append(belief._replace(until=min(now, session.deadline)))


async def main(orders: Orders) -> None:
    backend = PostgresBackend(orders.url, Options(name=f"stress-{os.getpid()}"))
    await backend.open(EventStream())
    clients = Clients(backend.store, orders)
    tasks = [asyncio.create_task(clients.run()) for _ in range(orders.clients)]
    running = asyncio.gather(*tasks)
    print("ready", flush=True)
    told = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    await asyncio.wait([told, running], return_when=asyncio.FIRST_COMPLETED)
    clients.ending = True
    await running
    await backend.close()
    written: dict[str, Any] = {"beliefs": clients.beliefs, "revoked": clients.revoked}
    Path(orders.folder, f"{os.getpid()}.json").write_text(json.dumps(written))
    print("done", json.dumps(clients.done), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Orders(**{**json.loads(sys.argv[1]), "ttls": tuple(json.loads(sys.argv[1])["ttls"])})))
