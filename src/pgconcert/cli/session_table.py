"""How sessions, job locks, elections, groups and runners are shown: tables on a terminal, aligned lines elsewhere, JSON
for programs. Text in, text out; what is not there has no table. See ``lock_table.py`` for what both have in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..sessions.register import from_json
from ..store import Entry, SessionInfo
from .console import printable
from .lock_table import aligned
from .session_look import Holding

__all__ = ["as_json", "print_holding", "tables"]

_NUMBERS = frozenset({"pid", "ttl", "expires in", "holds", "waiting", "token", "session"})

_FURNITURE = 4
"""Lines of a table that are not rows."""


class Section(NamedTuple):
    """One table. The first header says what its rows are."""

    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


def print_holding(console: Console, holding: Holding, *, first: bool) -> None:
    """All of it, with empty lines between the tables; or in one line why nothing can be seen."""
    for number, section in enumerate(sections(holding)):
        if not first or number:
            console.print()
        if console.is_terminal:
            console.print(_table(section))
        else:
            for line in aligned([section.headers, *section.rows]):
                console.print(line, markup=False)
    if holding.trouble is not None:
        console.print(printable(holding.trouble), style="dim", markup=False)


def tables(holding: Holding, room: int) -> tuple[list[Table], int]:
    """For a terminal that has room for so many lines; and how many rows have found no place."""
    made: list[Table] = []
    left_out = 0
    for section in sections(holding):
        fit = max(0, min(len(section.rows), room - _FURNITURE))
        left_out += len(section.rows) - fit
        if fit:
            made.append(_table(section._replace(rows=section.rows[:fit])))
            room -= fit + _FURNITURE
    return made, left_out


def sections(holding: Holding) -> list[Section]:
    """What there is."""
    spaced = holding.namespaced
    found = [
        _taken("job lock", "held by", holding.jobs, spaced),
        _taken("election", "led by", holding.elections, spaced),
        _members(holding, spaced),
        _runners(holding, spaced),
        Section(
            ("session", "application", "pid", "host", "since", "ttl", "expires in", "holds", "data"),
            [_session(each, holding.holds[each.id]) for each in holding.sessions],
        ),
    ]
    return [section for section in found if section.rows]


def as_json(holding: Holding) -> dict[str, Any]:
    """For programs, beside what ``lock_table.as_json`` gives. Tokens are texts, like all numbers of 64 bits."""
    return {
        "trouble": holding.trouble,
        "job_locks": [_entry_as_json(entry) for entry in holding.jobs],
        "elections": [_entry_as_json(entry) for entry in holding.elections],
        "groups": [
            {
                "namespace": namespace,
                "name": name,
                "members": [
                    _entry_as_json(entry) | {"member": entry.subject.member} for entry in _of(holding, namespace, name)
                ],
            }
            for namespace, name in holding.groups
        ],
        "runners": [_entry_as_json(entry) | {"member": entry.subject.member} for entry in holding.runners],
        "sessions": [_session_as_json(each, holding.holds[each.id]) for each in holding.sessions],
    }


def _taken(what: str, by: str, entries: Sequence[Entry], spaced: bool) -> Section:
    wanted = any(entry.release_requested for entry in entries)
    shown = any(entry.data is not None for entry in entries)
    headers = (
        what,
        by,
        "since",
        "expires in",
        "token",
        "waiting",
        *(("release",) if wanted else ()),
        *(("data",) if shown else ()),
    )
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        session = entry.session
        rows.append(
            (
                printable(entry.subject.name),
                printable(str(session)) if session else "-",
                _when(entry.since) if session else "-",
                _left(session),
                str(entry.token) if session else "-",
                str(entry.waiting),
                *((("requested" if entry.release_requested else "-"),) if wanted else ()),
                *((_data(entry.data),) if shown else ()),
            )
        )
    return _spaced(Section(headers, rows), [entry.subject.namespace for entry in entries], spaced)


def _members(holding: Holding, spaced: bool) -> Section:
    rows: list[tuple[str, ...]] = []
    spaces: list[str] = []
    for namespace, name in holding.groups:
        members = _of(holding, namespace, name)
        spaces += [namespace] * max(1, len(members))
        rows += [
            (
                printable(name),
                printable(each.subject.member),
                printable(str(each.session)),
                _when(each.since),
                _left(each.session),
                str(each.token),
                _data(each.data),
            )
            for each in members
        ] or [(printable(name), *"------")]
    headers = ("group", "member", "process", "since", "expires in", "token", "capabilities")
    return _spaced(Section(headers, rows), spaces, spaced)


def _runners(holding: Holding, spaced: bool) -> Section:
    living = Counter((each.subject.namespace, each.subject.name) for each in holding.runners)
    rows: list[tuple[str, ...]] = [
        (
            printable(each.subject.name),
            printable(str(each.session)),
            _when(each.since),
            _left(each.session),
            str(each.session.id) if each.session else "-",
            f"1 of {living[each.subject.namespace, each.subject.name]}",
        )
        for each in holding.runners
    ]
    headers = ("runner", "process", "since", "expires in", "session", "share")
    return _spaced(Section(headers, rows), [each.subject.namespace for each in holding.runners], spaced)


def _of(holding: Holding, namespace: str, name: str) -> list[Entry]:
    return [each for each in holding.members if (each.subject.namespace, each.subject.name) == (namespace, name)]


def _session(session: SessionInfo, holds: int) -> tuple[str, ...]:
    return (
        str(session.id),
        printable(session.application or "-"),
        str(session.pid),
        printable(session.host),
        _when(session.started),
        f"{session.ttl:g} s",
        _left(session),
        str(holds),
        _data(session.data),
    )


def _spaced(section: Section, namespaces: Sequence[str], spaced: bool) -> Section:
    """With the namespace behind the name, if there is any."""
    if not spaced:
        return section
    headers = (section.headers[0], "namespace", *section.headers[1:])
    rows = [(row[0], printable(space) or "-", *row[1:]) for row, space in zip(section.rows, namespaces, strict=True)]
    return Section(headers, rows)


def _table(section: Section) -> Table:
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for header in section.headers:
        made.add_column(header, overflow="fold", justify="right" if header in _NUMBERS else "left")
    for row in section.rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def _when(at: float | None) -> str:
    return "-" if at is None else f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"


def _left(session: SessionInfo | None) -> str:
    return f"{session.expires_in:.1f} s" if session else "-"


def _data(text: str | None) -> str:
    return "-" if text is None else printable(text)


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    held = entry.session is not None
    return {
        "namespace": entry.subject.namespace,
        "name": entry.subject.name,
        "session": None if entry.session is None else _session_as_json(entry.session),
        "since": _iso(entry.since) if held else None,
        "token": str(entry.token) if held else None,
        "data": from_json(entry.data),
        "waiting": entry.waiting,
        "release_requested": entry.release_requested,
    }


def _session_as_json(session: SessionInfo, holds: int | None = None) -> dict[str, Any]:
    return {
        "id": str(session.id),
        "identity": session.identity,
        "application": session.application,
        "host": session.host,
        "pid": session.pid,
        "data": from_json(session.data),
        "ttl": session.ttl,
        "since": _iso(session.started),
        "expires_in": session.expires_in,
    } | ({} if holds is None else {"holds": holds})
