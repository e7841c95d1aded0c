"""A process that runs a runner until it is told to end, and writes down what its tasker did.

It gets its orders as JSON in its first argument, says "ready" when its runner has a session, and for "end" it stops the
runner, says "done" with its statistics, and ends; for SIGTERM it does the same, as a service would. An error that no
fault explains ends it with a traceback.

Theory: the tasker does what comes to its mind: completes all, a part or nothing, raises, takes its time (now and then
longer than a session lives, never looking at what it lost), or waits while a gate is shut: a file that the director
makes, so that nothing is finished until all shares have settled. ``task_history.py`` judges what it writes down. The
session is read before it is asked whether the tasks are lost, so if they are not, they are of that session.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from pgconcert import AsyncCoordinator, AsyncRunner, QueueTasks, TableTasks, Task
from pgconcert.errors import Unavailable
from pgconcert.events import Event, RunnerFailed, RunnerSessionStarted, TasksRefused
from tests.faults.task_history import Diary, What

PROGRAM: Final = Path(__file__)

RUNNER: Final = "work"
QUEUE: Final = QueueTasks("work")
TABLE: Final = TableTasks(
    "public.work", where="t.done_at is null", order_by="t.priority desc", finish="done_at = clock_timestamp()"
)
ASKED: Final = "as it was asked to"
PAUSE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Orders:
    """``url`` leads to the server through whatever may break. ``pace``: seconds that a call of the tasker takes, about.
    ``calm``: every call completes everything. Times in seconds."""

    url: str
    folder: str
    kind: Literal["queue", "table"] = "queue"
    plain: bool = False
    calm: bool = False
    ttl: float = 1.2
    tick: float = 0.3
    batch: int = 20
    concurrency: int = 2
    most: int | None = None
    pace: float = 0.02
    timeout: float = 10.0

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class Tasker:
    """The work of this process. ``runner`` is set before it is called."""

    runner: AsyncRunner

    def __init__(self, orders: Orders, diary: Diary) -> None:
        self.orders = orders
        self.diary = diary
        self.gate = Path(orders.folder, "shut")

    async def work(self, tasks: Sequence[Task]) -> list[Task] | None:
        """The tasker of a runner whose taskers are coroutines."""
        call = Call(self, tasks)
        try:
            while call.goes_on():
                await asyncio.sleep(PAUSE)
            return call.outcome()
        finally:
            call.leave()

    def work_plainly(self, tasks: Sequence[Task]) -> list[Task] | None:
        """That of a runner whose taskers are plain functions."""
        call = Call(self, tasks)
        try:
            while call.goes_on():
                time.sleep(PAUSE)
            return call.outcome()
        finally:
            call.leave()


class Call:
    """One call of the tasker. ``session``: that of the tasks, if they were not lost at once."""

    def __init__(self, tasker: Tasker, tasks: Sequence[Task]) -> None:
        self._tasker = tasker
        self._tasks = tasks
        self._calm = tasker.orders.calm
        self._session = tasker.runner.session_id
        self._until = time.time()
        self._trusting = not self._lost()
        self._end = time.monotonic() + self._takes()
        if self._trusting:
            self._write("begun", time.time(), tasks)
        if not tasks or len(tasks) > tasker.orders.batch:
            tasker.diary.write("odd", time.time(), 0, [f"called with {len(tasks)} tasks"])

    def goes_on(self) -> bool:
        """Whether there is more to do; also, whether we still trust to have the tasks."""
        now = time.time()
        if not self._lost():
            self._until = now
        elif self._tasker.orders.plain and self._tasker.gate.exists():
            return False
        return time.monotonic() < self._end or self._tasker.gate.exists()

    def outcome(self) -> list[Task] | None:
        """What the tasker returns; it is said to be done before."""
        if self._session is None:
            return []
        fate = "all" if self._calm else random.choices(["all", "part", "nothing", "raise"], [90, 6, 2, 2])[0]
        if fate == "raise":
            raise RuntimeError(ASKED)
        tasks = [task for task in self._tasks if fate == "all" or (fate == "part" and random.random() < 0.5)]
        self.leave()
        self._write("done", time.time(), tasks)
        return None if len(tasks) == len(self._tasks) else tasks

    def leave(self) -> None:
        """It is over."""
        if self._trusting:
            self._trusting = False
            self._write("left", self._until, self._tasks)

    def _lost(self) -> bool:
        return self._session is None or any(task.lost for task in self._tasks)

    def _takes(self) -> float:
        if not self._calm and random.random() < 0.01:
            return self._tasker.orders.ttl * random.uniform(0.5, 1.5)
        return random.uniform(0.0, 2 * self._tasker.orders.pace)

    def _write(self, what: What, at: float, tasks: Sequence[Task]) -> None:
        assert self._session is not None
        self._tasker.diary.write(what, at, self._session, [task.id for task in tasks])


def listen(c: AsyncCoordinator, diary: Diary) -> None:
    """Write down what the runner says."""

    def started(event: Event) -> None:
        assert isinstance(event, RunnerSessionStarted)
        diary.write("session", time.time(), event.session)

    def refused(event: Event) -> None:
        assert isinstance(event, TasksRefused)
        diary.write("refused", time.time(), event.session, event.ids)

    def failed(event: Event) -> None:
        assert isinstance(event, RunnerFailed)
        if event.code == "run tasks" and ASKED not in event.error:
            diary.write("odd", time.time(), 0, [str(event)])

    c.events.subscribe(started, RunnerSessionStarted)
    c.events.subscribe(refused, TasksRefused)
    c.events.subscribe(failed, RunnerFailed)


async def main(orders: Orders) -> None:
    diary = Diary(Path(orders.folder), os.getpid())
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_reader(sys.stdin, told.set)
    tasker = Tasker(orders, diary)
    async with AsyncCoordinator(orders.url, name="task-worker", network_timeout=1.0, connect_timeout=1.0) as c:
        listen(c, diary)
        runner = tasker.runner = c.runner(
            RUNNER,
            tasker.work_plainly if orders.plain else tasker.work,
            QUEUE if orders.kind == "queue" else TABLE,
            tick=orders.tick,
            tasks_per_session=orders.most,
            batch=orders.batch,
            concurrency=orders.concurrency,
            ttl=orders.ttl,
        )
        while runner.session_id is None:
            try:
                await runner.start()
            except Unavailable:
                await asyncio.sleep(0.1)
        print("ready", flush=True)
        await told.wait()
        loop.remove_reader(sys.stdin)
        await runner.stop(orders.timeout)
        print("done", json.dumps(asdict(runner.statistics())), flush=True)
    diary.write("ended", time.time())


if __name__ == "__main__":
    asyncio.run(main(Orders(**json.loads(sys.argv[1]))))
