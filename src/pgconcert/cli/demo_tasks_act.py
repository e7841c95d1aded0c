"""The course of the demo's second part: what the processes share, who is killed when, and when it is over. No terminal,
no server here.

Tasks are put into the queue when every process has a session, so that each gets its share. When a third of them is done
the one that has most of them is killed. Its tasks are its own until its time is over, and then those of the others, who
finish them. It is over when all are finished, or after some patience, and then the history tells what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..taskstore import TaskInfo
from .demo_director import Mood
from .demo_history import Kind
from .demo_stage import Stage, WorkerFailed
from .demo_tasks import Sharing

__all__ = ["PER_PROCESS", "TaskDirector", "TaskView"]

PER_PROCESS: Final = 20

_START_LIMIT: Final = 30.0
_PATIENCE: Final = 20.0
_FRAME: Final = 0.04


class TaskView(Protocol):
    """Who looks on."""

    def tell(self, at: int, mood: Mood, text: str) -> None:
        """Something worth a line happened."""

    def show(self, picture: Sharing) -> None:
        """Time has passed. Called often."""


class TaskDirector:
    """Runs the part on a stage. ``enqueue`` puts so many tasks into the queue, ``look`` tells how they are."""

    def __init__(
        self,
        stage: Stage,
        processes: int,
        kill: bool,
        enqueue: Callable[[int], object],
        look: Callable[[], Sequence[TaskInfo]],
        view: TaskView,
    ) -> None:
        self._stage, self._kill, self._enqueue, self._look, self._view = stage, kill, enqueue, look, view
        self.picture = Sharing(processes, processes * PER_PROCESS)
        self._told_first = self._told_moved = False

    def run(self) -> Sharing:
        """From the first process to the last. Raises ``WorkerFailed``."""
        seen = self.picture
        for worker in range(1, seen.processes + 1):
            self._stage.start(worker)
        self._wait_until_ready()
        self._enqueue(seen.count)
        seen.begun = time.monotonic_ns()
        end = time.monotonic() + _PATIENCE
        while seen.finished < seen.count and time.monotonic() < end:
            self._frame()
            if self._kill and seen.killed is None and seen.first is not None and seen.finished * 3 >= seen.count:
                self._strike()
        if seen.finished == seen.count:
            self._view.tell(time.monotonic_ns(), "good", f"all {seen.count} tasks are finished")
        for record in self._stage.dismiss():
            seen.take(record)
        seen.see(self._look(), time.monotonic_ns())
        return seen

    def _wait_until_ready(self) -> None:
        limit = time.monotonic() + _START_LIMIT
        while sum(record.kind is Kind.READY for record in self.picture.records) < self.picture.processes:
            if time.monotonic() > limit:
                raise WorkerFailed(f"the processes were not ready within {_START_LIMIT:g} s")
            self._hear()
            self._view.show(self.picture)

    def _hear(self) -> None:
        for record in self._stage.hear(_FRAME):
            self.picture.take(record)

    def _frame(self) -> None:
        seen = self.picture
        self._hear()
        now = time.monotonic_ns()
        seen.see(self._look(), now)
        if seen.first is not None and not self._told_first:
            self._told_first = True
            shares = ", ".join(str(share.has + share.finished) for share in seen.first.values())
            self._view.tell(now, "plain", f"{seen.processes} processes share {seen.count} tasks: {shares}")
        if seen.killed is not None and seen.after is not None and not self._told_moved:
            self._told_moved = True
            heirs = ", ".join(f"{count} with worker-{worker}" for worker, count in sorted(seen.heirs.items()))
            after = (seen.moved_at - seen.killed.at) / 1e6
            self._view.tell(
                seen.moved_at, "good", f"its {len(seen.left)} tasks have moved after {after:.0f} ms: {heirs}"
            )
        self._view.show(seen)

    def _strike(self) -> None:
        seen = self.picture
        now = seen.shares()
        victim = max(now, key=lambda worker: now[worker].has)
        killed = self._stage.kill(victim)
        self._hear()
        seen.killed = killed
        seen.take(killed)
        seen.see(self._look(), time.monotonic_ns())
        seen.then = seen.shares()
        text = f"worker-{victim} (pid {killed.pid}) is killed with SIGKILL, with {len(seen.left)} tasks"
        self._view.tell(killed.at, "killed", text)
