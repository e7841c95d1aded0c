"""One process of the demo's second part: a runner that shares the tasks of a queue with those of all others, and is
some moments at each. How it is told what to do, and to end, is said in ``demo_process.py``.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..coordinator import AsyncCoordinator
from ..events import Event, RunnerSessionStarted, TasksRefused
from ..tasks.sources import QueueTasks
from ..tasks.task import Task
from .demo_history import Kind
from .demo_process import Diary, follow_orders
from .demo_tasks import QUEUE_NAME

__all__ = ["TaskOrders"]

_TTL: Final = 2.0
"""How long after its death the tasks of a process are its own still."""
_TICK: Final = 0.25
_MOMENT: Final = (0.05, 0.2)
_KEPT_FOR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class TaskOrders:
    """What a worker is told. ``pipe`` is a file descriptor; ``schema`` has the tables."""

    url: str
    namespace: str
    worker: int
    pipe: int
    schema: str

    def line(self) -> bytes:
        """For the worker's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"


async def _take_part(line: dict[str, Any], diary: Diary, told: asyncio.Event) -> None:
    orders = TaskOrders(**line)

    def note(event: Event) -> None:
        if isinstance(event, RunnerSessionStarted):
            diary.write(Kind.SHARING, number=event.session)
        elif isinstance(event, TasksRefused):
            diary.write(Kind.REFUSED, number=event.tasks)

    async def work(task: Task) -> None:
        number = int(task.text())
        diary.write(Kind.BEGUN, number=number)
        how = Kind.DROPPED
        try:
            await asyncio.sleep(random.uniform(*_MOMENT))
            how = Kind.COMPLETED
        finally:
            diary.write(how, number=number)

    async with AsyncCoordinator(
        orders.url, name=f"worker-{orders.worker}", namespace=orders.namespace, schema=orders.schema
    ) as c:
        c.events.subscribe(note)
        source = QueueTasks(QUEUE_NAME, retention=_KEPT_FOR)
        async with c.runner(QUEUE_NAME, work, source, per_task=True, batch=1, tick=_TICK, ttl=_TTL):
            diary.write(Kind.READY)
            await told.wait()


if __name__ == "__main__":
    follow_orders(_take_part)
