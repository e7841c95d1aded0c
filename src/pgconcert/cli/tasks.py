"""``pgconcert tasks``: looks at queues, puts tasks into them, and decides about those that are dead. Here live the
commands; how queues look stands in ``task_table.py``, how lines become tasks in ``task_lines.py``; ``worker.py`` works
on them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import Any, Final, TypeVar, get_args

import click

from ..errors import KeyInvalid, LinkLost
from ..keys import KeySpace
from ..tasks.newtask import MAX_LOOK, queue_place
from ..tasks.queue import AsyncTaskQueue
from ..tasks.sources import DEFAULT_ATTEMPTS, MAX_ATTEMPTS
from ..taskstore import QueueInfo, TaskState
from .console import make_console
from .messaging import (
    UNCERTAIN,
    Signals,
    Target,
    check_json,
    execute,
    opened,
    read_payload,
    say,
    schema_option,
    write_all,
)
from .target import direct_url_option, namespace_option, url_option
from .task_lines import TaskLines
from .task_table import print_queues, print_tasks, queue_as_json, task_as_json

__all__ = ["command"]

_VERSION: Final = 1
_NOTHING: Final = 3

_CODES: Final = """\
   69  the server could not be reached
   70  something failed that should not (the server refused a statement, say)
   78  the configuration is wrong (no address, no tables, ...)
128+n  signal n came
"""

F = TypeVar("F", bound=Callable[..., Any])


def _where(function: F) -> F:
    made: Any = function
    for decorate in (schema_option, namespace_option, direct_url_option, url_option):
        made = decorate(made)
    return made  # type: ignore[no-any-return]


json_option: Final = click.option(
    "--json", "for_programs", is_flag=True, help="One JSON object; see the documentation."
)


def _queue(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else queue_place(KeySpace(), value).name
    except KeyInvalid as error:
        raise click.BadParameter(str(error)) from error


queue_argument: Final = click.argument("queue", metavar="QUEUE", callback=_queue)
ids_argument: Final = click.argument("ids", metavar="[ID]...", nargs=-1)


@click.group(
    epilog="""\b
Examples:
  pgconcert tasks stats
  pgconcert tasks list mail --state dead
  pgconcert tasks retry mail --all
  pgconcert tasks enqueue mail '{"to": "ann@example.org"}'
  pgconcert worker mail:send --queue mail            works on them
"""
)
def command() -> None:
    """Look at queues of tasks, put tasks into them, and decide about the dead ones.

    They need our tables: pgconcert schema apply.
    """


# looking


@command.command(
    "list",
    epilog=f"""\b
Examples:
  pgconcert tasks list mail
  pgconcert tasks list mail --state dead --limit 1000
  pgconcert tasks list mail --state dead --json | jq -r '.tasks[].error'

\b
Exit code:
    0  done, also if there is none
    2  the call is wrong
{_CODES}""",
)
@queue_argument
@click.option("--state", type=click.Choice(get_args(TaskState)), help="Only those.  [default: all]")
@click.option(
    "--limit", type=click.IntRange(1, MAX_LOOK), default=100, show_default=True, metavar="N", help="At most so many."
)
@json_option
@_where
def list_(queue: str, state: TaskState | None, limit: int, for_programs: bool, **where: Any) -> None:
    """Show the tasks of QUEUE, in the order in which they are run.

    waiting: due, and nobody's. scheduled: not due yet. assigned: some runner's, not begun. started: handed to its
    function. dead: the attempts are used up. finished: kept for a while, if --retention of its worker says so. What
    belongs to a runner that has died looks as it was, until another one takes it.
    """

    async def work(_: Signals) -> int:
        async with opened(_target("list", where)) as coordinator:
            tasks = await coordinator.queue(queue).tasks(state, limit)
        if for_programs:
            found = [task_as_json(task) for task in tasks]
            await _tell({"version": _VERSION, "namespace": where["namespace"], "queue": queue, "tasks": found})
        elif tasks:
            print_tasks(make_console(), tasks)
            if len(tasks) == limit:
                say(f"these are the first {limit}; there may be more: --limit")
        else:
            say(f"there is no {f'{state} task' if state else 'task'} in queue {queue!r}{_in(where)}")
        return 0

    execute(work)


@command.command(
    epilog=f"""\b
Examples:
  pgconcert tasks stats
  pgconcert tasks stats mail
  pgconcert tasks stats --json | jq '.queues[] | select(.dead > 0) | .name'

\b
Exit code:
    0  done
    2  the call is wrong
    3  QUEUE has no task, not even a finished one
{_CODES}"""
)
@click.argument("queue", metavar="[QUEUE]", required=False, callback=_queue)
@json_option
@_where
def stats(queue: str | None, for_programs: bool, **where: Any) -> None:
    """Count the tasks of each queue, or of QUEUE, by their states.

    oldest: for how long the first of those that wait has been due. A queue is there while it has a task, be it dead or
    finished. Who works on them: pgconcert status.
    """

    async def work(_: Signals) -> int:
        async with opened(_target("stats", where)) as coordinator:
            if queue is None:
                queues = await coordinator.queues()
            else:
                queues = (await coordinator.queue(queue).statistics(),)
        there = [each for each in queues if queue is None or _size(each)]
        if for_programs:
            found = [queue_as_json(each) for each in there]
            await _tell({"version": _VERSION, "namespace": where["namespace"], "queues": found})
        elif there:
            print_queues(make_console(), there)
        else:
            say(f"there is no {'queue' if queue is None else f'task in queue {queue!r}'}{_in(where)}")
        return _NOTHING if queue is not None and not there else 0

    execute(work)


# deciding


@command.command(
    epilog=f"""\b
Examples:
  pgconcert tasks retry mail 1042 1043
  pgconcert tasks retry mail --all

\b
Exit code:
    0  done
    2  the call is wrong
    3  some ID is no dead task of QUEUE; the others were done
{_CODES}"""
)
@queue_argument
@ids_argument
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_where
def retry(queue: str, ids: tuple[str, ...], everything: bool, **where: Any) -> None:
    """Let dead tasks of QUEUE be run again.

    They are due at once, with as many attempts as at first.
    """
    _decide(queue, ids, everything, _target("retry", where), AsyncTaskQueue.retry, "due again")


@command.command(
    epilog=f"""\b
Examples:
  pgconcert tasks discard mail 1042
  pgconcert tasks discard mail --all

\b
Exit code:
    0  done
    2  the call is wrong
    3  some ID is no dead task of QUEUE; the others were done
{_CODES}"""
)
@queue_argument
@ids_argument
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_where
def discard(queue: str, ids: tuple[str, ...], everything: bool, **where: Any) -> None:
    """Delete dead tasks of QUEUE."""
    _decide(queue, ids, everything, _target("discard", where), AsyncTaskQueue.discard, "deleted")


def _decide(
    queue: str,
    ids: tuple[str, ...],
    everything: bool,
    target: Target,
    act: Callable[..., Awaitable[int]],
    now: str,
) -> None:
    if bool(ids) is everything:
        raise click.UsageError("name the tasks, or say --all; pgconcert tasks list QUEUE --state dead shows them")
    wanted = set(ids)

    async def work(_: Signals) -> int:
        async with opened(target) as coordinator:
            done = await act(coordinator.queue(queue), *wanted)
        await write_all(f"{_tasks(done)} of queue {queue!r} {_are(done)} {now}\n".encode())
        missing = len(wanted) - done
        if everything or not missing:
            return 0
        say(
            f"{_tasks(missing)} {_are(missing)} not there or not dead: pgconcert tasks list {quote(queue)} --state dead"
        )
        return _NOTHING

    execute(work)


# putting in


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{value!r} is no time such as 2027-03-01T09:30 or 2027-03-01T09:30:00Z") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    target: Target
    queue: str
    payload: str | None
    checked: bool
    how: dict[str, Any]


@command.command(
    epilog="""\b
Examples:
  pgconcert tasks enqueue mail '{"to": "ann@example.org"}' --json
  pgconcert tasks enqueue thumbnails < cat.png          bytes as they are
  pgconcert tasks enqueue mail --lines < addresses      each line is a task
  pgconcert tasks enqueue mail reminder --in 3600
  pgconcert tasks enqueue mail greeting --at 2027-01-01T00:00Z --attempts 3

\b
Exit code:
    0  the server has committed it; with --lines, all of them
    2  the call is wrong; a payload that is not JSON, with --json
   69  the server could not be reached
   70  something failed that should not (the server refused a statement, say)
   74  uncertain: the connection died between the sending and the answer
   78  the configuration is wrong (no address, no tables, ...)
128+n  signal n came; what was not answered by then may have been put in
"""
)
@queue_argument
@click.argument("payload", required=False)
@click.option("--lines", is_flag=True, help="Each line of standard input is a task; the count is told at the end.")
@click.option("--json", "checked", is_flag=True, help="Refuse what is not JSON.")
@click.option("--in", "run_in", type=click.FloatRange(0), metavar="S", help="Not before S seconds from now.")
@click.option("--at", "run_at", callback=_moment, metavar="TIME", help="Not before TIME; local, unless it has a zone.")
@click.option(
    "--attempts",
    type=click.IntRange(1, MAX_ATTEMPTS),
    default=DEFAULT_ATTEMPTS,
    show_default=True,
    metavar="N",
    help="After so many it is dead.",
)
@_where
def enqueue(
    queue: str,
    payload: str | None,
    lines: bool,
    checked: bool,
    run_in: float | None,
    run_at: datetime | None,
    attempts: int,
    **where: Any,
) -> None:
    """Put a task into QUEUE, and print its id.

    Without PAYLOAD it is all of standard input, byte for byte. Each task is run at least once.
    """
    if lines and payload is not None:
        raise click.UsageError("--lines reads standard input; leave PAYLOAD out")
    if run_in is not None and run_at is not None:
        raise click.UsageError("--in and --at exclude each other")
    how = {"run_at": run_at, "run_in": run_in, "attempts": attempts}
    job = _Job(target=_target("enqueue", where), queue=queue, payload=payload, checked=checked, how=how)
    execute(lambda signals: _stream(job) if lines else _one(job))


async def _one(job: _Job) -> int:
    payload = await read_payload(job.payload)
    if job.checked:
        payload = check_json(payload)
    async with opened(job.target) as coordinator:
        try:
            made = await coordinator.queue(job.queue).enqueue(payload, **job.how)
        except LinkLost as error:
            say(f"nobody knows whether it was put into queue {job.queue!r}: {error}")
            return UNCERTAIN
    await write_all(f"{made}\n".encode())
    return 0


async def _stream(job: _Job) -> int:
    async with opened(job.target) as coordinator:
        lines = TaskLines(coordinator.queue(job.queue), check_json if job.checked else bytes, job.how)
        try:
            await lines.run()
        except LinkLost as error:
            say(str(error))
            return UNCERTAIN
        finally:
            perhaps = f", {lines.perhaps} perhaps" if lines.perhaps else ""
            say(f"{_tasks(lines.put)} put into queue {job.queue!r}{perhaps}")
    return 0


# words


def _target(command: str, where: dict[str, Any]) -> Target:
    return Target(name=f"pgconcert tasks {command}", **where)


async def _tell(answer: dict[str, Any]) -> None:
    await write_all(json.dumps(answer, indent=2).encode() + b"\n")


def _in(where: dict[str, Any]) -> str:
    return f" in namespace {where['namespace']!r}" if where["namespace"] else ""


def _size(queue: QueueInfo) -> int:
    return queue.waiting + queue.scheduled + queue.assigned + queue.started + queue.dead + queue.finished


def _tasks(count: int) -> str:
    return f"{count} {'task' if count == 1 else 'tasks'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
