"""How locks are shown: a table on a terminal, aligned lines elsewhere, JSON for programs. Text in, text out.

Nothing is ever cut: a long key is folded over several lines of its cell, or makes a plain line longer. What comes from
others (names of applications, users, databases) is shown without its control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..postgres.lockview import Names, SeenLock, View
from .console import printable
from .session_look import Holding

__all__ = ["as_json", "missing", "print_locks", "table"]

SCHEMA_VERSION: Final = 1
_HEADERS: Final = ("key", "mode", "role", "pid", "application", "client", "session since")
_STYLES: Final = {"held": "green", "waiting": "yellow"}


def print_locks(console: Console, view: View, names: Names, holding: Holding, *, all_databases: bool) -> None:
    """The locks, and a sentence for each name that nobody holds or waits for, nor in ``holding``."""
    if view.locks and console.is_terminal:
        console.print(table(view.locks, all_databases=all_databases))
    elif view.locks:
        for line in lines(view.locks, all_databases=all_databases):
            console.print(line, markup=False)
    for sentence in missing(view, names, holding, all_databases=all_databases):
        console.print(sentence, markup=False)


def missing(view: View, names: Names, holding: Holding, *, all_databases: bool) -> list[str]:
    """What is not there, in sentences."""
    where = "in any database" if all_databases else f"in database {printable(view.database)}"
    if not names.given:
        return [] if view.locks or not holding.empty else [f"no advisory lock is held or waited for {where}"]
    there = {lock.name for lock in view.locks}
    return [
        f"nobody holds or waits for {printable(name)} {where}"
        for name in names.given
        if name not in there and not holding.has(name)
    ]


def table(locks: Iterable[SeenLock], *, all_databases: bool) -> Table:
    """For a terminal."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for header in _headers(all_databases):
        made.add_column(header, overflow="fold", justify="right" if header == "pid" else "left")
    for lock in locks:
        made.add_row(*(Text(cell) for cell in _cells(lock, all_databases)), style=_STYLES[lock.role])
    return made


def lines(locks: Iterable[SeenLock], *, all_databases: bool) -> list[str]:
    """For a file or a pipe: one line for each lock, columns two blanks apart."""
    return aligned([_headers(all_databases), *(_cells(lock, all_databases) for lock in locks)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of one length, as lines with columns two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_json(view: View, namespace: str) -> dict[str, Any]:
    """For programs. The names and meanings here are documented, and change only with the version.

    A number is a text, because many readers of JSON keep 53 bits of a number and a key has 64.
    """
    return {
        "version": SCHEMA_VERSION,
        "time": view.at.isoformat(),
        "database": view.database,
        "namespace": namespace,
        "locks": [
            {
                "database": lock.database,
                "kind": lock.kind,
                "key": lock.key,
                "name": lock.name,
                "number": None if lock.number is None else str(lock.number),
                "pair": lock.pair,
                "slot": lock.slot,
                "permits": lock.permits,
                "mode": lock.mode,
                "role": lock.role,
                "pid": lock.session.pid,
                "application": lock.session.application,
                "user": lock.session.user,
                "client": lock.session.client,
                "session_since": lock.session.since.isoformat() if lock.session.since else None,
            }
            for lock in view.locks
        ],
    }


def _headers(all_databases: bool) -> tuple[str, ...]:
    return ("database", *_HEADERS) if all_databases else _HEADERS


def _cells(lock: SeenLock, all_databases: bool) -> tuple[str, ...]:
    session = lock.session
    cells = (
        lock.key,
        lock.mode or "-",
        lock.role,
        str(session.pid or "-"),
        printable(session.application or "-"),
        session.client or "-",
        f"{session.since.astimezone():%Y-%m-%d %H:%M:%S}" if session.since else "-",
    )
    return (printable(lock.database), *cells) if all_databases else cells
