"""``pgconcert run``: a command runs while a lock or a job lock is held. Here live the options and what they come to;
the course of events, its states and codes stand in ``held_command.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..coordinator import AsyncCoordinator
from ..errors import AcquireTimeout, ConfigurationError
from ..hold import AsyncHold
from ..jobs import AsyncJobLock, job_key
from ..keys import KeySpace
from ..locks import AsyncLock
from ..sessions.pace import Pace
from ..sessions.timing import DEFAULT_TTL, Timing, timing
from .held_command import (
    Command,
    Outcome,
    Reporter,
    Signals,
    execute,
    found,
    in_rounds,
    one_round,
    processes_needed,
    say,
    seconds,
)
from .messaging import schema_option
from .on_session import environment_of, json_type, timing_options
from .run_child import connected_sockets, find
from .target import direct_url_option, namespace_option, url_option

__all__ = ["command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What is to be held. ``wait`` in seconds, ``None`` is for ever; ``times``: it is a job lock."""

    name: int | str
    shared: bool
    wait: float | None
    times: Timing | None
    hold_at_least: float
    data: Any
    again: bool

    def __str__(self) -> str:
        return repr(self.name) if self.times is None else f"job lock {self.name!r}"


def _whole(text: object) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a whole number; for a name use --lock") from None


@click.command(
    # what follows the command is the command's, with or without --
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  pgconcert run --lock backup -- backup.sh --full
  pgconcert run --lock nightly --no-wait -- make report     skip it if it runs elsewhere
  pgconcert run --lock nightly --wait 60 -- make report     or wait a minute
  pgconcert run --lock config --shared -- ./read-config     with others that share it
  pgconcert run --key 42 -- psql -f migrate.sql             pg_advisory_lock 42
  pgconcert run --job importer -- ./import.sh               with PGCONCERT_TOKEN
  pgconcert run --job importer --keep -- ./import.sh        for ever, in one place
  pgconcert run --lock demo --url embedded:// -- sleep 5    to try it out on one machine

\b
Exit code:
  the command's own, 128+n if signal n ended it; else
    2  the call is wrong
   69  the server could not be reached
   70  something failed that should not (the server refused a statement, say)
   74  the lock was lost, and the command was ended
   75  the lock was not acquired in time
   76  the release of the job lock was requested, and the command was ended
   78  the configuration is wrong (no address, a transaction pooler, ...)
  126  the command cannot be executed
  127  the command was not found
128+n  signal n came while the lock was waited for
""",
)
@click.option("--lock", "lock", metavar="NAME", help="The lock, by name.")
@click.option("--key", "key", type=_whole, metavar="INT", help="The lock, by the server's own number (bigint).")
@click.option("--job", "job", metavar="NAME", help="The job lock. It hangs on a session, and needs our tables.")
@click.option("--shared", is_flag=True, help="Share it with others that share it; exclude those that do not.")
@click.option("--wait", type=seconds, metavar="S", help="Give up after S seconds.  [default: never]")
@click.option("--no-wait", is_flag=True, help="Give up at once.")
@click.option(
    "--grace",
    type=seconds,
    default=10.0,
    show_default=True,
    metavar="S",
    help="After a loss of the lock: seconds between SIGTERM and SIGKILL.",
)
@click.option("--keep", is_flag=True, help="With --job: run the command again and again, wherever the lock goes.")
@timing_options
@click.option(
    "--hold-at-least",
    type=seconds,
    metavar="S",
    help="With --job: nobody gets it sooner than S seconds after we did.",
)
@click.option("--data", type=json_type, metavar="JSON", help="With --job: shown beside the holder.")
@url_option
@direct_url_option
@namespace_option
@schema_option
@click.option("--name", metavar="TEXT", help="Who we are, for others that wait.  [default: the command]")
@click.option("-v", "--verbose", is_flag=True, help="Say when it waits, and for whom, and when it has the lock.")
@click.argument("arguments", metavar="-- COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    lock: str | None,
    key: int | None,
    job: str | None,
    shared: bool,
    wait: float | None,
    no_wait: bool,
    grace: float,
    keep: bool,
    times: Mapping[str, float],
    hold_at_least: float | None,
    data: Any,
    url: str | None,
    direct_url: str | None,
    namespace: str,
    schema: str,
    name: str | None,
    verbose: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run a command while a lock is held, and give the lock back when the command has ended.

    The command gets our standard streams, our environment and PGCONCERT_LOCK=NAME. Signals are passed on to it. If the
    lock is lost, the command gets SIGTERM, and SIGKILL after the grace. If this program is killed with SIGKILL, the
    same happens.

    A lock (--lock, --key) hangs on our connection to the server, and after our SIGKILL nobody gets it before the
    command is gone. A job lock (--job) hangs on a session that is renewed by heartbeats: it outlives connections, and
    the command also gets PGCONCERT_TOKEN, which is larger than that of every holder before, and PGCONCERT_SESSION.
    After our SIGKILL others get it within --ttl. When its release is requested, the command is ended as after a loss.
    With --keep the command is started again after a pause whenever it has ended, until a signal comes.
    """
    given = [each for each in (lock, key, job) if each is not None]
    if len(given) != 1:
        raise click.UsageError("name the lock: one of --lock NAME, --key INT, --job NAME")
    if no_wait and wait is not None:
        raise click.UsageError("--wait and --no-wait exclude each other")
    if keep and (no_wait or wait is not None):
        raise click.UsageError("--keep waits for ever; leave out --wait and --no-wait")
    for option, is_given in (
        *((f"--{each}", True) for each in times),
        ("--keep", keep),
        ("--hold-at-least", hold_at_least is not None),
        ("--data", data is not None),
    ):
        if is_given and job is None:
            raise click.UsageError(f"{option} is for job locks; name one with --job")
    if shared and job is not None:
        raise click.UsageError("--shared is for locks; a job lock has one holder")
    try:
        keys = KeySpace(namespace)
        pace = None
        if job is None:
            keys.key(given[0])
        else:
            pace = timing(**{"ttl": DEFAULT_TTL, **times})
            job_key(keys, job, pace, hold_at_least or 0.0, data)
        wish = _Wish(
            name=given[0],
            shared=shared,
            wait=0.0 if no_wait else wait,
            times=pace,
            hold_at_least=hold_at_least or 0.0,
            data=data,
            again=keep,
        )
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    program = Command(path=found(arguments[0], find), arguments=arguments, grace=grace, verbose=verbose)

    async def work(signals: Signals) -> int:
        before = connected_sockets()
        called = name if name is not None else Path(arguments[0]).name
        async with AsyncCoordinator(
            url, direct_url=direct_url, namespace=namespace, schema=schema, name=called
        ) as coordinator:
            processes_needed(coordinator, url, "run")
            coordinator.events.subscribe(Reporter(verbose).report)
            if wish.times is None:
                return await _under_lock(wish, program, coordinator, signals, before)
            return await _under_job_lock(wish, wish.times, program, coordinator, signals)

    execute(work)


async def _under_lock(
    wish: _Wish, program: Command, coordinator: AsyncCoordinator, signals: Signals, before: set[int]
) -> int:
    lock = coordinator.lock(wish.name, shared=wish.shared, on_lost="report")
    outcome = await one_round(
        program,
        signals,
        lambda: _acquire(wish, lock, program.verbose),
        lambda hold: {"PGCONCERT_LOCK": str(wish.name)},
        str(wish),
        sockets=lambda: [*connected_sockets() - before],
    )
    return outcome.code


async def _under_job_lock(
    wish: _Wish, times: Timing, program: Command, coordinator: AsyncCoordinator, signals: Signals
) -> int:
    lock = coordinator.job_lock(
        str(wish.name),
        ttl=times.ttl,
        interval=times.interval,
        check=times.check,
        timeout=times.timeout,
        hold_at_least=wish.hold_at_least,
        data=wish.data,
        on_lost="report",
    )

    async def each() -> Outcome:
        return await one_round(
            program,
            signals,
            lambda: _acquire(wish, lock, program.verbose),
            lambda hold: environment_of(hold, str(wish.name)),
            str(wish),
        )

    return await in_rounds(each, signals, Pace(times), lambda outcome: wish.again)


async def _acquire(wish: _Wish, lock: AsyncLock | AsyncJobLock, verbose: bool) -> AsyncHold:
    if not verbose:
        return await lock.acquire(wish.wait)
    try:
        return await lock.acquire(0)
    except AcquireTimeout as error:
        if wish.wait == 0:
            raise
        # nobody asked for this try, so only who is in the way is worth a word
        _, _, why = str(error).partition(" was not acquired within 0 s; ")
        say(f"waiting for {wish}: {why}")
    return await lock.acquire(wish.wait)
