"""How a tasker is called, and what its answer means. Nothing here speaks to a source.

Theory. An async tasker runs on the loop, in the task of its call. Any other runs in a thread, and so do ``make`` and
the reading of what it returned, because a generator works while it is read; if it returned something that can be
awaited, that is awaited on the loop. Whatever it raises is the outcome of the call, and never leaves by another way, so
no thread and no task dies of it. A cancellation that nobody asked for is an error like any other.

A thread cannot be cancelled. A call that has lost its tasks keeps its place until its thread has returned; it says so
to whoever looks at ``task.lost``, and what it completes then is no longer ours to finish.

What cannot be read or made (a payload that is an exception) has failed, and the tasker does not see it. If nothing is
left, the tasker is not called.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ..errors import ConfigurationError, given
from ..events.stream import GOES_ON
from .shift import Shift
from .task import Task

__all__ = ["Answer", "Call", "InThread", "Make", "Outcome", "Tasker", "Work", "completed", "inside", "shown"]

T = TypeVar("T")

Answer = Iterable[Task | str] | bool | None
"""What a tasker returns."""

Tasker = Callable[[list[Task]], Awaitable[Answer] | Answer] | Callable[[Task], Awaitable[Answer] | Answer]
"""Does the work: async or plain. It gets a list of tasks, or one with ``per_task``."""

Make = Callable[[Mapping[str, Any]], Any]


class InThread(Protocol):
    """Runs a plain function in a thread, and returns what it returned."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


MOST_ERROR: Final = 2_000
"""How many characters of an error are kept with a task."""

_LEFT: Final = "the tasker did not complete it"


class Call:
    """Tasks in the hands of a tasker. ``make`` makes payloads of rows."""

    __slots__ = ("began", "in_thread", "make", "number", "reason", "released", "shift", "task", "tasks")

    def __init__(self, number: int, shift: Shift, tasks: tuple[Task, ...], make: Make | None, began: float) -> None:
        self.number = number
        self.shift = shift
        self.tasks = tasks
        self.make = make
        self.began = began
        self.reason: str | None = None
        """Why its tasks are not ours any more, or not for long."""
        self.in_thread = False
        """Whether it cannot be cancelled now."""
        self.released = False
        """Whether its tasks were given back before it had ended."""
        self.task: asyncio.Task[Outcome] | None = None
        for task in tasks:
            task._lost = self.lost

    def lost(self) -> str | None:
        """Why its tasks are lost; from any thread."""
        return self.reason or self.shift.lost

    def is_to_end(self) -> bool:
        """Whether it was told to end."""
        return self.reason is not None

    def cancel(self, reason: str) -> None:
        """End it, if that can be done; a thread finds out when it asks."""
        if self.reason is None:
            self.reason = reason
            if self.task is not None and not self.in_thread:
                self.task.cancel()


Spoilt = tuple[tuple[Task, str], ...]
"""Tasks, and why each of them has failed."""


class Outcome(NamedTuple):
    """What a call came to. ``error``: what the tasker raised; ``spoilt``: of the first task that could not be read or
    made, why. ``cancelled``: it was ended by us, and nobody knows how far it got."""

    completed: tuple[Task, ...] = ()
    failed: Spoilt = ()
    error: BaseException | None = None
    spoilt: str | None = None
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class _Later:
    """The tasker returned something to be awaited."""

    awaitable: Awaitable[Any]
    tasks: tuple[Task, ...]
    spoilt: Spoilt


_INSIDE: contextvars.ContextVar[tuple[Call, ...]] = contextvars.ContextVar("pgconcert_calls", default=())


def inside() -> tuple[Call, ...]:
    """The calls in which the running task or thread is, or in which it was begun."""
    return _INSIDE.get()


class Work:
    """Calls one tasker."""

    def __init__(self, tasker: Tasker, *, per_task: bool, in_thread: InThread) -> None:
        wrong: object = tasker
        if not callable(wrong):
            raise ConfigurationError(f"a tasker is a function of a list of tasks, not {given(wrong)}")
        if _is(inspect.isasyncgenfunction, tasker):
            raise ConfigurationError(
                f"{given(tasker)} is an async generator; a tasker is an async or plain function that returns what is "
                "completed"
            )
        self._tasker: Callable[[Any], Any] = tasker
        self._per_task = per_task
        self._in_thread = in_thread
        self._is_async = _is(inspect.iscoroutinefunction, tasker)

    async def do(self, call: Call) -> Outcome:
        """Run a call, in a task of its own. It never raises, except that it was cancelled by us or with us."""
        _INSIDE.set((*_INSIDE.get(), call))
        if self._is_async:
            result = self._begin(call)
        else:
            context = contextvars.copy_context()
            call.in_thread = True
            try:
                result = await self._in_thread(lambda: context.run(self._begin, call))
            except Exception as error:  # no thread can be begun
                return _raised(call.tasks, (), error)
            finally:
                call.in_thread = False
        if isinstance(result, Outcome):
            return result
        if call.is_to_end():
            if inspect.iscoroutine(result.awaitable):
                result.awaitable.close()
            return Outcome(cancelled=True)
        try:
            answer = await result.awaitable
            return _outcome(result.tasks, completed(result.tasks, answer, per_task=self._per_task), result.spoilt)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if call.is_to_end() or (task is not None and task.cancelling()):
                raise
            return _raised(result.tasks, result.spoilt, error)
        except BaseException as error:
            return _raised(result.tasks, result.spoilt, error)

    def _begin(self, call: Call) -> Outcome | _Later:
        """Call the tasker: on the loop if it is async, else in a thread."""
        if call.is_to_end():
            return Outcome(cancelled=True)
        tasks = call.tasks
        spoilt: Spoilt = ()
        try:
            tasks, spoilt = _made(call)
            if not tasks:
                return _outcome((), (), spoilt)
            answer = self._tasker(self._argument(tasks))
            if inspect.isawaitable(answer):
                return _Later(answer, tasks, spoilt)
            return _outcome(tasks, completed(tasks, answer, per_task=self._per_task), spoilt)
        except BaseException as error:
            return _raised(tasks, spoilt, error)

    def _argument(self, tasks: tuple[Task, ...]) -> list[Task] | Task:
        return tasks[0] if self._per_task else [*tasks]


def completed(tasks: Sequence[Task], answer: object, *, per_task: bool) -> tuple[Task, ...]:
    """What is completed, by the answer of a tasker that got these. Raises ``TypeError`` and ``ValueError`` for an
    answer that says nothing about them."""
    if answer is None:
        return tuple(tasks)
    if per_task:
        if isinstance(answer, bool):
            return tuple(tasks) if answer else ()
        raise TypeError(f"a tasker of one task returns None or True for completed, or False, not {given(answer)}")
    if isinstance(answer, (bool, str, bytes, Task)) or not isinstance(answer, Iterable):
        raise TypeError(f"a tasker returns None for all, or an iterable of tasks or ids, not {given(answer)}")
    handed = {task.id: task for task in tasks}
    done: dict[str, Task] = {}
    for one in answer:
        name: object = one.id if isinstance(one, Task) else one
        if not isinstance(name, str):
            raise TypeError(f"a tasker returns tasks or their ids, which are texts, not {given(one)}")
        if name not in handed:
            raise ValueError(f"the tasker returned task {name!r:.100}, which was not handed to this call")
        done[name] = handed[name]
    return tuple(done.values())


def _made(call: Call) -> tuple[tuple[Task, ...], Spoilt]:
    """The tasks that can be handed out, and those that cannot."""
    make = call.make
    good: list[Task] = []
    spoilt: list[tuple[Task, str]] = []
    for task in call.tasks:
        try:
            if isinstance(task.payload, Exception):
                raise task.payload
            if make is not None:
                task.payload = make(task.payload)
        except GOES_ON:
            raise
        except BaseException as error:
            spoilt.append((task, shown(error)))
        else:
            good.append(task)
    return tuple(good), tuple(spoilt)


def _outcome(tasks: tuple[Task, ...], done: tuple[Task, ...], spoilt: Spoilt) -> Outcome:
    known = {task.id for task in done}
    left = tuple((task, _LEFT) for task in tasks if task.id not in known)
    return Outcome(done, (*left, *spoilt), spoilt=spoilt[0][1] if spoilt else None)


def _raised(tasks: Iterable[Task], spoilt: Spoilt, error: BaseException) -> Outcome:
    why = shown(error)
    return Outcome((), (*((task, why) for task in tasks), *spoilt), error, spoilt[0][1] if spoilt else None)


def shown(error: BaseException) -> str:
    """An error as a text that any store can keep."""
    name = type(error).__name__
    try:
        said = str(error)
    except Exception:
        return name
    text = f"{name}: {said}" if said else name
    return text[:MOST_ERROR].replace("\0", "\\0").encode(errors="backslashreplace").decode()


def _is(what: Callable[[object], bool], tasker: object) -> bool:
    return what(tasker) or what(getattr(tasker, "__call__", None))  # noqa: B004
