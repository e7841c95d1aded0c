"""The queues of a world: the rules of ``taskstore.py``. Pure data: no thread, no loop, no clock.

Theory. A request is carried out from its beginning to its end before the next begins, at one time, ``now``; so nothing
is ever locked this instant, and of two who want a task one comes later and finds it gone. What a task is, and who moves
it::

    free --a pick-up--> assigned --its owner--> started --its owner--> finished (gone, or kept for a while)
      ^                  |    ^                    |
      +---- released ----+----|--------------------+--its owner: failed--> free, or dead
      |                       +-- recalled --------+
      +-- retried -- dead <-- attempts used up, and its session over

What hangs on a session that is over stays there, and is looked at by the next pick-up, which ends that session first.
Who lives is not known here: the ledger (``ledger.py``) says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, Protocol

from ..errors import ConfigurationError
from ..store import Request, Subject
from ..taskstore import (
    CheckPlace,
    DiscardTasks,
    Enqueue,
    FunctionPlace,
    Held,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    Pick,
    QueueInfo,
    QueuePlace,
    Recall,
    ReleaseTasks,
    RetryTasks,
    TablePlace,
    TaskInfo,
    TaskRow,
    Turn,
    Turned,
)
from .taskqueue import QueuedTask, TaskQueue, in_order

__all__ = ["Owners", "TaskBook", "unsupported"]

_LEFT_BEHIND: Final = "its session was over before the last attempt had ended"


class Owners(Protocol):
    """Those to whom tasks belong: the ledger."""

    def lives(self, session: int, now: float) -> bool:
        """Whether a session is alive."""
        ...

    def bury(self, session: int, now: float) -> bool:
        """Whether a session is over; if only its time is, it is ended."""
        ...

    def runners(self, runner: Subject, now: float) -> Iterable[int]:
        """The sessions of the living runners of this kind, namespace and name."""
        ...


class TaskBook:
    """All queues. ``wall`` is what the world's clock lacks to seconds since 1970."""

    def __init__(self, wall: float, owners: Owners) -> None:
        self._wall = wall
        self._owners = owners
        self._numbers = itertools.count(1)
        self._queues: dict[tuple[str, str], TaskQueue] = {}
        self.requests: dict[type[Request[Any]], Callable[[Any, float], Any]] = {
            Turn: self._turn,
            Recall: self._recall,
            LookAtShares: self._look_at_shares,
            Move: self._move,
            ReleaseTasks: self._release,
            CheckPlace: lambda _, now: (),
            Enqueue: self._enqueue,
            LookAtQueues: self._look_at_queues,
            LookAtTasks: self._look_at_tasks,
            RetryTasks: self._retry,
            DiscardTasks: self._discard,
        }
        """What can be asked, and who answers."""

    @property
    def empty(self) -> bool:
        """Whether no task is kept. Safe from any thread."""
        return not any(queue.tasks or queue.dead or queue.finished for queue in [*self._queues.values()])

    def forget(self) -> None:
        """Keep nothing but the count."""
        self._queues.clear()

    def _at(self, place: Any, now: float) -> TaskQueue:
        assert isinstance(place, QueuePlace), place
        queue = self._queues.setdefault((place.namespace, place.name), TaskQueue())
        queue.purge(now)
        return queue

    # the tasks of a session

    def _turn(self, request: Turn, now: float) -> Turned:
        me = request.session
        if not self._owners.lives(me, now):
            return Turned(over=True)
        queue = self._at(request.place, now)
        died: list[str] = []
        freed: list[tuple[QueuedTask, float]] = []
        rests: list[float] = []
        refused = [one for one in request.finished if not self._finish(queue, me, one, request.place, now)]
        for failure in request.failed:
            task = queue.ours(me, failure.id, True)
            if task is None:
                refused.append(failure.id)
                continue
            task.error = failure.error
            queue.let_go(task)
            if task.attempt >= task.attempts:
                died.append(queue.die(task))
            else:
                freed.append((task, now + failure.retry_in))
                rests.append(failure.retry_in)
        for one in request.released:
            task = queue.ours(me, one, True)
            if task is None:
                refused.append(one)
                continue
            queue.let_go(task)
            task.attempt -= 1
            freed.append((task, task.due))
        started = [self._start(task) for one in request.start if (task := queue.ours(me, one, False)) is not None]
        turned = Turned(started=tuple(started), refused=tuple(refused), died=tuple(died))
        if request.pick is not None:
            turned = self._picked(request, request.pick, queue, turned, now)
            later = (*rests, *(task.due - now for task in queue.free[queue.due(now) :][:1]))
            turned = replace(turned, next_in=min(later, default=None))
        for task, due in freed:
            # what was reported is not picked up in the same turn
            queue.set_free(task, due)
        return turned

    def _finish(self, queue: TaskQueue, me: int, id: str, place: Any, now: float) -> bool:  # noqa: A002
        task = queue.ours(me, id, True)
        if task is not None:
            queue.finish(task, now, place.retention)
        return task is not None

    def _start(self, task: QueuedTask) -> TaskRow:
        task.started = True
        task.attempt += 1
        return TaskRow(str(task.id), task.attempt, task.payload)

    def _picked(self, request: Turn, pick: Pick, queue: TaskQueue, turned: Turned, now: float) -> Turned:
        me = request.session
        sessions = len({*self._owners.runners(request.runner, now)})
        due = queue.due(now)
        outstanding = due + sum(map(len, queue.held.values()))
        if pick.most is not None:
            outstanding = min(outstanding, max(sessions, 1) * pick.most)
        part = -(-outstanding // max(sessions, 1))
        need = max(part - max(len(queue.held.get(me, ())) - pick.resting, 0), 0)
        taken, died = self._inherited(queue, me, need, now)
        more = min(need - len(taken), due)
        taken += queue.free[:more]
        del queue.free[:more]
        for task in taken:
            queue.assign(task, me)
        return replace(
            turned,
            started=(*turned.started, *(self._start(task) for task in taken[: pick.start])),
            assigned=tuple(str(task.id) for task in taken[pick.start :]),
            died=(*turned.died, *died),
            sessions=sessions,
            outstanding=outstanding,
            share=part,
        )

    def _inherited(self, queue: TaskQueue, me: int, need: int, now: float) -> tuple[list[QueuedTask], list[str]]:
        """What belongs to sessions that are over, as much as is needed, and what of it is dead."""
        taken: list[QueuedTask] = []
        died: list[str] = []
        for session in sorted(queue.held):
            if len(taken) >= need:
                break
            if session == me or not self._owners.bury(session, now):
                continue
            for task in queue.of(session)[: need - len(taken)]:
                if task.attempt >= task.attempts:
                    task.error = _LEFT_BEHIND
                    died.append(queue.die(task))
                else:
                    taken.append(task)
        return taken, died

    def _recall(self, request: Recall, now: float) -> tuple[str, ...]:
        if not self._owners.lives(request.session, now):
            return ()
        recalled = [
            task for task in self._at(request.place, now).of(request.session) if str(task.id) not in request.keep
        ]
        for task in recalled:
            task.attempt -= task.started
            task.started = False
        return tuple(str(task.id) for task in recalled)

    def _look_at_shares(self, request: LookAtShares, now: float) -> tuple[Held, ...]:
        queue = self._at(request.place, now)
        return tuple(
            Held(session, len(queue.of(session, False)), len(queue.of(session, True)))
            for session in sorted({*self._owners.runners(request.runner, now)})
        )

    def _move(self, request: Move, now: float) -> tuple[str, ...]:
        me = request.session
        if not self._owners.lives(me, now):
            return ()
        queue = self._at(request.place, now)
        moved = [
            task
            for giver, most in request.moves
            if giver != me
            for task in queue.of(giver, False)[::-1][: max(most, 0)]
        ]
        for task in moved:
            queue.assign(task, me)
        return tuple(str(task.id) for task in sorted(moved, key=in_order))

    def _release(self, request: ReleaseTasks, now: float) -> int:
        queue = self._at(request.place, now)
        released = queue.of(request.session)
        for task in released:
            task.attempt -= task.started
            queue.set_free(task, task.due)
        return len(released)

    # the tasks of a queue

    def _enqueue(self, request: Enqueue, now: float) -> tuple[str, ...]:
        queue = self._at(request.place, now)
        ids: list[str] = []
        for new in request.tasks:
            due = now + (new.run_in or 0.0) if new.run_at is None else new.run_at - self._wall
            task = QueuedTask(next(self._numbers), new.payload, new.attempts, created=now, due=due)
            queue.set_free(task, due)
            ids.append(str(task.id))
        return tuple(ids)

    def _look_at_queues(self, request: LookAtQueues, now: float) -> tuple[QueueInfo, ...]:
        found: list[QueueInfo] = []
        for (namespace, name), queue in sorted(self._queues.items()):
            queue.purge(now)
            wanted = request.namespace in (None, namespace) and request.name in (None, name)
            if wanted and (queue.tasks or queue.dead or queue.finished):
                found.append(_info(namespace, name, queue, now))
        return tuple(found)

    def _look_at_tasks(self, request: LookAtTasks, now: float) -> tuple[TaskInfo, ...]:
        wanted = (task for task in self._at(request.place, now).all() if request.state in (None, task.state(now)))
        return tuple(self._task(task, now) for task in sorted(wanted, key=in_order)[: request.limit])

    def _task(self, task: QueuedTask, now: float) -> TaskInfo:
        return TaskInfo(
            id=str(task.id),
            state=task.state(now),
            payload=task.payload,
            attempt=task.attempt,
            attempts=task.attempts,
            created=task.created + self._wall,
            run_at=task.due + self._wall,
            session=task.session,
            error=task.error,
            finished=None if task.finished is None else task.finished + self._wall,
        )

    def _retry(self, request: RetryTasks, now: float) -> int:
        queue = self._at(request.place, now)
        tasks = self._dead(queue, request.ids)
        for task in tasks:
            task.dead, task.attempt = False, 0
            queue.set_free(task, now)
        return len(tasks)

    def _discard(self, request: DiscardTasks, now: float) -> int:
        return len(self._dead(self._at(request.place, now), request.ids))

    def _dead(self, queue: TaskQueue, ids: tuple[str, ...] | None) -> list[QueuedTask]:
        wanted = [*queue.dead] if ids is None else dict.fromkeys(ids)
        return [queue.dead.pop(one) for one in wanted if one in queue.dead]


def _info(namespace: str, name: str, queue: TaskQueue, now: float) -> QueueInfo:
    due = queue.due(now)
    held = [task.started for tasks in queue.held.values() for task in tasks.values()]
    return QueueInfo(
        namespace=namespace,
        name=name,
        waiting=due,
        scheduled=len(queue.free) - due,
        assigned=len(held) - sum(held),
        started=sum(held),
        dead=len(queue.dead),
        finished=len(queue.finished),
        oldest=now - queue.free[0].due if due else None,
    )


def unsupported(request: Request[Any], world: object) -> ConfigurationError | None:
    """Why a world cannot do it: it has queues, and neither tables nor functions."""
    place = getattr(request, "place", None)
    if isinstance(place, TablePlace):
        has_not = f"tables, and TableTasks asks for {place.table!r}"
    elif isinstance(place, FunctionPlace):
        has_not = f"functions, and FunctionTasks asks for those of the schema {place.schema!r}"
    else:
        return None
    return ConfigurationError(
        f"{world} has no {has_not}: use QueueTasks or testing.FakeSource there, or a server (embedded:///folder "
        f"starts one)"
    )
