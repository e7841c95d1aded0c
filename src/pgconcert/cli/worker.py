"""``pgconcert worker``: a runner of this process's own, which hands tasks to a function until it is told to end. Here
live the options and the course of events; how the function is found stands in ``worker_function.py``.

Theory. The runner runs beside us, and we wait for the first of two: that it ends by itself, because it could not begin
or because the function wanted the end of the program, or that a signal comes. The first signal stops it: nothing new is
handed out, and what is under way has ``--stop-timeout``. The next signal cuts that short. So code 0 means that whatever
had begun came to its own end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click

from ..errors import ConfigurationError
from ..events import Event, RunnerSessionStarted
from ..keys import KeySpace
from ..sessions.register import subject_of
from ..statistics import RunnerStatistics
from ..tasks.newtask import queue_place
from ..tasks.runner import AsyncRunner
from ..tasks.sources import QueueTasks, TableTasks
from .messaging import FAILED, Signals, Target, execute, opened, reported, say, schema_option
from .target import direct_url_option, namespace_option, url_option
from .worker_function import ImportFailed, find_function, show_error, with_tracebacks

__all__ = ["command", "progress"]

_EVERY: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be done. ``options`` are those of ``AsyncCoordinator.runner``."""

    target: Target
    name: str
    function: Callable[..., Any]
    source: QueueTasks | TableTasks
    options: dict[str, Any]
    stop_timeout: float
    verbose: bool


@click.command(
    epilog="""\b
Examples:
  pgconcert worker shop.mail:send --queue mail
  pgconcert worker shop.mail:send_one --queue mail --per-task --concurrency 20
  pgconcert worker shop.orders:ship --table orders \\
      --where "t.state = 'paid'" --order-by t.paid_at --finish "state = 'shipped'"

\b
In shop/mail.py, async or plain:
  async def send(tasks):
      for task in tasks:
          ...                        # task.json(), task.id, task.attempt

\b
Exit code:
    0  a signal came, and what was under way came to its end
    2  the call is wrong: the function is not there, ...
   69  the server could not be reached at the beginning; later it is waited for
   70  something failed that should not: the module cannot be imported, ...
   78  the configuration is wrong (no address, no tables, no column session_id,
       a transaction pooler without --direct-url, ...)
128+n  signal n came, and what was under way was cut short: by --stop-timeout,
       or by another signal
"""
)
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--queue", metavar="NAME", help="Tasks of this queue: pgconcert tasks enqueue NAME.")
@click.option("--retention", type=click.FloatRange(0), metavar="S", help="With --queue: keep finished tasks so long.")
@click.option("--table", metavar="NAME", help="Rows of this table: pgconcert schema show --table NAME.")
@click.option("--id", metavar="COLUMN", help="With --table: what names a row.  [default: id]")
@click.option("--where", metavar="SQL", help="With --table: what is to be done now; the table is called t.")
@click.option("--order-by", metavar="SQL", help="With --table: which come first.")
@click.option("--finish", metavar="SQL", help="With --table: assignments that make a row done; or delete.")
@click.option("--session", metavar="COLUMN", help="With --table: the added column.  [default: session_id]")
@click.option("--name", metavar="TEXT", help="Runners of one name share.  [default: the queue or table]")
@click.option(
    "--tick",
    type=click.FloatRange(0.05, 86_400),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds between looks for work; new tasks of a queue are told at once.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="At most N tasks for one call."
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="N calls at a time."
)
@click.option("--per-task", is_flag=True, help="Call the function with a task, instead of a list of them.")
@click.option("--tasks-per-session", type=click.IntRange(0), metavar="N", help="Have at most N.  [default: no limit]")
@click.option(
    "--ttl",
    type=click.FloatRange(0.1, 86_400),
    default=40.0,
    show_default=True,
    metavar="S",
    help="Seconds after our last heartbeat until others take our tasks over.",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    metavar="S",
    help="At the end: seconds for what is under way.",
)
@url_option
@direct_url_option
@namespace_option
@schema_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Say how it goes every few seconds, also where there is no terminal."
)
def command(
    function: str,
    queue: str | None,
    retention: float | None,
    table: str | None,
    name: str | None,
    tick: float,
    batch: int,
    concurrency: int,
    per_task: bool,
    tasks_per_session: int | None,
    ttl: float,
    stop_timeout: float,
    url: str | None,
    direct_url: str | None,
    namespace: str,
    schema: str,
    verbose: bool,
    **of_table: str | None,
) -> None:
    """Share tasks with all workers of the same name, and hand ours to a function, until INT, TERM or HUP comes.

    FUNCTION gets a list of tasks. What it returns is done: nothing means all of them; or those tasks, or their ids. If
    it raises, none is done, the error is shown, and they are tried again. When we die, others have our tasks after
    --ttl. A signal lets the calls that are under way come to their end, within --stop-timeout; another one cuts that
    short.
    """
    source = _source(queue, retention, table, of_table)
    called = name if name is not None else source.name if isinstance(source, QueueTasks) else source.table
    try:
        subject_of("runner", KeySpace(namespace), called)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    try:
        found = find_function(function)
    except ImportFailed as failed:
        show_error(failed.error)
        say(str(failed))
        sys.exit(FAILED)
    job = _Job(
        target=Target(url=url, direct_url=direct_url, name=function, namespace=namespace, schema=schema),
        name=called,
        function=with_tracebacks(found),
        source=source,
        options={
            "tick": tick,
            "tasks_per_session": tasks_per_session,
            "batch": batch,
            "concurrency": concurrency,
            "per_task": per_task,
            "ttl": ttl,
        },
        stop_timeout=stop_timeout,
        verbose=verbose,
    )
    execute(lambda signals: _work(job, signals))


def _source(
    queue: str | None, retention: float | None, table: str | None, of_table: dict[str, str | None]
) -> QueueTasks | TableTasks:
    if (queue is None) is (table is None):
        raise click.UsageError("say where the tasks are: --queue NAME, or --table NAME --where SQL --finish SQL")
    given = {option: text for option, text in of_table.items() if text is not None}
    try:
        if queue is not None:
            if given:
                raise click.UsageError(f"{_option(next(iter(given)))} is for --table")
            return QueueTasks(queue_place(KeySpace(), queue).name, retention=retention or 0.0)
        if retention is not None:
            raise click.UsageError("--retention is for --queue")
        if "finish" not in given:
            raise click.UsageError("say what makes a row of the table done: --finish \"state = 'done'\", or delete")
        assert table is not None
        options: dict[str, Any] = {**given}
        return TableTasks(table, **options)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


async def _work(job: _Job, signals: Signals) -> int:
    async with opened(job.target) as coordinator:
        reported(coordinator)
        coordinator.events.subscribe(lambda event: _begun(event, job))
        runner = coordinator.runner(job.name, job.function, job.source, **job.options)
        telling = None
        if job.verbose or sys.stderr.isatty():
            telling = asyncio.create_task(_tell(runner))
        try:
            return await _until_told(job, runner, signals)
        finally:
            if telling is not None:
                telling.cancel()
            if (seen := runner.statistics()).turns:
                say(_counted(seen))


def _begun(event: Event, job: _Job) -> None:
    if isinstance(event, RunnerSessionStarted):
        say(f"runner {job.name!r} has session {event.session}, and shares the tasks of {_named(job.source)}")


def _named(source: QueueTasks | TableTasks) -> str:
    return f"queue {source.name!r}" if isinstance(source, QueueTasks) else f"table {source.table!r}"


async def _until_told(job: _Job, runner: AsyncRunner, signals: Signals) -> int:
    stops: list[asyncio.Task[None]] = []

    def come() -> None:
        if not stops and (under_way := runner.statistics().running):
            say(f"{_tasks(under_way)} under way, for {job.stop_timeout:g} s or until another signal; no new ones")
        stops.append(asyncio.ensure_future(runner.stop(0.0 if stops else job.stop_timeout)))

    signals.on_signal = come
    await runner.run()
    await asyncio.gather(*stops)
    seen = runner.statistics()
    cut_short = seen.handed - seen.completed - seen.failed - seen.refused
    if not cut_short or signals.ended_by is None:
        return 0
    say(f"{_tasks(cut_short)} cut short, and free for others")
    return 128 + signals.ended_by


async def _tell(runner: AsyncRunner) -> None:
    before = ""
    while True:
        await asyncio.sleep(_EVERY)
        now = progress(runner.statistics())
        if now != before:
            say(now)
        before = now


def progress(seen: RunnerStatistics) -> str:
    """How it goes, in a line."""
    share = f"our share is {seen.share}, as one of {seen.sessions}" if seen.session_id is not None else "no session now"
    return f"{_counted(seen)}, {seen.running} under way; {share}"


def _counted(seen: RunnerStatistics) -> str:
    failed = f", {seen.failed} failed" if seen.failed else ""
    refused = f", {seen.refused} done but refused" if seen.refused else ""
    return f"{_tasks(seen.completed)} completed{failed}{refused}"


def _tasks(count: int) -> str:
    return f"{count} {'task' if count == 1 else 'tasks'}"
