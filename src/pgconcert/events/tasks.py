"""What happens to runners and to the tasks that they share."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from .stream import Event

__all__ = [
    "RunnerAdvised",
    "RunnerFailed",
    "RunnerSessionEnded",
    "RunnerSessionLost",
    "RunnerSessionStarted",
    "TaskDied",
    "TasksBegun",
    "TasksDone",
    "TasksMoved",
    "TasksRefused",
]

RunnerStep = Literal[
    "find source", "start session", "bump session", "get work", "run tasks", "finish tasks", "end session"
]
"""Where a runner can fail: the code of ``RunnerFailed``."""


@dataclass(frozen=True, kw_only=True)
class RunnerAdvised(Event):
    """A runner works, and its source could be faster: an index is missing, say. ``advice`` is a sentence that says what
    to do. Told once for each source that a runner begins with."""

    runner: str
    advice: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"runner {self.runner!r}: {self.advice}"


@dataclass(frozen=True, kw_only=True)
class RunnerSessionStarted(Event):
    """A runner has a session from now on. ``duration``: seconds that it took to start it (a span *start session*)."""

    runner: str
    session: int
    duration: float

    def __str__(self) -> str:
        return f"runner {self.runner!r} has session {self.session}"


@dataclass(frozen=True, kw_only=True)
class RunnerSessionEnded(Event):
    """A runner has ended its session; all that it had is for others. ``duration``: seconds that it took to release the
    tasks and to end it (a span *end session*)."""

    runner: str
    session: int
    duration: float

    def __str__(self) -> str:
        return f"runner {self.runner!r} ended session {self.session}"


@dataclass(frozen=True, kw_only=True)
class RunnerSessionLost(Event):
    """The session of a runner is over or trusted no longer; ``tasks`` that were being done belong to others, and their
    work was cancelled. The runner begins another session."""

    runner: str
    session: int
    tasks: int
    reason: str

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"runner {self.runner!r} lost session {self.session} with {self.tasks} tasks under way: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class TasksBegun(Event):
    """Tasks were handed to the tasker: the begin of a span *doing work*, whose end has the same ``work``."""

    runner: str
    session: int
    work: int
    tasks: int

    @property
    def level(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"runner {self.runner!r} has begun {self.tasks} tasks"


@dataclass(frozen=True, kw_only=True)
class TasksDone(Event):
    """The tasker has ended, after ``duration`` seconds; of ``tasks``, so many were ``completed``. ``error``: what it
    raised. Rate, duration and errors of the work are read from these."""

    runner: str
    session: int
    work: int
    tasks: int
    completed: int
    duration: float
    error: str | None = None

    @property
    def level(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"runner {self.runner!r} completed {self.completed} of {self.tasks} tasks in {self.duration:.3f} s"


@dataclass(frozen=True, kw_only=True)
class RunnerFailed(Event):
    """Something a runner did has failed: ``code`` says what, ``error`` why. It is tried again after about ``retry_in``
    seconds; of *run tasks*, that is when its tasks may be run again."""

    runner: str
    code: RunnerStep
    error: str
    retry_in: float
    session: int | None = None

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"runner {self.runner!r} failed to {self.code}: {self.error}; again in {self.retry_in:.3f} s"


@dataclass(frozen=True, kw_only=True)
class TasksRefused(Event):
    """Tasks that were completed could not be finished, because they belong to another session, or to nobody: they may
    be, or have been, done twice. ``ids``: the first hundred of ``tasks``."""

    runner: str
    session: int
    tasks: int
    ids: tuple[str, ...]

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return (
            f"runner {self.runner!r}: {self.tasks} completed tasks were not ours any more when session {self.session} "
            f"reported them: {', '.join(self.ids[:10])}{', ...' if self.tasks > 10 else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class TaskDied(Event):
    """The attempts of a task of a queue are used up; it is kept as dead (``pgconcert tasks list --state dead``)."""

    runner: str
    task: str

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"runner {self.runner!r}: the attempts of task {self.task} are used up"


@dataclass(frozen=True, kw_only=True)
class TasksMoved(Event):
    """Tasks that others had and had not begun were moved here, because our share was smaller than theirs."""

    runner: str
    session: int
    tasks: int

    @property
    def level(self) -> int:
        return logging.DEBUG

    def __str__(self) -> str:
        return f"runner {self.runner!r} took over {self.tasks} tasks that others had not begun"
