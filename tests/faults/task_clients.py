"""A process of several clients with short sessions that share tasks, through the store itself.

It gets its orders as JSON in its first argument, says "ready" when all clients are at work, "drain"s and ends when it
is told so, writes what they did (``task_history.py``), and says "done". An error that no fault explains ends it with a
traceback.

Theory: a client does what comes to its mind, without any of the care that a runner takes: it renews late or not at all,
reports a part, starts what it likes in any order, forgets what it has and recalls it, moves whatever others have not
begun, gives all back, and loses answers. Only three things it must do, for the store asks for them: it says a report
again that nobody answered, recalls nothing before that was answered, and reports nothing that was not handed to it. It
*trusts* to have a task until it reports it, or until the ttl after the last answered heartbeat was sent.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar
from uuid import uuid4

from pgconcert.backend import Options
from pgconcert.errors import Unavailable
from pgconcert.events import EventStream
from pgconcert.postgres.engine import PostgresBackend
from pgconcert.store import EndSession, Renew, Request, StartSession, Store, Subject, Take
from pgconcert.taskstore import (
    Enqueue,
    Failure,
    LookAtShares,
    Move,
    NewTask,
    Pick,
    Place,
    QueuePlace,
    Recall,
    ReleaseTasks,
    TablePlace,
    Turn,
    Turned,
)
from tests.faults.task_history import Diary

T = TypeVar("T")

PROGRAM: Final = Path(__file__)
LONG: Final = 5.0

QUEUE: Final = QueuePlace("", "work")
TABLE: Final = TablePlace(
    "public.work", "id", "t.done_at is null", "t.priority desc", "done_at = pg_catalog.clock_timestamp()"
)


@dataclass(frozen=True, slots=True)
class Orders:
    """``cuts``: how likely a client is to break the link at every turn. Times in seconds."""

    url: str
    folder: str
    kind: Literal["queue", "table"] = "queue"
    clients: int = 3
    ttls: tuple[float, ...] = (0.08, 0.12, 0.2)
    cuts: float = 0.0

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @property
    def place(self) -> Place:
        """Where the tasks are."""
        return QUEUE if self.kind == "queue" else TABLE


@dataclass(eq=False)
class Session:
    """A session as its client sees it. ``hand``: what was handed out, and whether it was trusted then. ``said``: a
    report that nobody has answered."""

    id: int
    ttl: float
    deadline: float
    runner: Subject
    assigned: list[str] = field(default_factory=list)
    hand: dict[str, bool] = field(default_factory=dict)
    said: Turn | None = None


class Clients:
    """All clients of this process."""

    def __init__(self, store: Store, orders: Orders, diary: Diary) -> None:
        self._store = store
        self._orders = orders
        self._place = orders.place
        self._diary = diary
        self._sessions: list[Session] = []
        self.draining = False
        self.ending = False
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        """One client, until the end."""
        while not self.ending:
            try:
                session = await self._start()
            except Unavailable:
                continue
            self._sessions.append(session)
            try:
                await self._live(session)
            finally:
                self._sessions.remove(session)
                self._close(session)

    async def _live(self, session: Session) -> None:
        """What a session lives through, until it is known to be over."""
        turns = [
            (self._turn, 40),
            (self._renew, 20),
            (self._renew_all, 5),
            (self._recall, 4),
            (self._move, 8),
            (self._release, 2),
            (self._enqueue, 8),
            (self._nap, 10),
            (self._pause, 2),
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

    async def _start(self) -> Session:
        # in the end all must be done, however slow the server is
        ttl = LONG if self.draining else random.choice(self._orders.ttls)
        runner = Subject("runner", "stress", "clients", uuid4().hex)
        sent = time.time()
        number = await self._ask(StartSession(uuid="u", ttl=ttl, host="h", pid=os.getpid(), application="stress"))
        self._diary.write("session", time.time(), number)
        while True:
            try:
                await self._ask(Take(subject=runner, session=number))
            except Unavailable:
                continue
            return Session(number, ttl, sent + ttl, runner)

    async def _turn(self, session: Session) -> bool:
        turn = session.said or self._report(session)
        if session.said is None or random.random() < 0.5:
            most = 20 if self.draining else random.choice([None, 1, 5, 20])
            pick = Pick(most, random.choice([0, 0, 1, 3, 100]))
            start = random.sample(session.assigned, random.randint(0, len(session.assigned)))
            turn = Turn(
                place=turn.place,
                runner=turn.runner,
                session=turn.session,
                finished=turn.finished,
                failed=turn.failed,
                released=turn.released,
                start=tuple(start),
                pick=random.choice([pick, pick, None]),
            )
        session.said = turn
        # what is not known to be assigned from here on is recalled one day
        session.assigned = [task for task in session.assigned if task not in turn.start]
        answer = await self._ask(turn)
        session.said = None
        if answer.over:
            self._refused(session, turn.finished)
            return True
        self._told(session, turn, answer)
        return False

    def _report(self, session: Session) -> Turn:
        """Something of what was handed out: said to be done before that is reported."""
        some = 1.0 if self.draining else random.random()
        tasks = [task for task in session.hand if random.random() < some]
        random.shuffle(tasks)
        ends = random.choices(
            ["finished", "failed", "released"], [1, 0, 0] if self.draining else [8, 2, 1], k=len(tasks)
        )
        fates = list(zip(tasks, ends, strict=True))
        finished = tuple(task for task, end in fates if end == "finished")
        self._left(session, tasks)
        self._diary.write("done", time.time(), session.id, finished)
        return Turn(
            place=self._place,
            runner=session.runner,
            session=session.id,
            finished=finished,
            failed=tuple(
                Failure(task, "for a test", random.choice([0.0, 0.01, 0.1])) for task, end in fates if end == "failed"
            ),
            released=tuple(task for task, end in fates if end == "released"),
        )

    def _told(self, session: Session, turn: Turn, answer: Turned) -> None:
        now = time.time()
        self._refused(session, [task for task in turn.finished if task in answer.refused])
        reported = {*turn.finished, *(one.id for one in turn.failed), *turn.released}
        self._expect({*answer.refused} <= reported, "refused what was not reported", answer)
        if self._orders.kind == "table":
            session.assigned += [one.id for one in turn.failed if one.id not in answer.refused]
        started = [one.id for one in answer.started]
        # and of those in start, who was moved away to a session that died meanwhile
        picked = [task for task in started if task not in turn.start]
        both = [*started, *answer.assigned]
        self._expect(len(both) == len({*both}), "a task twice", answer)
        pick = turn.pick
        if pick is None:
            self._expect(not picked and not answer.assigned, "picked up though nobody asked", answer)
        else:
            fair = math.ceil(answer.outstanding / max(1, answer.sessions))
            fair = fair if pick.most is None else min(pick.most, fair)
            self._expect(answer.share <= fair, "a share that is not fair", answer)
            self._expect(len(picked) + len(answer.assigned) <= answer.share, "more than the share", answer)
            self._expect(len(picked) <= pick.start, "started more than there is room for", answer)
        session.assigned += [task for task in answer.assigned if task not in session.assigned]
        trusted = now < session.deadline
        for one in answer.started:
            session.hand[one.id] = trusted
            if self._orders.kind == "table":
                assert isinstance(one.payload, dict)
                self._expect(str(one.payload["id"]) == one.id, "another row", one)
            else:
                self._expect(one.attempt > 0, "an attempt that is not counted", one)
        if trusted:
            self._diary.write("begun", now, session.id, started)
        self.done["died"] += len(answer.died)

    def _expect(self, right: bool, what: str, answer: object) -> None:
        if not right:
            self._diary.write("odd", time.time(), 0, [what, str(answer)])

    async def _recall(self, session: Session) -> bool:
        if session.said is None:
            session.assigned = []
            session.assigned = [*await self._ask(Recall(place=self._place, session=session.id, keep=(*session.hand,)))]
            self.done["recalled"] += len(session.assigned)
        return False

    async def _move(self, session: Session) -> bool:
        held = await self._ask(LookAtShares(place=self._place, runner=session.runner))
        moves = [(one.session, random.randint(1, 5)) for one in held if one.session != session.id and one.assigned]
        if moves:
            moved = await self._ask(Move(place=self._place, session=session.id, moves=tuple(moves)))
            session.assigned += [task for task in moved if task not in session.assigned]
            self.done["moved"] += len(moved)
        return False

    async def _release(self, session: Session) -> bool:
        if session.said is None:
            self._left(session, [*session.hand])
            session.assigned = []
            await self._ask(ReleaseTasks(place=self._place, session=session.id))
        return False

    async def _enqueue(self, session: Session) -> bool:
        if isinstance(self._place, QueuePlace) and not self.draining:
            tasks = [
                NewTask(b"", run_in=random.choice([None, None, 0.1]), attempts=random.choice([2, 3, 1000, 1000, 1000]))
                for _ in range(random.randint(1, 12))
            ]
            ids = await self._ask(Enqueue(place=self._place, tasks=tuple(tasks)))
            self._expect(len({*ids}) == len(tasks), "another number of tasks", ids)
        return False

    async def _renew(self, session: Session) -> bool:
        return await self._heartbeat([session], session)

    async def _renew_all(self, session: Session) -> bool:
        return await self._heartbeat(random.sample(self._sessions, len(self._sessions)), session)

    async def _heartbeat(self, sessions: list[Session], ours: Session) -> bool:
        sent = time.time()
        answer = await self._ask(Renew(tuple(session.id for session in sessions)))
        for session in sessions:
            if answer.get(session.id, -1) is not None and session.id in answer and time.time() < session.deadline:
                session.deadline = max(session.deadline, sent + session.ttl)
        return answer.get(ours.id, -1) is None

    async def _nap(self, session: Session) -> bool:
        await asyncio.sleep(random.uniform(0, session.ttl / 4))
        return False

    async def _pause(self, session: Session) -> bool:
        self.done["pause"] += 1
        await asyncio.sleep(random.uniform(0.5, 2) * session.ttl)
        return False

    async def _end(self, session: Session) -> None:
        self._close(session)
        try:
            await self._ask(EndSession(session.id))
        except Unavailable:
            self.done["answer lost"] += 1

    def _close(self, session: Session) -> None:
        self._left(session, [*session.hand])
        if session.said is not None:
            self._refused(session, session.said.finished)
            session.said = None

    def _left(self, session: Session, tasks: list[str]) -> None:
        """It is over with these; we trusted to have them until now, or until our deadline."""
        trusted = [task for task in tasks if session.hand.pop(task)]
        self._diary.write("left", min(time.time(), session.deadline), session.id, trusted)

    def _refused(self, session: Session, tasks: list[str] | tuple[str, ...]) -> None:
        self._diary.write("refused", time.time(), session.id, tasks)


async def main(orders: Orders) -> None:
    backend = PostgresBackend(orders.url, Options(name=f"stress-{os.getpid()}"))
    await backend.open(EventStream())
    diary = Diary(Path(orders.folder), os.getpid())
    clients = Clients(backend.store, orders, diary)
    running = asyncio.gather(*(asyncio.create_task(clients.run()) for _ in range(orders.clients)))
    print("ready", flush=True)
    for flag in ("draining", "ending"):
        told = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
        await asyncio.wait([told, running], return_when=asyncio.FIRST_COMPLETED)
        setattr(clients, flag, True)
    await running
    await backend.close()
    diary.write("ended", time.time())
    print("done", json.dumps(clients.done), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Orders(**{**json.loads(sys.argv[1]), "ttls": tuple(json.loads(sys.argv[1])["ttls"])})))
