"""The words of a coordinator for task sharing. The primitives are imported when first asked for.

Here lives ``AsyncTasking``, which checks what was given and hands out objects. A coordinator knows its runners, so that
it can stop them before it closes what they stand on.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakSet

from ..sessions.timing import DEFAULT_TTL, timing

if TYPE_CHECKING:
    from ..acquiring import Register
    from ..sessions.register import SessionRegister
    from ..taskstore import QueueInfo
    from .group import AsyncRunnerGroup
    from .queue import AsyncTaskQueue
    from .runner import AsyncRunner
    from .sources import Finder, QueueTasks, Source
    from .tasker import Tasker

__all__ = ["AsyncTasking", "stop_all"]


class AsyncTasking:
    """What a coordinator can do because tasks can be shared."""

    _runners: WeakSet[AsyncRunner]

    @abstractmethod
    def _sharing(self, source: object = None) -> SessionRegister[Register]:
        """What the primitives share, if the coordinator is open and its backend has what a source needs. A text is the
        name of a queue."""

    def runner(
        self,
        name: str,
        tasker: Tasker,
        source: Source | Finder,
        *,
        tick: float = 5.0,
        jitter: float = 0.2,
        tasks_per_session: int | None = None,
        batch: int = 100,
        concurrency: int = 1,
        per_task: bool = False,
        ttl: float = DEFAULT_TTL,
        interval: float | None = None,
        timeout: float | None = None,
    ) -> AsyncRunner:
        """A runner: this process's fair share of the tasks of ``source``, handed to ``tasker`` on every tick. Nothing
        is sent before it is started.

        :param name: a text of 1 to 1,000 encoded bytes. Runners of one name share their tasks, whatever the process.
        :param tasker: does the work, async or plain (a plain one runs in a thread). It gets a list of ``Task``, never
            an empty one, or with ``per_task`` one ``Task``. What it returns is completed: ``None`` means all; else an
            iterable of tasks or ids, a part of what it got; with ``per_task`` ``None`` or ``True``, and ``False`` for
            not. If it raises, nothing of that call is completed. Tasks run at least once.
        :param source: ``QueueTasks``, ``TableTasks``, ``FunctionTasks`` or a ``TaskSource`` of yours; or a function,
            async or plain, that returns one and is asked anew on each tick and heartbeat.
        :param tick: seconds between looks for work when there was none (0.05 to 86,400). New work of queues wakes
            runners that are idle at once; the tick is the guarantee.
        :param jitter: the share of a tick by which ticks vary (0 to 1), so that runners do not march in step.
        :param tasks_per_session: how many tasks this runner has at most, started or assigned (0 to 1,000,000);
            ``None``: its share, of queues and tables at most 1,000 ahead of what it works on.
        :param batch: how many tasks one call of ``tasker`` gets at most (1 to 1,000,000).
        :param concurrency: how many calls of ``tasker`` are under way at a time (1 to 10,000).
        :param per_task: call ``tasker`` for each task.
        :raises ConfigurationError: a number that cannot be, or what is no tasker or no source. ``KeyInvalid``: a name
            that cannot be.

        ``ttl``, ``interval`` and ``timeout`` of its session are as for ``job_lock``: after ``ttl`` seconds without a
        heartbeat others take over its tasks.
        """
        from .runner import AsyncRunner

        runner = AsyncRunner(
            self._sharing(source),
            name,
            tasker,
            source,
            tick=tick,
            jitter=jitter,
            tasks_per_session=tasks_per_session,
            batch=batch,
            concurrency=concurrency,
            per_task=per_task,
            timing=timing(ttl, interval, None, timeout),
        )
        self._runners.add(runner)
        return runner

    def runners(self, *runners: AsyncRunner) -> AsyncRunnerGroup:
        """Several runners that start in the order given and stop together. If one cannot start, those that run are
        stopped."""
        from .group import AsyncRunnerGroup

        self._sharing()
        return AsyncRunnerGroup(*runners)

    def queue(self, name: str | QueueTasks) -> AsyncTaskQueue:
        """A queue of tasks in our own tables (``pgconcert schema apply``). Nothing is sent.

        :param name: a text of 1 to 1,000 encoded bytes; or a ``QueueTasks``, whose ``attempts`` count then for tasks
            that are enqueued without.
        :raises KeyInvalid: a name that cannot be.
        """
        from .queue import AsyncTaskQueue

        return AsyncTaskQueue(self._sharing(""), name)

    async def queues(self) -> tuple[QueueInfo, ...]:
        """The queues of this namespace that have tasks, by name, with how many of each state.

        Raises ``Unavailable`` while there is no connection, ``SchemaMissing``, and ``CoordinatorClosed``."""
        from .queue import queues

        return await queues(self._sharing(""))


async def stop_all(runners: Iterable[AsyncRunner], timeout: float) -> None:
    """Stop runners because their coordinator is closed; calls that are under way may go on for ``timeout`` seconds."""
    await asyncio.gather(*[runner.stop(timeout) for runner in runners], return_exceptions=True)
