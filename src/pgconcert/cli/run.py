"""``pgconcert run``: a command runs while a lock is held. Here live the options, the course of events and the codes.

States::

    waiting --granted--> running --the command ends--> its own code
       |                    |
       | signal: 128+n      | lost
       | not in time: 75    v
       +--> over         ending --all are gone--> 74 (its own code, if it had ended before it was told to)

A signal ends the waiting at once; from ``running`` on it is the command's, and only the command's end ends us. So the
lock is never given back while the command lives. ``run_child.py`` starts and ends it, ``run_guard.py`` sees to it that
this holds even when we are killed.

The codes must be told from the command's own. Programs use 1 and 2 for everything, so the library's are taken from
``sysexits.h``, which few use, by their meaning there: 69 a service is unavailable, 70 an internal error, 74 an error of
input or output (the connection broke), 75 a temporary failure (somebody else has the lock; try again), 78 a wrong
configuration. 126, 127 and 128+n are those of every shell, and 2 is that of a wrong call, as for all our commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import click

from ..coordinator import AsyncCoordinator
from ..errors import AcquireTimeout, ConfigurationError, PgconcertError, Unavailable
from ..events import Event, HoldBroken, StillWaiting
from ..hold import AsyncHold
from ..keys import KeySpace
from .run_child import Child, CommandFailed, GuardDied, connected_sockets, find
from .streams import open_streams
from .target import direct_url_option, namespace_option, url_option

__all__ = ["command"]

UNAVAILABLE: Final = 69
FAILED: Final = 70
LOST: Final = 74
NOT_ACQUIRED: Final = 75
MISCONFIGURED: Final = 78

_ENDS_A_WAIT: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be done. ``wait`` and ``grace`` in seconds; ``wait=None`` is for ever."""

    key: int | str
    shared: bool
    wait: float | None
    grace: float
    url: str | None
    direct_url: str | None
    namespace: str
    name: str
    path: str
    arguments: tuple[str, ...]
    verbose: bool


def _seconds(text: object) -> float:
    try:
        seconds = float(str(text))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds of at least 0")
    return seconds


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
  pgconcert run --lock demo --url embedded:// -- sleep 5    to try it out on one machine

\b
Exit code:
  the command's own, 128+n if signal n ended it; else
    2  the call is wrong
   69  the server could not be reached
   70  something failed that should not (the server refused a statement, say)
   74  the lock was lost, and the command was ended
   75  the lock was not acquired in time
   78  the configuration is wrong (no address, a transaction pooler, ...)
  126  the command cannot be executed
  127  the command was not found
128+n  signal n came while the lock was waited for
""",
)
@click.option("--lock", "lock", metavar="NAME", help="The lock, by name.")
@click.option("--key", "key", type=_whole, metavar="INT", help="The lock, by the server's own number (bigint).")
@click.option("--shared", is_flag=True, help="Share it with others that share it; exclude those that do not.")
@click.option("--wait", type=_seconds, metavar="S", help="Give up after S seconds.  [default: never]")
@click.option("--no-wait", is_flag=True, help="Give up at once.")
@click.option(
    "--grace",
    type=_seconds,
    default=10.0,
    show_default=True,
    metavar="S",
    help="After a loss of the lock: seconds between SIGTERM and SIGKILL.",
)
@url_option
@direct_url_option
@namespace_option
@click.option("--name", metavar="TEXT", help="Who we are, for others that wait.  [default: the command]")
@click.option("-v", "--verbose", is_flag=True, help="Say when it waits, and for whom, and when it has the lock.")
@click.argument("arguments", metavar="-- COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    lock: str | None,
    key: int | None,
    shared: bool,
    wait: float | None,
    no_wait: bool,
    grace: float,
    url: str | None,
    direct_url: str | None,
    namespace: str,
    name: str | None,
    verbose: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run a command while a lock is held, and give the lock back when the command has ended.

    The command gets our standard streams, our environment and PGCONCERT_LOCK=NAME. Signals are passed on to it. If the
    lock is lost because the connection to the server died, the command gets SIGTERM, and SIGKILL after the grace. If
    this program is killed with SIGKILL, the same happens, and nobody gets the lock before the command is gone.
    """
    if (lock is None) == (key is None):
        raise click.UsageError("name the lock: either --lock NAME or --key INT")
    if no_wait and wait is not None:
        raise click.UsageError("--wait and --no-wait exclude each other")
    wanted = lock if lock is not None else key
    assert wanted is not None
    try:
        KeySpace(namespace).key(wanted)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    try:
        path = find(arguments[0])
    except CommandFailed as failed:
        _say(str(failed))
        sys.exit(failed.code)
    job = _Job(
        key=wanted,
        shared=shared,
        wait=0.0 if no_wait else wait,
        grace=grace,
        url=url,
        direct_url=direct_url,
        namespace=namespace,
        name=name if name is not None else Path(arguments[0]).name,
        path=path,
        arguments=arguments,
        verbose=verbose,
    )
    # without a handler of its own the log would write on standard error what we say better, or not at all
    logging.getLogger("pgconcert").addHandler(logging.NullHandler())
    open_streams()
    sys.exit(asyncio.run(_execute(job)))


async def _execute(job: _Job) -> int:
    with _Signals() as signals:
        try:
            return await _run(job, signals)
        except asyncio.CancelledError:
            if signals.ended_by is None:
                raise
            return 128 + signals.ended_by
        except AcquireTimeout as error:
            return _say(str(error), NOT_ACQUIRED)
        except CommandFailed as error:
            return _say(str(error), error.code)
        except ConfigurationError as error:
            return _say(str(error), MISCONFIGURED)
        except Unavailable as error:
            return _say(f"the server cannot be reached: {error}", UNAVAILABLE)
        except (PgconcertError, GuardDied, OSError) as error:
            return _say(str(error), FAILED)


async def _run(job: _Job, signals: _Signals) -> int:
    """Whatever happens, the child's block ends first, and with it the command; then the coordinator's, and the lock."""
    before = connected_sockets()
    async with AsyncCoordinator(
        job.url, direct_url=job.direct_url, namespace=job.namespace, name=job.name
    ) as coordinator:
        if "processes" not in coordinator.backend.capabilities:
            raise ConfigurationError(f"{job.url or 'this address'} keeps no other process out; run needs one that does")
        coordinator.events.subscribe(_Reporter(job.verbose).report)
        with Child(job.path, job.arguments, grace=job.grace, environment={"PGCONCERT_LOCK": str(job.key)}) as child:
            hold = await _acquire(job, coordinator)
            signals.pass_on(child)
            await child.go([*connected_sockets() - before])
            code = await _while_held(job, hold, child)
        await hold.release()
        return code


async def _acquire(job: _Job, coordinator: AsyncCoordinator) -> AsyncHold:
    lock = coordinator.lock(job.key, shared=job.shared, timeout=job.wait, on_lost="report")
    if not job.verbose:
        return await lock.acquire()
    try:
        hold = await lock.acquire(0)
    except AcquireTimeout as error:
        if job.wait == 0:
            raise
        # nobody asked for this try, so only who is in the way is worth a word
        why = str(error).removeprefix(f"{job.key!r} was not acquired within 0 s; ")
        _say(f"waiting for {job.key!r}: {why}")
        hold = await lock.acquire()
    _say(f"{job.key!r} is held; starting {job.path}")
    return hold


async def _while_held(job: _Job, hold: AsyncHold, child: Child) -> int:
    ending = asyncio.ensure_future(child.ended())
    losing = asyncio.ensure_future(hold.wait_lost())
    await asyncio.wait([ending, losing], return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        child.end()
        _say(f"{job.key!r} was lost: {losing.result()}; the command must end within {job.grace:g} s")
    losing.cancel()
    ended = await ending
    if job.verbose:
        _say(f"the command ended with code {ended.code}")
    return LOST if ended.pressed else ended.code


class _Signals:
    """What signals do: first they end the waiting, then they are the command's, and after this block they do nothing,
    because the program has its code and is about to end. What was ignored stays ignored."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._child: Child | None = None
        self._caught: set[signal.Signals] = set()
        self.ended_by: signal.Signals | None = None
        """The signal that ended the waiting."""

    def pass_on(self, child: Child) -> None:
        """From now on they are the command's."""
        self._child = child
        self._catch(child.handed_on)

    def _catch(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            if number not in self._caught and signal.getsignal(number) is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._come, number)
                self._caught.add(number)

    def _come(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.signal(number)
            if number is signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
        elif self.ended_by is None:
            self.ended_by = number
            assert self._task is not None
            self._task.cancel()

    def __enter__(self) -> Self:
        self._catch(_ENDS_A_WAIT)
        return self

    def __exit__(self, *error: object) -> None:
        for number in self._caught:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


class _Reporter:
    """Says what is worth knowing while we wait or hold; without ``verbose`` only that a wait is long."""

    def __init__(self, verbose: bool) -> None:
        self._least = logging.WARNING if verbose else logging.ERROR

    def report(self, event: Event) -> None:
        if isinstance(event, StillWaiting) or (event.level >= self._least and not isinstance(event, HoldBroken)):
            _say(str(event))


def _say(text: str, code: int = 0) -> int:
    with contextlib.suppress(OSError):  # nobody reads it; the command goes on
        click.echo(f"pgconcert: {text}", err=True)
    return code
