"""A command that runs while something is held: what ``pgconcert run`` and ``pgconcert lead`` have in common.

Here live the codes, the signals, what is said meanwhile, one hold from grant to release, and the rounds of those that
hold again and again. What is held, and how it is waited for, is said by each command; ``run_child.py`` starts and ends
the program, ``run_guard.py`` sees to it that it ends even when we are killed.

States of one round::

    waiting --granted--> running --the command ends--> ended
       |                    |
       | signal: 128+n      | lost, or its release is requested
       | not in time: 75    v
       +--> over         ending --all are gone--> lost or requested (ended, if it had ended before it was told to)

A signal ends the waiting at once; from ``running`` on it is the command's, and only the command's end ends the round.
So nothing is given back while the command lives. Whoever goes on after a round does so after a pause, unless a signal
that ends programs has been passed on meanwhile: then somebody wanted an end, not the next command.

What hangs on a connection stays held until the command is gone, even if we are killed: the guard keeps copies of the
sockets. What hangs on a session dies by time: if we are killed, the guard ends the command within the grace, which
should be shorter than three quarters of the ttl; if we are stopped, nobody ends it before we go on.

The codes must be told from the command's own. Programs use 1 and 2 for everything, so the library's are taken from
``sysexits.h``, which few use, by their meaning there: 69 a service is unavailable, 70 an internal error, 74 an error of
input or output (the hold is gone), 75 a temporary failure (somebody else has it; try again), 76 the other side wanted
it so, 78 a wrong configuration. 126, 127 and 128+n are those of every shell, and 2 is that of a wrong call, as for all
our commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, NoReturn, Self

import click

from ..coordinator import AsyncCoordinator
from ..errors import AcquireTimeout, ConfigurationError, HoldLost, PgconcertError, Unavailable
from ..events import Event, HoldBroken, SessionLost, StillWaiting
from ..hold import AsyncHold
from ..sessions.hold import AsyncSessionHold
from ..sessions.pace import Pace
from .run_child import Child, CommandFailed, GuardDied
from .streams import open_streams

__all__ = [
    "Command",
    "Outcome",
    "Reporter",
    "Signals",
    "execute",
    "found",
    "in_rounds",
    "one_round",
    "processes_needed",
    "say",
    "seconds",
]

UNAVAILABLE: Final = 69
FAILED: Final = 70
LOST: Final = 74
NOT_ACQUIRED: Final = 75
REQUESTED: Final = 76
MISCONFIGURED: Final = 78

_ENDS_A_WAIT: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_ENDS_ROUNDS: Final = _ENDS_A_WAIT[:4]
_KNOWN_OTHERWISE: Final = (HoldBroken, SessionLost)
"""What is an error, but is said in our own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The program. ``grace``: seconds between SIGTERM and SIGKILL when what is held is lost."""

    path: str
    arguments: tuple[str, ...]
    grace: float
    verbose: bool


class Outcome(NamedTuple):
    """How a round ended. ``why``: the command ended by itself, or was told to, because what was held is lost or wanted
    back. ``ran``: for how many seconds."""

    code: int
    why: Literal["ended", "lost", "requested"]
    ran: float


def seconds(text: object) -> float:
    """The type of options that are times of waiting."""
    try:
        number = float(str(text))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds of at least 0")
    return number


def found(program: str, find: Callable[[str], str]) -> str:
    """Where the program is; ends this process with a shell's code if it is nowhere."""
    try:
        return find(program)
    except CommandFailed as failed:
        sys.exit(say(str(failed), failed.code))


def say(text: str, code: int = 0) -> int:
    """A line on standard error; returns the code."""
    with contextlib.suppress(OSError):  # nobody reads it; the command goes on
        click.echo(f"pgconcert: {text}", err=True)
    return code


def execute(work: Callable[[Signals], Awaitable[int]]) -> NoReturn:
    """Do it, and end this process with its code."""
    # without a handler of its own the log would write on standard error what we say better, or not at all
    logging.getLogger("pgconcert").addHandler(logging.NullHandler())
    open_streams()
    sys.exit(asyncio.run(_execute(work)))


async def _execute(work: Callable[[Signals], Awaitable[int]]) -> int:
    with Signals() as signals:
        try:
            return await work(signals)
        except asyncio.CancelledError:
            if signals.ended_by is None:
                raise
            return 128 + signals.ended_by
        except AcquireTimeout as error:
            return say(str(error), NOT_ACQUIRED)
        except CommandFailed as error:
            return say(str(error), error.code)
        except ConfigurationError as error:
            return say(str(error), MISCONFIGURED)
        except Unavailable as error:
            return say(f"the server cannot be reached: {error}", UNAVAILABLE)
        except (PgconcertError, GuardDied, OSError) as error:
            return say(str(error), FAILED)


def processes_needed(coordinator: AsyncCoordinator, url: str | None, command: str) -> None:
    """Raises ``ConfigurationError`` for an address behind which nobody else can be."""
    if "processes" not in coordinator.backend.capabilities:
        raise ConfigurationError(f"{url or 'this address'} keeps no other process out; {command} needs one that does")


async def one_round(
    command: Command,
    signals: Signals,
    acquire: Callable[[], Awaitable[AsyncHold]],
    environment: Callable[[AsyncHold], dict[str, str]],
    what: str,
    sockets: Callable[[], Sequence[int]] = tuple,
    give_back: Callable[[AsyncHold], Awaitable[None]] = AsyncHold.release,
) -> Outcome:
    """Wait, run the command while it is held, and give it back. Whatever happens, the command ends first.

    ``what`` names it in messages; ``sockets`` are those that must outlive us with the command.
    """
    with Child(command.path, command.arguments, grace=command.grace) as child:
        hold = await acquire()
        if command.verbose:
            token = f" with token {hold.token}" if isinstance(hold, AsyncSessionHold) else ""
            say(f"{what} is held{token}; starting {command.path}")
        signals.pass_on(child)
        await child.go(sockets(), environment(hold))
        outcome = await _while_held(command, hold, child, what)
    signals.keep()
    try:
        await give_back(hold)
    except HoldLost as lost:
        say(f"{what} was lost before it was given back: {lost.reason}")
    except Unavailable as error:
        say(f"{what} could not be given back, and is free when its session is over: {error}")
    return outcome


async def in_rounds(
    each: Callable[[], Awaitable[Outcome]], signals: Signals, pace: Pace, goes_on: Callable[[Outcome], bool]
) -> int:
    """One round after the other, with pauses, while ``goes_on``; the code of the last."""
    while True:
        outcome = await each()
        if signals.want_end or not goes_on(outcome):
            return outcome.code
        await asyncio.sleep(pace.after(outcome.ran))


async def _while_held(command: Command, hold: AsyncHold, child: Child, what: str) -> Outcome:
    loop = asyncio.get_running_loop()
    began = loop.time()
    ending = asyncio.ensure_future(child.ended())
    losing = asyncio.ensure_future(hold.wait_lost())
    watched: list[asyncio.Future[Any]] = [ending, losing]
    if isinstance(hold, AsyncSessionHold):
        watched.append(asyncio.ensure_future(hold.wait_release_requested()))
    await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    lost = losing.done()
    if not ending.done():
        child.end()
        why = f"{what} was lost: {losing.result()}" if lost else f"the release of {what} was requested"
        say(f"{why}; the command must end within {command.grace:g} s")
    for each in watched[1:]:
        each.cancel()
    ended = await ending
    if command.verbose:
        say(f"the command ended with code {ended.code}")
    ran = loop.time() - began
    if not ended.pressed:
        return Outcome(ended.code, "ended", ran)
    return Outcome(LOST, "lost", ran) if lost else Outcome(REQUESTED, "requested", ran)


class Signals:
    """What signals do: they end the waiting; while a command runs they are the command's; and after this block they do
    nothing, because the program has its code and is about to end. What was ignored stays ignored."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._child: Child | None = None
        self._caught: set[signal.Signals] = set()
        self.ended_by: signal.Signals | None = None
        """The signal that ended the waiting."""
        self.want_end = False
        """Whether a signal that ends programs was passed on."""

    def pass_on(self, child: Child) -> None:
        """From now on they are the command's."""
        self._child = child
        self._catch(child.handed_on)

    def keep(self) -> None:
        """The command is gone: from now on they are ours again."""
        self._child = None

    def _catch(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            if number not in self._caught and signal.getsignal(number) is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._come, number)
                self._caught.add(number)

    def _come(self, number: signal.Signals) -> None:
        if self._child is not None:
            self.want_end = self.want_end or number in _ENDS_ROUNDS
            self._child.signal(number)
        elif number in _ENDS_A_WAIT and self.ended_by is None:
            self.ended_by = number
            assert self._task is not None
            self._task.cancel()
        if number is signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def __enter__(self) -> Self:
        self._catch(_ENDS_A_WAIT)
        return self

    def __exit__(self, *error: object) -> None:
        for number in self._caught:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


class Reporter:
    """Says what is worth knowing while we wait or hold; without ``verbose`` only that a wait is long."""

    def __init__(self, verbose: bool) -> None:
        self._least = logging.WARNING if verbose else logging.ERROR

    def report(self, event: Event) -> None:
        """One event of the coordinator."""
        if isinstance(event, StillWaiting) or (event.level >= self._least and not isinstance(event, _KNOWN_OTHERWISE)):
            say(str(event))
