"""``pgconcert watch``: ``status``, again and again. Here live the loop, two screens, the difference of two looks at
locks; that of two looks at what hangs on sessions stands in ``session_changes.py``.

Theory. Two connections and three small statements for each look, so that watching costs the server next to nothing;
what came and went between two looks is not seen. A look that fails is shown, not fatal: the next one makes new
connections. Only the very first must succeed, because an address that never worked is most likely a wrong one.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Protocol, Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..errors import StatementFailed, Unavailable
from ..postgres.lockview import Names, SeenLock, View
from ..postgres.operator import Operator
from ..store import Entry
from .console import make_console, printable
from .ending import Ending, Stopped
from .lock_table import missing, table
from .messaging import schema_option
from .session_changes import entry_changes
from .session_look import Holding, Looker
from .session_table import tables
from .target import namespace_option, reachable, url_option

__all__ = ["Change", "changes", "command"]

_PATIENCE: Final = 5
_FURNITURE: Final = 6
"""Lines of the picture that are not locks."""


class Change(NamedTuple):
    """What one session did to one key between two looks."""

    what: Literal["acquired", "released", "waiting", "stopped waiting"]
    lock: SeenLock


def changes(before: Iterable[SeenLock], after: Iterable[SeenLock]) -> list[Change]:
    """What happened: releases first, then what became of those who waited, then newcomers.

    A session that waited and now holds has acquired, and nothing else. One that holds may also wait, for its own tasks.
    """
    old, new = {_identity(lock): lock for lock in before}, {_identity(lock): lock for lock in after}
    gone = [old[place] for place in old if place not in new]
    come = [new[place] for place in new if place not in old]
    winners = {_who(lock) for lock in come if lock.role == "held"}
    return [
        *(Change("released", lock) for lock in gone if lock.role == "held"),
        *(Change("acquired", lock) for lock in come if lock.role == "held"),
        *(Change("stopped waiting", lock) for lock in gone if lock.role == "waiting" and _who(lock) not in winners),
        *(Change("waiting", lock) for lock in come if lock.role == "waiting"),
    ]


def _who(lock: SeenLock) -> tuple[object, ...]:
    return lock.database, lock.kind, lock.number, lock.pair, lock.session.pid, lock.session.since


def _identity(lock: SeenLock) -> tuple[object, ...]:
    # a waiter's mode may become known later, which is no event
    return *_who(lock), lock.role, lock.slot, lock.mode if lock.role == "held" else None


class Look(NamedTuple):
    """What was seen."""

    view: View
    holding: Holding


class Screen(Protocol):
    """Shows looks."""

    def show(self, look: Look) -> None: ...
    def trouble(self, said: str) -> None: ...


class PlainScreen:
    """A line for each change."""

    def __init__(self, console: Console, names: Names, all_databases: bool) -> None:
        self._console, self._names, self._all = console, names, all_databases
        self._seen: Look | None = None
        self._troubled = False

    def show(self, look: Look) -> None:
        if self._troubled:
            self._troubled = False
            self._say("the server is back")
        before = self._seen
        if before is None:
            for sentence in missing(look.view, self._names, look.holding, all_databases=self._all):
                self._say(sentence)
        if look.holding.trouble is not None and (before is None or before.holding.trouble is None):
            self._say(printable(look.holding.trouble))
        for what, lock in changes(before.view.locks if before else (), look.view.locks):
            happened = "held" if before is None and what == "acquired" else what
            where = f"{printable(lock.database)}  " if self._all else ""
            mode = f"  {lock.mode}" if lock.mode else ""
            who = f"pid {lock.session.pid or '-'}  {printable(lock.session.application or '-')}"
            self._say(f"{where}{lock.key}  {happened}{mode}  {who}")
        for change in entry_changes(before.holding.entries if before else (), look.holding.entries):
            what_now = "held" if before is None else change.what
            who = printable(str(change.session))
            self._say(f"{_named(change.entry)}  {what_now}  token {change.entry.token}  {who}")
        self._seen = look

    def trouble(self, said: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._say(said)

    def _say(self, text: str) -> None:
        self._console.print(f"{datetime.now().astimezone().isoformat(' ', 'milliseconds')}  {text}", markup=False)


def _named(entry: Entry) -> str:
    kind, namespace, name, member = entry.subject
    what = {"job": "job lock", "member": "group"}.get(kind, kind)
    whose = f", member {printable(member)}" if member and kind != "runner" else ""
    where = f" in namespace {printable(namespace)}" if namespace else ""
    return f"{what} {printable(name)}{whose}{where}"


class LiveScreen:
    """The tables, redrawn in its place; the last one stays."""

    def __init__(self, console: Console, names: Names, all_databases: bool) -> None:
        self._console, self._names, self._all = console, names, all_databases
        self._look: Look | None = None
        self._trouble = ""
        self._since = 0.0
        self._live = Live(console=console, auto_refresh=False)

    def show(self, look: Look) -> None:
        self._look, self._trouble = look, ""
        self._draw()

    def trouble(self, said: str) -> None:
        if not self._trouble:
            self._since = time.monotonic()
        self._trouble = said
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        parts: list[Any] = []
        if self._look is not None:
            view, holding = self._look
            when = view.at.astimezone().isoformat(" ", "seconds")
            parts.append(Text(f"database {printable(view.database)}, {when}, q ends", style="dim"))
            said = len(self._names.given) + (holding.trouble is not None)
            room = max(1, self._console.height - _FURNITURE - said)
            if view.locks:
                parts.append(table(view.locks[:room], all_databases=self._all))
            more = max(0, len(view.locks) - room)
            others, left_out = tables(holding, room - len(view.locks) - more)
            parts += others
            if more + left_out:
                parts.append(
                    Text(f"and {more + left_out} more, for which the terminal has no room: name what you want to see")
                )
            parts += map(Text, missing(view, self._names, holding, all_databases=self._all))
            if holding.trouble is not None:
                parts.append(Text(printable(holding.trouble), style="dim"))
        if self._trouble:
            for_now = time.monotonic() - self._since
            parts.append(Text(f"for {for_now:.0f} s {self._trouble}", style="bold red"))
        return Group(*parts)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()


class _Eye:
    """Looks again and again; a connection that broke is made anew at the next look."""

    def __init__(self, address: str, names: Names, all_databases: bool, looker: Looker) -> None:
        self._address, self._names, self._all = address, names, all_databases
        self._operator: Operator | None = None
        self._looker = looker

    def look(self) -> Look:
        if self._operator is None:
            self._operator = Operator(self._address, name="pgconcert watch", timeout=_PATIENCE)
        try:
            return Look(self._operator.look(self._names, all_databases=self._all), self._looker.look())
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        if self._operator is not None:
            self._operator.close()
        self._operator = None


class _Keys:
    """The keyboard, one key at a time, where there is one; else a pause is a pause."""

    def __init__(self, *, wanted: bool) -> None:
        self._there = wanted and sys.stdin.isatty()
        self._before: list[Any] = []

    def quit_within(self, seconds: float) -> bool:
        """Wait so long; whether somebody pressed q meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not self._there:
                time.sleep(left)
            elif select.select([sys.stdin], [], [], left)[0]:
                pressed = os.read(sys.stdin.fileno(), 64)
                if b"q" in pressed.lower():
                    return True
                self._there = bool(pressed)  # nothing: the keyboard is gone
        return False

    def __enter__(self) -> Self:
        if self._there:
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)


def _watch(eye: _Eye, screen: Screen, keys: _Keys, interval: float) -> None:
    screen.show(eye.look())
    while not keys.quit_within(interval):
        try:
            screen.show(eye.look())
        except (Unavailable, StatementFailed) as error:
            what = "is away" if isinstance(error, Unavailable) else "refuses"
            screen.trouble(f"the server {what}, and is asked again: {error}")


@click.command(
    epilog="""\b
Examples:
  pgconcert watch                          all that is held in this database
  pgconcert watch invoice:42 --interval 0.2
  pgconcert watch | tee locks.log          a line for each change

\b
On a terminal q or Ctrl-C ends it. A server that goes away is waited for.

\b
Exit code: 0 after q; 130 after Ctrl-C; 1 if the first look fails.
"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(0.05, 3600), help="Seconds between two looks."
)
@url_option
@namespace_option
@schema_option
@click.option("--all-databases", is_flag=True, help="The locks of every database of the server.")
def command(
    names: tuple[str, ...], interval: float, url: str | None, namespace: str, schema: str, all_databases: bool
) -> None:
    """Watch who holds locks and who waits for them, job locks, elections, groups and runners; with NAMEs, only these.

    What is taken and given back between two looks is not seen.
    """
    wanted = Names(names, namespace)
    console = make_console()
    try:
        with Ending() as ending, ExitStack() as stack:
            address = stack.enter_context(reachable(url))
            looker = stack.enter_context(Looker(address or None, schema, "pgconcert watch", names, namespace))
            eye = _Eye(address, wanted, all_databases, looker)
            stack.callback(eye.close)
            screen: Screen
            if console.is_terminal:
                screen = stack.enter_context(LiveScreen(console, wanted, all_databases))
            else:
                screen = PlainScreen(console, wanted, all_databases)
            keys = stack.enter_context(_Keys(wanted=console.is_terminal))
            stack.callback(ending.finish)
            _watch(eye, screen, keys, interval)
    except Stopped as stopped:
        sys.exit(stopped.code)
