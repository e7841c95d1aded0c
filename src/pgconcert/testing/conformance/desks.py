"""What cases of sessions speak with: a desk in front of the store of one coordinator. No case stands here.

Theory. A session that is to live through a case has a long time to live; one that is to die has a short one, and dies
when the server says so, which is awaited. Whatever must be done before it dies is done again with a longer life when it
came too late. So no case looks at a clock.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

from ... import AsyncCoordinator
from ...enginethread import EngineThread
from ...store import (
    EndSession,
    Entry,
    Give,
    Given,
    Kind,
    Look,
    LookAtSessions,
    Own,
    Owned,
    Refused,
    Renew,
    Request,
    SessionInfo,
    StartSession,
    Store,
    Subject,
    Take,
    Taken,
    Term,
    Terms,
)
from ..leaks import eventually_async
from .suite import Stage

__all__ = ["LONG", "Desk", "desk", "desks", "fresh"]

T = TypeVar("T")

LONG = 300.0
"""The time to live of a session that must not die in a case."""


def fresh(kind: Kind = "job", name: str = "name", member: str = "") -> Subject:
    """A subject in a namespace of its own."""
    return Subject(kind, secrets.token_hex(8), name, member)


class Desk:
    """The store of one coordinator, asked on the loop on which it lives."""

    def __init__(self, stage: Stage, coordinator: AsyncCoordinator) -> None:
        self.coordinator = coordinator
        self._on_engine = stage.engine == "thread"
        self.uuid = secrets.token_hex(16)

    async def ask(self, request: Request[T]) -> T:
        """One answer."""
        (answer,) = await self.together([request])
        return answer

    async def together(self, requests: Sequence[Request[T]]) -> list[T]:
        """Hand in several at once: their answers."""
        store = self.coordinator.backend.store
        assert store is not None, "the backend says that it keeps sessions, and has no store"
        if not self._on_engine:
            return await _asked(store, requests)
        engine = EngineThread.join()  # the one on which the coordinator lives; it is not the last to leave
        try:
            return await engine.run(_asked(store, requests))
        finally:
            engine.leave()

    async def start(self, ttl: float = LONG, data: str | None = None) -> int:
        """A new session."""
        return await self.ask(StartSession(uuid=self.uuid, ttl=ttl, host="host", pid=7, application="case", data=data))

    async def take(self, subject: Subject, session: int, **how: Any) -> Taken:
        """Take what can be taken."""
        answer = await self.ask(Take(subject=subject, session=session, **how))
        assert isinstance(answer, Taken), f"{subject} is free, and the answer is {answer}"
        return answer

    async def refused(self, subject: Subject, session: int, **how: Any) -> Refused:
        """Try to take what cannot be taken."""
        answer = await self.ask(Take(subject=subject, session=session, **how))
        assert isinstance(answer, Refused), f"{subject} is not free, and the answer is {answer}"
        return answer

    async def take_in_time(self, subject: Subject, session: int, **how: Any) -> Taken:
        """Take what will be free."""
        took: list[Taken | Refused] = []

        async def taken() -> bool:
            took[:] = [await self.ask(Take(subject=subject, session=session, **how))]
            return isinstance(took[0], Taken)

        await eventually_async(taken, 20, what=f"{subject} is free")
        assert isinstance(took[0], Taken)
        return took[0]

    async def dying(self, *subjects: Subject, **how: Any) -> tuple[int, list[Taken]]:
        """A session that has taken these, and will soon be over."""
        ttl = 0.25
        while True:
            session = await self.start(ttl)
            answers = await self.together([Take(subject=subject, session=session, **how) for subject in subjects])
            taken = [answer for answer in answers if isinstance(answer, Taken)]
            if len(taken) == len(subjects):
                return session, taken
            assert any(isinstance(answer, Refused) and answer.over for answer in answers), answers
            await self.ask(EndSession(session))
            ttl *= 2

    async def over(self, session: int) -> None:
        """Wait until a session is over, without renewing it."""

        async def is_over() -> bool:
            return all(info.id != session for info in await self.ask(LookAtSessions()))

        await eventually_async(is_over, 20, what=f"session {session} is over")

    async def living(self) -> dict[int, SessionInfo]:
        """The sessions of this desk that are alive."""
        return {info.id: info for info in await self.ask(LookAtSessions()) if info.uuid == self.uuid}

    async def revision(self, session: int) -> int:
        """Renew: the revision."""
        seen = await self.seen(session)
        assert seen is not None, f"session {session} lives, and is said to be over"
        return seen

    async def seen(self, session: int) -> int | None:
        """Renew: the revision, or ``None`` if it is over; again, where it was locked this instant."""
        found: list[int | None] = []

        async def answered() -> bool:
            found[:] = [rev for number, rev in (await self.ask(Renew((session,)))).items() if number == session]
            return bool(found)

        await eventually_async(answered, 20, what=f"session {session} is renewed or over")
        return found[0]

    async def give(self, subject: Subject, session: int, token: int | None = None, how: str = "released") -> Given:
        """Give it back."""
        return await self.ask(Give(subject=subject, session=session, token=token, how=how))

    async def entry(self, subject: Subject) -> Entry:
        """What is shown of one entry."""
        kind, namespace, name, member = subject
        found = await self.ask(Look(kind=kind, namespace=namespace, name=name, member=member))
        assert [entry.subject for entry in found] == [subject], found
        return found[0]

    async def own(self, session: int) -> dict[Subject, Owned]:
        """What hangs on a session."""
        return {owned.subject: owned for owned in await self.ask(Own(session))}

    async def term(self, subject: Subject) -> Term:
        """The latest term."""
        terms = await self.ask(Terms(subject=subject))
        assert len(terms) == 1, terms
        return terms[0]


async def _asked(store: Store, requests: Sequence[Request[T]]) -> list[T]:
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[T]] = []
    for request in requests:
        answer: asyncio.Future[T] = loop.create_future()
        store.ask(request, answer)
        answers.append(answer)
    return await asyncio.gather(*answers)


async def desk(stage: Stage, **options: Any) -> Desk:
    """A desk in front of a coordinator of its own."""
    return Desk(stage, await stage.open(**options))


async def desks(stage: Stage, count: int = 2) -> list[Desk]:
    """Several, each with a coordinator of its own."""
    return [await desk(stage) for _ in range(count)]
