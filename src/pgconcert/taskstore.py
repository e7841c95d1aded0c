"""What is asked of a ``Store`` about tasks: places where tasks are, and requests about them. No backend stands here.

A *place* is data: a queue of our own tables, a table of the application, or a schema with the functions of
go-session-lock. A *runner* is an entry of kind *runner* that hangs on a session of its own (``store.py``): so those of
one name that live can be counted, and every task belongs to a session. The rules, from which it follows that no task is
with two sessions that live, and that none is forgotten:

1. The state of a task stands in its session column. Null: *free*. ``-s``: *assigned* to the session ``s``, which has
   not begun it. ``s``: *started*, handed to the tasker of ``s``. Where attempts are counted, starting counts one.
2. *Outstanding* is what is not finished; *due*, what is outstanding and may be run now. Free and due tasks are picked
   up by whoever needs them, in their order, and what others have locked is skipped: nobody waits, and there is no lock
   for all. A task that belongs to a session that is not alive counts as free; but a session that is over and not ended
   is *ended* first, under the lock of its row, where its time is looked at again (rule 3 of ``store.py``). A session
   that is not there at all is dead if the same snapshot has a task that names it.
3. A pick-up takes at most ``ceil(outstanding / sessions)``, at most ``most`` (the cap), less what the session has.
   ``sessions`` counts the living runners of that name, ``outstanding`` is counted up to ``sessions * most``.
4. *Assigned* becomes *started* by the owner's own conditional update, and only then is a task handed out. What is
   assigned may be moved to another session by that session (``Move``), conditionally too: so one of the two wins. What
   is started never moves while its session lives.
5. Finished, failed, released: each is a conditional update or delete, which demands that the task is started by this
   session and that this session is alive. What does not meet that is *refused*, and told.
6. Nothing of it costs more with tasks that have finished, sessions that are over, or outstanding tasks that are not
   picked up.
7. An answer that is lost leaves the asker in doubt. It asks again for what it reported (which then may be refused
   though it was done), and recalls (``Recall``) what its session has and it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .store import Request, Subject

__all__ = [
    "BumpWork",
    "CheckPlace",
    "DiscardTasks",
    "EndWork",
    "Enqueue",
    "Failure",
    "FinishWork",
    "FunctionPlace",
    "GetWork",
    "Held",
    "LookAtQueues",
    "LookAtShares",
    "LookAtTasks",
    "Move",
    "NewTask",
    "Pick",
    "Place",
    "QueueInfo",
    "QueuePlace",
    "Recall",
    "ReleaseTasks",
    "RetryTasks",
    "StartWork",
    "TablePlace",
    "TaskInfo",
    "TaskRow",
    "TaskState",
    "Turn",
    "Turned",
    "wake_subject",
]

TaskState = Literal["waiting", "scheduled", "assigned", "started", "dead", "finished"]
"""Of a task in a queue. *scheduled*: it is not due yet. *dead*: its attempts are used up. *finished*: kept for a while.
What belongs to a session that is over looks as it was, until somebody takes it."""


class QueuePlace(NamedTuple):
    """A queue in our own tables. ``retention``: seconds for which finished tasks are kept; 0: they are deleted."""

    namespace: str
    name: str
    retention: float = 0.0


class TablePlace(NamedTuple):
    """A table of the application, in the database of the store. All texts but ``session`` are SQL, put into statements
    as they are: they come from the program, never from data.

    ``table``: its name, as in SQL, qualified or found by the search path of the role. ``id``: its unique column.
    ``where``: what is outstanding and due, over columns of the table, which is called ``t``. ``order_by``: which comes
    first. ``finish``: assignments for ``update ... set``, which make ``where`` false; ``"delete"``: the row is deleted.
    ``session``: the column of the session, a ``bigint``."""

    table: str
    id: str
    where: str
    order_by: str
    finish: str
    session: str = "session_id"


class FunctionPlace(NamedTuple):
    """A schema that has the functions of go-session-lock. ``id``: the column of ``session_task`` that names a task."""

    schema: str
    id: str = "id"


Place = QueuePlace | TablePlace


class TaskRow(NamedTuple):
    """A task that was handed out. ``attempt``: which one this is, from 1; 0 where they are not counted. ``payload``:
    bytes of a queue; of a table or of functions a mapping from columns to values."""

    id: str
    attempt: int
    payload: bytes | Mapping[str, Any]


class Failure(NamedTuple):
    """A task that was not completed. In a queue it is free again and due after ``retry_in`` seconds, or dead if its
    attempts are used up. In a table it is assigned to its session again, which lets it rest. ``error``: for people."""

    id: str
    error: str
    retry_in: float


class Pick(NamedTuple):
    """What a pick-up is asked for. ``most``: the cap of a session, ``None``: none. ``start``: how many of those picked
    up are started at once; the rest is assigned. ``resting``: how many of ours are not counted, because they rest."""

    most: int | None
    start: int
    resting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Request["Turned"]):
    """Everything that a runner has to say and to ask, in one transaction. Report what was ``finished``, ``failed`` and
    ``released`` (free again, the attempt not counted), start what is assigned (``start``, in this order, as far as it
    is still ours), then ``pick`` up more. What was reported counts as gone when the share is computed.

    ``runner``: our entry; all of its kind, namespace and name share."""

    place: Place
    runner: Subject
    session: int
    finished: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    released: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    pick: Pick | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """``over``: our session is not alive; nothing was done, and all else is empty.

    ``started``: handed out now, first those of ``start``, in their order. ``assigned``: picked up and not started, in
    order. ``refused``: reported, and not ours. ``died``: dead now, of those that failed and of those that were found
    with sessions that are over. With ``pick``: ``sessions`` that live and share, ``outstanding`` (counted up to the
    bound), ``share``: what we may have; ``next_in``: seconds until the first that is not due will be, if that is known
    and there is one (a queue)."""

    over: bool = False
    started: tuple[TaskRow, ...] = ()
    assigned: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    died: tuple[str, ...] = ()
    sessions: int = 0
    outstanding: int = 0
    share: int = 0
    next_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall(Request["tuple[str, ...]"]):
    """All that our session has besides ``keep``, in order; what was started of it is assigned again, and its attempt
    not counted. Empty if the session is not alive."""

    place: Place
    session: int
    keep: tuple[str, ...] = ()


class Held(NamedTuple):
    """What a session has of a place."""

    session: int
    assigned: int
    started: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtShares(Request["tuple[Held, ...]"]):
    """What each living runner of this name has, by session; those that have nothing too."""

    place: Place
    runner: Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Request["tuple[str, ...]"]):
    """Move assigned tasks to our session: of each session in ``moves`` at most so many, those that come last first. The
    answer has those that are ours now, in their order. Nothing moves if our session is not alive."""

    place: Place
    session: int
    moves: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTasks(Request[int]):
    """Everything that the session has of the place is free: how many. Also if the session is over."""

    place: Place
    session: int


@dataclass(frozen=True, slots=True)
class CheckPlace(Request["tuple[str, ...]"]):
    """Whether tasks can be shared there. Fails with ``ConfigurationError``, which names what is missing and the command
    that helps. The answer has advice: what would make it faster (an index that is missing), a sentence each."""

    place: Place | FunctionPlace


class NewTask(NamedTuple):
    """``run_at``: not before, by the server's clock, in seconds since 1970; ``run_in``: not before so many seconds from
    now; neither: at once. ``attempts``: after how many it is dead."""

    payload: bytes
    run_at: float | None = None
    run_in: float | None = None
    attempts: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueue(Request["tuple[str, ...]"]):
    """Put tasks into a queue, all or none: their ids, in order. A lost answer: nobody knows; asking again may put them
    there twice."""

    place: QueuePlace
    tasks: tuple[NewTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtQueues(Request["tuple[QueueInfo, ...]"]):
    """The queues of a namespace (or of all), or one, by name. A queue is there while it has a row."""

    namespace: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """How many tasks of each state; ``oldest``: for how many seconds the first of those that wait has been due."""

    namespace: str
    name: str
    waiting: int
    scheduled: int
    assigned: int
    started: int
    dead: int
    finished: int
    oldest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtTasks(Request["tuple[TaskInfo, ...]"]):
    """Tasks of a queue, of one state or all, in their order, at most ``limit``."""

    place: QueuePlace
    state: TaskState | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task of a queue, as anybody may see it. ``run_at``, ``created`` and ``finished`` by the server's clock, in
    seconds since 1970; ``session``: to which it belongs; ``error``: of the last attempt that failed."""

    id: str
    state: TaskState
    payload: bytes
    attempt: int
    attempts: int
    created: float
    run_at: float | None
    session: int | None
    error: str | None
    finished: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTasks(Request[int]):
    """Dead tasks are due at once, with as many attempts as at first: those named, or all. How many."""

    place: QueuePlace
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardTasks(Request[int]):
    """Dead tasks are deleted: those named, or all. How many."""

    place: QueuePlace
    ids: tuple[str, ...] | None = None


def wake_subject(place: Place, namespace: str) -> Subject:
    """Who is woken when there is something new at a place. ``namespace`` is that of the coordinator."""
    if isinstance(place, QueuePlace):
        return Subject("queue", place.namespace, place.name)
    return Subject("queue", namespace, f"table {place.table}")


# go-session-lock: what its functions do, with sessions of their own. Answers with None or False: SQLSTATE SL001, the
# session is not there or over.


@dataclass(frozen=True, slots=True)
class StartWork(Request[int]):
    """``start_session``."""

    place: FunctionPlace


@dataclass(frozen=True, slots=True)
class BumpWork(Request[bool]):
    """``bump_session``."""

    place: FunctionPlace
    session: int


@dataclass(frozen=True, slots=True)
class EndWork(Request[None]):
    """``end_session``."""

    place: FunctionPlace
    session: int


@dataclass(frozen=True, slots=True)
class GetWork(Request["tuple[TaskRow, ...] | None"]):
    """``get_work``: all that the session has now. ``most``: the cap."""

    place: FunctionPlace
    session: int
    most: int | None


@dataclass(frozen=True, slots=True)
class FinishWork(Request["tuple[str, ...] | None"]):
    """``finish_tasks`` of those that are the session's, which is looked at and renewed in the same transaction: which
    were."""

    place: FunctionPlace
    session: int
    ids: tuple[str, ...]
