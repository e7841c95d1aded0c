"""The queues of a `memory://` world that show, keep or move tasks wrongly.

Here live mistakes, for `test_task_defects.py`, which says which case finds them; those of turns are in
`taskdefects.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pgconcert.memory.taskqueue import QueuedTask, TaskQueue
from pgconcert.taskstore import (
    DiscardTasks,
    Enqueue,
    Held,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    RetryTasks,
)
from tests.conformance.taskdefects import Sound

# the balance


class ShowsNoIdleRunner(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, LookAtShares):
            return tuple(one for one in answer if one.assigned or one.started)
        return answer


class ShowsTheShareOfTheDead(Sound):
    def _look_at_shares(self, request: LookAtShares, now: float) -> tuple[Held, ...]:
        queue = self._at(request.place, now)
        seen = super()._look_at_shares(request, now)
        lives = {one.session for one in seen}
        return (*seen, *(Held(session, len(tasks), 0) for session, tasks in queue.held.items() if session not in lives))


class ConfusesTheKindsOfWork(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, LookAtShares):
            return tuple(Held(one.session, one.started, one.assigned) for one in answer)
        return answer


class MovesWhatIsStarted(Sound):
    def _move(self, request: Move, now: float) -> tuple[str, ...]:
        queue = self._at(request.place, now)
        for giver, _ in request.moves:
            if giver != request.session:
                for task in queue.of(giver, True):
                    task.started = False
        return super()._move(request, now)


class MovesTheFirst(Sound):
    def _move(self, request: Move, now: float) -> tuple[str, ...]:
        queue = self._at(request.place, now)
        moved = [
            task for giver, most in request.moves if giver != request.session for task in queue.of(giver, False)[:most]
        ]
        for task in moved:
            queue.assign(task, request.session)
        return tuple(str(task.id) for task in moved)


class MovesAll(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Move):
            return dataclasses.replace(request, moves=tuple((giver, 1000) for giver, _ in request.moves))
        return request


class MovesOutOfOrder(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer[::-1] if isinstance(request, Move) else answer


# queues


class UnderstandsPayloads(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Enqueue):
            new = (one._replace(payload=one.payload.decode(errors="replace").encode()) for one in request.tasks)
            return dataclasses.replace(request, tasks=tuple(new))
        return request


class OneIdForAll(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer[:1] * len(answer) if isinstance(request, Enqueue) else answer


class PutsBackwards(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer[::-1] if isinstance(request, Enqueue) else answer


class FirstPutFirstServed(Sound):
    def _enqueue(self, request: Enqueue, now: float) -> tuple[str, ...]:
        new = (one._replace(run_at=None) if (one.run_at or 0.0) <= now + self._wall else one for one in request.tasks)
        return super()._enqueue(dataclasses.replace(request, tasks=tuple(new)), now)


class EverythingIsDue(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Enqueue):
            return dataclasses.replace(
                request, tasks=tuple(one._replace(run_at=None, run_in=None) for one in request.tasks)
            )
        return request


class NothingFallsDue(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Enqueue):
            new = (one._replace(run_in=one.run_in and one.run_in + 3600) for one in request.tasks)
            return dataclasses.replace(request, tasks=tuple(new))
        return request


class LooksWithoutALimit(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, limit=10**6) if isinstance(request, LookAtTasks) else request


class LooksAtEveryState(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, state=None) if isinstance(request, LookAtTasks) else request


class LooksBackwards(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer[::-1] if isinstance(request, LookAtTasks) else answer


class WhatTheDeadHadIsFree(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, LookAtTasks):
            return tuple(
                one
                if one.session is None or self._owners.lives(one.session, now)
                else dataclasses.replace(one, state="waiting", session=None)
                for one in answer
            )
        return answer


class CountsTheDeadAsWaiting(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, LookAtQueues):
            return tuple(dataclasses.replace(one, waiting=one.waiting + one.dead) for one in answer)
        return answer


class FoldsNames(Sound):
    def _at(self, place: Any, now: float) -> TaskQueue:
        return super()._at(place._replace(name=place.name.strip().lower()), now)


class OneNamespace(Sound):
    def _at(self, place: Any, now: float) -> TaskQueue:
        return super()._at(place._replace(namespace=""), now)


class ListsWhatIsEmpty(Sound):
    def _look_at_queues(self, request: LookAtQueues, now: float) -> Any:
        for queue in self.queues():
            queue.tasks.setdefault("", QueuedTask(0, b"", 1, 0.0, 0.0))
        try:
            return super()._look_at_queues(request, now)
        finally:
            for queue in self.queues():
                queue.tasks.pop("", None)


class RetriesAll(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, ids=None) if isinstance(request, RetryTasks) else request


class DiscardsAll(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, ids=None) if isinstance(request, DiscardTasks) else request


class TakesNoneForAll(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, RetryTasks | DiscardTasks):
            return dataclasses.replace(request, ids=request.ids or None)
        return request


class RetriesOnce(Sound):
    def _dead(self, queue: TaskQueue, ids: tuple[str, ...] | None) -> list[QueuedTask]:
        tasks = super()._dead(queue, ids)
        for task in tasks:
            task.attempts = 1
        return tasks


class KeepsNothing(Sound):
    def _finish(self, queue: TaskQueue, me: int, id: str, place: Any, now: float) -> bool:  # noqa: A002
        return super()._finish(queue, me, id, place._replace(retention=0.0), now)


class KeepsForEver(Sound):
    def _finish(self, queue: TaskQueue, me: int, id: str, place: Any, now: float) -> bool:  # noqa: A002
        return super()._finish(queue, me, id, place._replace(retention=place.retention and 1e9), now)


class KeepsEverything(Sound):
    def _finish(self, queue: TaskQueue, me: int, id: str, place: Any, now: float) -> bool:  # noqa: A002
        return super()._finish(queue, me, id, place._replace(retention=place.retention or 1e9), now)


class ForgetsWhoFinished(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, LookAtTasks):
            return tuple(dataclasses.replace(one, session=None) if one.state == "finished" else one for one in answer)
        return answer


class ThroughTheConnection(Sound):
    """Sessions die with it; see ``place``."""
