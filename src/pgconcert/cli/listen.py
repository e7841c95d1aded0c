"""``pgconcert listen``: prints the messages of channels, or runs a command for each (``listen_exec.py``).

Theory. What is printed is written by a thread, so a reader that is slow, or stands still, never delays the links and so
never holds up the server's queue for others: messages wait here, and when too many do the rest is lost and told as a
gap like any other. Several works run side by side (printing, the clock, a look whether anybody reads), and the first
that ends decides the code.

Told on standard error: when listening is proven, lost and proven again, and gaps, unless they are part of the output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import click

from ..coordinator import AsyncCoordinator
from ..pubsub.delivery import Delivery
from ..pubsub.message import Gap, Message
from ..pubsub.subscription import AsyncSubscription
from .listen_exec import Runner
from .listen_lines import json_line, raw_line, raw_line_with_channel, terminal_line
from .messaging import (
    BROKEN_PIPE,
    NOT_IN_TIME,
    Signals,
    Target,
    channel_argument,
    execute,
    opened,
    reported,
    say,
    schema_option,
    seconds_type,
    write_all,
)
from .run_child import CommandFailed, find
from .target import direct_url_option, namespace_option, url_option

__all__ = ["command"]

_ENTRY: Final = 15.0
_CAPACITY: Final = 16_384
_BATCH: Final = 1000
_FAREWELL: Final = 1.0
_LOOK: Final = 1.0
_EXEC: Final = "--exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be done. ``timeout`` and ``grace`` in seconds; ``arguments`` are a command's, if there is one."""

    target: Target
    channels: tuple[str, ...]
    as_json: bool
    count: int | None
    timeout: float | None
    delivery: Delivery
    gaps: bool
    grace: float
    path: str
    arguments: tuple[str, ...]

    @property
    def entry(self) -> float:
        """How long the first proof of listening may take."""
        return _ENTRY if self.timeout is None else min(_ENTRY, self.timeout)


class _Command(click.Command):
    """What follows ``--exec`` is the command's, with or without ``--``, as with ``pgconcert run``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        theirs: list[str] | None = None
        if _EXEC in args:
            at = args.index(_EXEC)
            args, theirs = args[:at], args[at + 1 :]
            theirs = theirs[1:] if theirs[:1] == ["--"] else theirs
        elif "--" in args:
            raise click.UsageError("to run a command for each message, write --exec before it", ctx)
        rest = super().parse_args(ctx, args)
        if theirs is not None and not theirs:
            raise click.UsageError("--exec needs a command: pgconcert listen CHANNEL --exec COMMAND", ctx)
        ctx.params["arguments"] = tuple(theirs or ())
        return rest


@click.command(
    cls=_Command,
    epilog="""\b
Examples:
  pgconcert listen orders jobs                     a line for each message
  pgconcert listen orders --json | jq -r .payload
  pgconcert listen orders --count 1 --timeout 30   wait for the next one
  pgconcert listen orders --exec ./handle.sh -v    the message on standard input
  pgconcert listen price --exec jq '.sku * 2'      its output answers a request
  pgconcert listen jobs --delivery one-process --exec ./work.sh

\b
Text: on a terminal the channel and the text, control characters made visible;
elsewhere the bytes as they came and a line break, and with several channels the
channel and a tab before them. Text of several lines is told apart by --json: an
object in each line, a gap as {"gap": ...}.

\b
Exit code:
    0  --count is reached, or the time of --timeout is over without --count
    2  the call is wrong
   69  the server could not be reached at the beginning; later it is waited for
   70  something failed that should not
   75  --timeout was over before --count was reached
   78  the configuration is wrong (no address, a transaction pooler without
       --direct-url, --delivery one-each without pgconcert schema apply, ...)
  126, 127  the command of --exec cannot be executed, was not found
  141  nobody reads our output any more
128+n  signal n came
""",
)
@channel_argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--json", "as_json", is_flag=True, help="An object in each line.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option("--timeout", type=seconds_type, metavar="S", help="End after S seconds.")
@click.option(
    "--exec",
    "exec_",
    metavar="COMMAND [ARG]...",
    expose_value=False,
    help="Run a command for each message, one at a time for each channel. The last of our options: what follows is the "
    "command's.",
)
@click.option(
    "--delivery",
    type=click.Choice(["all", "one-process", "one-each"]),
    default="all",
    show_default=True,
    help="Of several listeners: everybody gets a message; those of one process; one for each message.",
)
@click.option("--gaps/--no-gaps", default=True, show_default=True, help="Tell where messages are missing.")
@click.option(
    "--grace",
    type=click.FloatRange(0, 86400),
    default=10.0,
    show_default=True,
    metavar="S",
    help="At the end: seconds for what --exec has begun.",
)
@url_option
@direct_url_option
@namespace_option
@schema_option
def command(
    channels: tuple[str, ...],
    as_json: bool,
    count: int | None,
    timeout: float | None,
    delivery: Delivery,
    gaps: bool,
    grace: float,
    url: str | None,
    direct_url: str | None,
    namespace: str,
    schema: str,
    arguments: tuple[str, ...],
) -> None:
    """Print the messages of channels, or run a command for each.

    A connection that is lost is made again; what was missed is told as a gap. The command of --exec gets the message on
    its standard input and PGCONCERT_CHANNEL, PGCONCERT_ID, PGCONCERT_HEADERS (JSON), PGCONCERT_PID and
    PGCONCERT_REQUEST (1 or 0) in its environment. If the message is a request, its output is the reply, and a failure
    of the command an error. INT, TERM and HUP let what has begun come to its end, within --grace; again, they kill it.
    """
    if arguments and as_json:
        raise click.UsageError("--json is for what is printed; leave it out with --exec")
    path = ""
    if arguments:
        try:
            path = find(arguments[0])
        except CommandFailed as failed:
            say(str(failed))
            sys.exit(failed.code)
    target = Target(url=url, direct_url=direct_url, name="pgconcert listen", namespace=namespace, schema=schema)
    job = _Job(
        target=target,
        channels=tuple(dict.fromkeys(channels)),
        as_json=as_json,
        count=count,
        timeout=timeout,
        delivery=delivery,
        gaps=gaps,
        grace=grace,
        path=path,
        arguments=arguments,
    )
    execute(lambda signals: _listen(job, signals))


async def _listen(job: _Job, signals: Signals) -> int:
    async with opened(job.target) as coordinator:
        silence = reported(coordinator)
        if job.arguments:
            return await _run_commands(job, coordinator, signals, silence)
        return await _print(job, coordinator)


def _say_listening(job: _Job) -> None:
    say(f"listening to {', '.join(map(repr, job.channels))}")


async def _clock(job: _Job) -> int:
    if job.timeout is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(job.timeout)
    return 0 if job.count is None else NOT_IN_TIME


async def _first(*works: Coroutine[Any, Any, int]) -> int:
    """The code of the work that ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


# a command for each message


async def _run_commands(job: _Job, coordinator: AsyncCoordinator, signals: Signals, silence: Callable[[], None]) -> int:
    runner = Runner(job.path, job.arguments, job.count)
    told, pressed = asyncio.Event(), asyncio.Event()

    def come() -> None:
        (pressed if told.is_set() else told).set()

    async def signalled() -> int:
        await told.wait()
        assert signals.ended_by is not None
        return 128 + signals.ended_by

    async def counted() -> int:
        await runner.done.wait()
        return 0

    def missing(gap: Gap) -> None:
        if job.gaps:
            say(str(gap))

    listening = coordinator.listen(
        dict.fromkeys(job.channels, runner.handle),
        on_gap=missing,
        capacity=_CAPACITY,
        delivery=job.delivery,
        close_timeout=job.grace,
        timeout=job.entry,
    )
    _ = await listening.open()
    signals.on_signal = come
    try:
        _say_listening(job)
        code = await _first(counted(), signalled(), _clock(job))
    finally:
        told.set()
        if runner.done.is_set():
            silence()  # what is beyond the count stands still, and is neither waited for nor missed
        closing = asyncio.ensure_future(listening.close(0 if runner.done.is_set() else None))
        pressing = asyncio.ensure_future(pressed.wait())
        await asyncio.wait([closing, pressing], return_when=asyncio.FIRST_COMPLETED)
        pressing.cancel()
        if not closing.done():
            runner.kill()
            await listening.close(0)
    return code


# printing


async def _print(job: _Job, coordinator: AsyncCoordinator) -> int:
    subscription: AsyncSubscription[Message | Gap] = coordinator.subscribe(
        *job.channels,
        capacity=_CAPACITY,
        gaps="yield",
        delivery=job.delivery,
        timeout=job.entry,
    )
    async with subscription as messages:
        _say_listening(job)
        return await _first(_print_all(job, messages), _until_unread(), _clock(job))


async def _print_all(job: _Job, messages: AsyncSubscription[Message | Gap]) -> int:
    left = job.count
    line = _liner(job)
    while left is None or left > 0:
        batch = [await messages.get()]
        ready = min(messages.statistics.queued, _BATCH if left is None else left - 1)
        batch += [await messages.get() for _ in range(ready)]
        if left is not None:
            left -= sum(isinstance(item, Message) for item in batch)
        writing = asyncio.ensure_future(write_all(b"".join(line(item) for item in batch)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # what was taken is written, if somebody reads it
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writing, _FAREWELL)
            raise
    return 0


async def _until_unread() -> int:
    """Return when standard output is a pipe that nobody reads any more."""
    if not stat.S_ISFIFO(os.fstat(1).st_mode):
        await asyncio.Event().wait()
    look = select.poll()
    look.register(1, 0)
    while not look.poll(0):  # noqa: ASYNC110  nobody else would tell us
        await asyncio.sleep(_LOOK)
    return BROKEN_PIPE


def _liner(job: _Job) -> Callable[[Message | Gap], bytes]:
    """How a message or a gap is shown."""
    if job.as_json:
        show = json_line
    elif sys.stdout is not None and sys.stdout.isatty():
        show = terminal_line
    else:
        show = raw_line if len(job.channels) == 1 else raw_line_with_channel

    def line(item: Message | Gap) -> bytes:
        if isinstance(item, Message) or (job.gaps and job.as_json):
            return show(item)
        if job.gaps:
            say(str(item))
        return b""

    return line
