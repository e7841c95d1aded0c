"""The queues of a `memory://` world with nothing wrong, and many that get one thing wrong.

Here live the mistakes, for `test_task_defects.py`, which says which case finds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from pgconcert.memory.ledger import Ledger
from pgconcert.memory.taskqueue import QueuedTask, TaskQueue
from pgconcert.memory.tasks import TaskBook
from pgconcert.store import Subject
from pgconcert.taskstore import (
    Enqueue,
    Move,
    Pick,
    QueuePlace,
    Recall,
    ReleaseTasks,
    TaskRow,
    Turn,
    Turned,
)


class Sound(TaskBook):
    """Nothing is wrong with it. A defect overrides something."""

    def __init__(self, wall: float = 0.0) -> None:
        ledger = Ledger(wall)
        super().__init__(wall, ledger)
        self.ledger = ledger
        self.requests = {kind: partial(self._handle, do) for kind, do in self.requests.items()}
        ledger._tasks = self
        ledger._carry_out |= self.requests

    def _handle(self, do: Callable[[Any, float], Any], request: Any, now: float) -> Any:
        changed = self.asked(request)
        return self.told(changed, do(changed, now), now)

    def asked(self, request: Any) -> Any:
        return request

    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer

    def queues(self) -> list[TaskQueue]:
        return [*self._queues.values()]


class PicksDifferently(Sound):
    def asked(self, request: Any) -> Any:
        pick = request.pick if isinstance(request, Turn) else None
        return request if pick is None else dataclasses.replace(request, pick=self.changed(pick))

    def changed(self, pick: Pick) -> Pick:
        return pick


# the share


class RoundsDown(PicksDifferently):
    def _picked(self, request: Turn, pick: Pick, queue: TaskQueue, turned: Turned, now: float) -> Turned:
        sessions = len({*self._owners.runners(request.runner, now)})
        outstanding = queue.due(now) + sum(map(len, queue.held.values()))
        return super()._picked(request, Pick(outstanding // max(sessions, 1), pick.start), queue, turned, now)


class SharesWithTheDead(Sound):
    def _picked(self, request: Turn, pick: Pick, queue: TaskQueue, turned: Turned, now: float) -> Turned:
        everybody = [entry for entry in self.ledger._entries if entry[:3] == request.runner[:3]]
        turned = super()._picked(request, pick, queue, turned, now)
        return dataclasses.replace(turned, sessions=len(everybody))


class SharesWithEverybody(Sound):
    def _picked(self, request: Turn, pick: Pick, queue: TaskQueue, turned: Turned, now: float) -> Turned:
        names = {entry[:3] for entry in self.ledger._entries if entry.kind == "runner"}
        everybody = [session for name in names for session in self._owners.runners(Subject(*name), now)]
        turned = super()._picked(request, pick, queue, turned, now)
        return dataclasses.replace(turned, sessions=len(everybody))


class KnowsNoCap(PicksDifferently):
    def changed(self, pick: Pick) -> Pick:
        return pick._replace(most=None)


class TheCapIsForEachPickUp(PicksDifferently):
    def _picked(self, request: Turn, pick: Pick, queue: TaskQueue, turned: Turned, now: float) -> Turned:
        mine = len(queue.held.get(request.session, ()))
        return super()._picked(request, pick._replace(resting=mine), queue, turned, now)


class KnowsNoRest(PicksDifferently):
    def changed(self, pick: Pick) -> Pick:
        return pick._replace(resting=0)


class StartsAll(PicksDifferently):
    def changed(self, pick: Pick) -> Pick:
        return pick._replace(start=1000)


class StartsNothing(PicksDifferently):
    def changed(self, pick: Pick) -> Pick:
        return pick._replace(start=0)


class CountsWhatIsNotDue(Sound):
    def _picked(self, request: Turn, pick: Pick, queue: TaskQueue, turned: Turned, now: float) -> Turned:
        turned = super()._picked(request, pick, queue, turned, now)
        return dataclasses.replace(turned, outstanding=turned.outstanding + len(queue.free) - queue.due(now))


class CountsWhatItReports(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        turned = super()._turn(request, now)
        gone = len(request.finished) + len(request.failed) + len(request.released)
        return dataclasses.replace(turned, outstanding=turned.outstanding + gone)


class PicksUpWhatItReports(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        first = super()._turn(dataclasses.replace(request, pick=None), now)
        if first.over or request.pick is None:
            return first
        then = super()._turn(Turn(**{f: getattr(request, f) for f in ("place", "runner", "session", "pick")}), now)
        return dataclasses.replace(
            then, started=first.started + then.started, refused=first.refused, died=first.died + then.died
        )


class NeverSaysWhen(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, next_in=None) if isinstance(answer, Turned) else answer


# starting


class StartsForAnybody(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        for queue in self.queues():
            for name in request.start:
                task = queue.tasks.get(name)
                if task is not None and task.session is not None and not task.started:
                    queue.assign(task, request.session)
        return super()._turn(request, now)


class StartsTwice(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        again = [
            TaskRow(name, task.attempt, task.payload)
            for queue in self.queues()
            for name in request.start
            if (task := queue.ours(request.session, name, True)) is not None
        ]
        turned = super()._turn(request, now)
        return dataclasses.replace(turned, started=(*again, *turned.started))


class StartsInItsOwnOrder(Sound):
    def asked(self, request: Any) -> Any:
        return (
            dataclasses.replace(request, start=tuple(sorted(request.start))) if isinstance(request, Turn) else request
        )


class CountsNoAttempts(Sound):
    def _start(self, task: QueuedTask) -> TaskRow:
        return super()._start(task)._replace(attempt=1)


class CountsFromNothing(Sound):
    def _start(self, task: QueuedTask) -> TaskRow:
        row = super()._start(task)
        return row._replace(attempt=row.attempt - 1)


# reports


class HearsAnybody(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        for queue in self.queues():
            for name in (*request.finished, *request.released, *(one.id for one in request.failed)):
                task = queue.tasks.get(name)
                if task is not None and task.started:
                    queue.assign(task, request.session)
                    task.started = True
        return super()._turn(request, now)


class HearsOfWhatIsNotStarted(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        for queue in self.queues():
            for name in (*request.finished, *request.released):
                task = queue.ours(request.session, name, False)
                if task is not None:
                    task.started = True
        return super()._turn(request, now)


class RefusesNothing(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, refused=()) if isinstance(answer, Turned) else answer


class FinishesAnywhere(Sound):
    def _finish(self, queue: TaskQueue, me: int, id: str, place: Any, now: float) -> bool:  # noqa: A002
        return any(super(FinishesAnywhere, self)._finish(one, me, id, place, now) for one in self.queues())


class NeverRests(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Turn):
            failed = tuple(one._replace(retry_in=0.0) for one in request.failed)
            return dataclasses.replace(request, failed=failed)
        return request


class ForgetsErrors(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Turn):
            return dataclasses.replace(request, failed=tuple(one._replace(error="") for one in request.failed))
        return request


class ReleasedIsFailed(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        for queue in self.queues():
            for name in request.released:
                task = queue.ours(request.session, name, True)
                if task is not None:
                    task.attempt += 1
        return super()._turn(request, now)


class NobodyDies(Sound):
    def _start(self, task: QueuedTask) -> TaskRow:
        task.attempts = max(task.attempts, task.attempt + 2)
        return super()._start(task)


class DiesInSilence(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, died=()) if isinstance(answer, Turned) else answer


class DiesTooEarly(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Enqueue):
            return dataclasses.replace(request, tasks=tuple(new._replace(attempts=1) for new in request.tasks))
        return request


# who is over


class InheritsNothing(Sound):
    def _inherited(self, queue: TaskQueue, me: int, need: int, now: float) -> tuple[list[QueuedTask], list[str]]:
        return [], []


class InheritsFromTheLiving(Sound):
    def _inherited(self, queue: TaskQueue, me: int, need: int, now: float) -> tuple[list[QueuedTask], list[str]]:
        others = [task for session in [*queue.held] if session != me for task in queue.of(session)]
        return others[:need], []


class CrashesForEver(Sound):
    def _inherited(self, queue: TaskQueue, me: int, need: int, now: float) -> tuple[list[QueuedTask], list[str]]:
        for session in [*queue.held]:
            for task in queue.of(session):
                task.attempts = max(task.attempts, task.attempt + 1)
        return super()._inherited(queue, me, need, now)


class ACrashKillsAll(Sound):
    def _inherited(self, queue: TaskQueue, me: int, need: int, now: float) -> tuple[list[QueuedTask], list[str]]:
        for session in [*queue.held]:
            if session != me and not self._owners.lives(session, now):
                for task in queue.of(session):
                    task.attempt = task.attempts
        return super()._inherited(queue, me, need, now)


class ADeathWithoutAWord(Sound):
    def _inherited(self, queue: TaskQueue, me: int, need: int, now: float) -> tuple[list[QueuedTask], list[str]]:
        taken, died = super()._inherited(queue, me, need, now)
        for name in died:
            queue.dead[name].error = None
        return taken, died


class ListensToTheDead(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        return dataclasses.replace(super()._turn(request, now), over=False)


class FinishesForTheDead(Sound):
    def _turn(self, request: Turn, now: float) -> Turned:
        for queue in self.queues():
            for one in request.finished:
                self._finish(queue, request.session, one, request.place, now)
        return super()._turn(dataclasses.replace(request, finished=()), now)


class MovesForTheDead(Sound):
    def _move(self, request: Move, now: float) -> tuple[str, ...]:
        for queue in self.queues():
            for giver, _ in request.moves:
                if not self._owners.lives(request.session, now) and (tasks := queue.of(giver)):
                    return tuple(str(task.id) for task in tasks)
        return super()._move(request, now)


class ReleasesForTheLiving(Sound):
    def _release(self, request: ReleaseTasks, now: float) -> int:
        return super()._release(request, now) if self._owners.lives(request.session, now) else 0


class ReleasesEverywhere(Sound):
    def _release(self, request: ReleaseTasks, now: float) -> int:
        places = [QueuePlace(*name) for name in [*self._queues]]
        return sum(
            super(ReleasesEverywhere, self)._release(ReleaseTasks(place=p, session=request.session), now)
            for p in places
        )


class ReleasesWithTheAttempt(Sound):
    def _release(self, request: ReleaseTasks, now: float) -> int:
        for task in self._at(request.place, now).of(request.session, True):
            task.attempt += 1
        return super()._release(request, now)


class RecallsEverything(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, keep=()) if isinstance(request, Recall) else request


class RecallsWhatIsAssigned(Sound):
    def _recall(self, request: Recall, now: float) -> tuple[str, ...]:
        started = [str(task.id) for task in self._at(request.place, now).of(request.session, True)]
        return super()._recall(dataclasses.replace(request, keep=(*request.keep, *started)), now)


class RecallsWithTheAttempt(Sound):
    def _recall(self, request: Recall, now: float) -> tuple[str, ...]:
        for task in self._at(request.place, now).of(request.session, True):
            task.attempt += 1
        return super()._recall(request, now)


class RecallsForTheDead(Sound):
    def _recall(self, request: Recall, now: float) -> tuple[str, ...]:
        return tuple(
            str(task.id)
            for task in self._at(request.place, now).of(request.session)
            if str(task.id) not in request.keep
        )
