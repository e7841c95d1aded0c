"""What tests of runners for threads share: two coordinators of one world in memory, and taskers that can be held.

Here live helpers without assertions of their own, except about what is left in the queue.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pgconcert import QueueTasks, Task
from pgconcert.blocking import Coordinator, TaskQueue
from pgconcert.testing import eventually

SOURCE = QueueTasks("queue")
FAR = 3600.0
SOON = 0.05


class Two(NamedTuple):
    """Two processes of one world, and a queue of theirs."""

    mine: Coordinator
    theirs: Coordinator
    queue: TaskQueue

    def emptied(self) -> None:
        """Wait until nothing is left to do."""

        def empty() -> bool:
            there = self.queue.statistics()
            return there.waiting + there.scheduled + there.assigned + there.started == 0

        eventually(empty, what="nothing is left to do")

    def free(self, count: int) -> None:
        """Show that so many tasks are there, and that nobody has any."""
        assert Counter(task.session for task in self.queue.tasks()) == ({None: count} if count else {})

    def sessions(self) -> list[int]:
        """What lives of mine."""
        return [session.id for session in self.theirs.sessions() if session.application == "mine"]


@pytest.fixture
def two_coordinators() -> Iterator[Two]:
    world = f"memory://{secrets.token_hex(8)}"
    with Coordinator(world, name="mine") as mine, Coordinator(world, name="theirs") as theirs:
        yield Two(mine, theirs, theirs.queue("queue"))


class Work:
    """A tasker that notes what it gets, and on which threads. With a gate it waits there until that is opened."""

    def __init__(self, *, gate: bool = False) -> None:
        self.got: list[str] = []
        self.done: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.gate = threading.Event()
        if not gate:
            self.gate.set()

    def __call__(self, tasks: list[Task]) -> None:
        self.threads.add(threading.current_thread())
        self.got += [task.id for task in tasks]
        assert self.gate.wait(30)
        self.done += [task.id for task in tasks]

    def begun(self) -> None:
        """Wait until it was called."""
        eventually(lambda: bool(self.got), what="it has begun")


def tasker_threads() -> list[str]:
    """Those that live."""
    return [thread.name for thread in threading.enumerate() if thread.name == "pgconcert-tasker"]
