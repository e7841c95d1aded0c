"""What an operator sees of the advisory locks of a server: the question, the record, and how rows become records. Pure.

Theory. The server lists locks by number, so a lock has a name here only if its name was given and derives to it. What
the list means is in the pairs: a session of ours that waits is not blocked in the eyes of the server, but it holds a
mark of interest (kind 1), and the first waiting writer also holds the gate (kind 2). Both are computed from a key, and
cannot be turned back into one; so they are matched with the keys that are held and with the names that were given. A
mark alone does not tell whether its session wants to read or to write.

A permit shows fifty bits of the semaphore's 64, which are matched in the same way. A mark folds the key a little
differently; 46 bits of the two can be compared, which tells the waiters of an unnamed semaphore.

Two things last for one statement only and say nothing about who waits: a releaser that looks at a mark (exclusive), and
a reader that passes a gate (shared). They are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from ..keys import AGREEMENT, GATE, INTEREST, SLOT, KeySpace, interest_pair, numbered_pair

__all__ = ["LOOK", "Names", "SeenLock", "Session", "View", "read_view"]

Kind = Literal["lock", "semaphore", "pair", "mark"]
Mode = Literal["exclusive", "shared", "permit"]
Role = Literal["held", "waiting"]
Pair = tuple[int, int]

LOOK: Final = """
select pg_catalog.statement_timestamp(), pg_catalog.current_database(),
       d.datname, l.classid::int8, l.objid::int8, l.objsubid::int4, l.mode, l.granted,
       l.pid, a.application_name, a.usename,
       case when a.backend_start is not null then coalesce(pg_catalog.host(a.client_addr), 'local') end,
       a.backend_start
from (select 1) one
left join pg_catalog.pg_locks l on l.locktype = 'advisory'
      and (%s or l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()))
left join pg_catalog.pg_database d on d.oid = l.database
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
"""
"""Every advisory lock of this database, or of all: at least one row, which is empty when there is none.

A role without ``pg_read_all_stats`` sees neither address nor time of other roles' sessions. The server keeps nobody's
time of grant.
"""

_FIFTY_BITS: Final = 2**50 - 1
_WAITERS_MODE: Final = {INTEREST: "ShareLock", GATE: "ExclusiveLock"}
_MODES: Final[Mapping[str, Mode]] = {"ExclusiveLock": "exclusive", "ShareLock": "shared"}
_OUR_SUFFIX: Final = " pgconcert-lock"
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Session:
    """Who holds or waits. ``pid`` is None for a prepared transaction; ``client`` is an address, or ``"local"``; what
    the role may not see is None."""

    pid: int | None
    application: str | None
    user: str | None
    client: str | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class SeenLock:
    """One session's part in one key.

    ``name`` is the name that was given, or None. ``number`` is the key of a lock, the lowest fifty bits of a semaphore,
    None for a pair or a mark, which have ``pair``. ``slot`` is None for who waits, ``permits`` where nobody says.
    """

    database: str
    kind: Kind
    name: str | None
    number: int | None
    pair: Pair | None
    slot: int | None
    permits: int | None
    mode: Mode | None
    role: Role
    session: Session

    @property
    def key(self) -> str:
        """The key as people read it, in one line."""
        if self.kind == "mark":
            return f"a key with mark {self.pair}"
        if self.kind == "pair":
            return str(self.pair)
        name = str(self.number) if self.name is None else self.name if self.name.isprintable() else repr(self.name)
        if self.kind == "semaphore":
            of = "" if self.permits is None else f" of {self.permits}"
            return f"{name} (semaphore)" if self.slot is None else f"{name} (semaphore, slot {self.slot}{of})"
        if not _is_integer(name):
            return name
        # the text "42" and the number 42 are two locks
        return str(self.number) if int(name) == self.number else repr(name)


@dataclass(frozen=True, slots=True)
class View:
    """One look: the server's time, the database of the connection, and the locks, holders before waiters."""

    at: datetime
    database: str
    locks: tuple[SeenLock, ...]


class _Target(NamedTuple):
    """What a mark or a slot belongs to."""

    kind: Kind
    name: str | None = None
    number: int | None = None
    pair: Pair | None = None


class Names:
    """The names that somebody asked for, and what each may stand for: a text, a number, a semaphore.

    With no names everything is wanted. Raises ``KeyInvalid`` for a name that can be none of them.
    """

    def __init__(self, names: Sequence[str] = (), namespace: str = "") -> None:
        self.given = tuple(dict.fromkeys(names))
        self._locks: dict[int, str] = {}
        self._semaphores: dict[int, str] = {}
        self.marks: dict[Pair, _Target] = {}
        space = KeySpace(namespace)
        for name in self.given:
            for key in (name, int(name)) if _is_integer(name) else (name,):
                value = space.key(key).value
                self._locks.setdefault(value, name)
                self.marks.setdefault(interest_pair(value), self.lock(value))
            value = space.semaphore(name, 1).value
            self._semaphores.setdefault(value & _FIFTY_BITS, name)
            self.marks.setdefault(interest_pair(value), self.semaphore(value & _FIFTY_BITS))

    def lock(self, key: int) -> _Target:
        """The lock of a key."""
        return _Target("lock", self._locks.get(key), key)

    def semaphore(self, partial: int) -> _Target:
        """The semaphore of fifty bits."""
        return _Target("semaphore", self._semaphores.get(partial), partial)


class _Row(NamedTuple):
    """One row of the server's list, of a ``key`` or of a ``pair``."""

    database: str
    key: int | None
    pair: Pair
    mode: str
    granted: bool
    session: Session

    @property
    def kind(self) -> int:
        """The kind of our pairs; 0 for a key, and for most pairs of others."""
        return self.pair[0] >> 28 if self.key is None else 0


def read_view(rows: Sequence[Sequence[Any]], names: Names) -> View:
    """Make a view of the rows that ``LOOK`` gave. If names were given, it holds what bears one of them."""
    found = [_read(row[2:]) for row in rows if row[3] is not None]
    seen: list[SeenLock] = []
    for database in sorted({row.database for row in found}):
        seen += _locks_of([row for row in found if row.database == database], names)
    if names.given:
        seen = [lock for lock in seen if lock.name is not None]
    return View(rows[0][0], rows[0][1], tuple(sorted(seen, key=_order)))


def _locks_of(rows: Sequence[_Row], names: Names) -> list[SeenLock]:
    """The locks of one database: holders as they stand there, waiters matched with what they wait for."""
    numbered = [(row, *numbered_pair(row.pair)) for row in rows if row.kind in (SLOT, AGREEMENT)]
    permits = {partial: number for _, kind, number, partial in numbered if kind == AGREEMENT}

    def seen(row: _Row, target: _Target, mode: Mode | None, role: Role, slot: int | None = None) -> SeenLock:
        many = permits.get(target.number or 0) if target.kind == "semaphore" else None
        return SeenLock(row.database, *target, slot, many, mode, role, row.session)

    found: list[SeenLock] = []
    marks: dict[Pair, _Target] = {}
    rough: dict[Pair, _Target] = {}
    for row, kind, number, partial in numbered:
        if kind == SLOT:
            target = names.semaphore(partial)
            rough[_rough(row.pair)] = target
            found.append(seen(row, target, "permit", _role(row), number))
    for row in rows:
        if row.key is not None:
            target = names.lock(row.key)
            marks[interest_pair(row.key)] = target
            found.append(seen(row, target, _MODES.get(row.mode), _role(row)))
        elif row.kind not in (INTEREST, GATE, SLOT, AGREEMENT):
            found.append(seen(row, _Target("pair", pair=row.pair), _MODES.get(row.mode), _role(row)))
    marks |= names.marks
    for (mark, _), (row, writes) in _waiters(rows).items():
        target = marks.get(mark) or rough.get(_rough(mark)) or _Target("mark", pair=mark)
        mode: Mode | None = "permit" if target.kind == "semaphore" else "exclusive" if writes else None
        found.append(seen(row, target, mode, "waiting"))
    return found


def _waiters(rows: Sequence[_Row]) -> dict[tuple[Pair, int | None], tuple[_Row, bool]]:
    """Who waits for what has this mark, and whether it is the writer that closed the gate."""
    found: dict[tuple[Pair, int | None], tuple[_Row, bool]] = {}
    for row in rows:
        writes = row.kind == GATE
        if row.mode == _WAITERS_MODE.get(row.kind):
            # a gate differs from the mark of its key in the kind alone
            mark = ((INTEREST << 28) | (row.pair[0] & 0x0FFFFFFF), row.pair[1])
            place = (mark, row.session.pid)
            found[place] = (row, writes or (place in found and found[place][1]))
    return found


def _read(row: Sequence[Any]) -> _Row:
    database, high, low, variant, mode, granted, pid, application, user, client, since = row
    packed = struct.pack(">II", high, low)
    key: int | None = struct.unpack(">q", packed)[0] if variant == 1 else None
    session = Session(pid, (application or "").removesuffix(_OUR_SUFFIX) or None, user, client, since)
    return _Row(database, key, struct.unpack(">ii", packed), mode, granted, session)


def _rough(pair: Pair) -> Pair:
    """The 46 bits that a slot and a mark of one semaphore have in common."""
    return (pair[0] >> 4) & 0x3FFF, pair[1]


def _role(row: _Row) -> Role:
    return "held" if row.granted else "waiting"


def _is_integer(name: str) -> bool:
    return _INTEGER.fullmatch(name) is not None and -(2**63) <= int(name) < 2**63


def _order(lock: SeenLock) -> tuple[object, ...]:
    what = (lock.name is None, lock.name or "", lock.kind, lock.number or 0, lock.pair or ())
    return lock.database, *what, lock.role, lock.slot or 0, lock.session.pid or 0
