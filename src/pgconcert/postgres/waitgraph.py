"""Who waits for whom, read from the server's list of advisory locks. Pure.

Waiters of this library are out of the server's sight: it sees no blocked session and detects no deadlock. But a waiter
holds an interest mark, and the mark of a key can be computed from the key. So every held key gives the mark that its
waiters hold, and the two together give the edges *waits for*, between processes (all lock links of one process have
one name). A cycle of processes is a deadlock if in each of them the same task holds and waits; that cannot be seen
from outside, hence a cycle is reported and never acted upon.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..keys import interest_pair
from .locktable import LockRow

__all__ = ["find_cycle", "process_name"]


def process_name(application: str, pid: int) -> str:
    """The name of the process behind a session: ``billing@host7:4711``, or the session's pid for a stranger."""
    name, _, role = application.rpartition(" pgconcert-")
    return name if role == "lock" and name else f"{application or 'an unnamed session'} (pid {pid})"


def find_cycle(rows: Iterable[LockRow], start: str) -> tuple[str, ...]:
    """The shortest cycle of waiting processes through ``start``, or nothing."""
    holders: dict[tuple[int, int], set[str]] = {}
    marks: dict[str, set[tuple[int, int]]] = {}
    for row in rows:
        name = process_name(row.application, row.pid)
        if row.key is not None:
            holders.setdefault(interest_pair(row.key), set()).add(name)
        elif row.pair is not None:
            marks.setdefault(name, set()).add(row.pair)
    came_from: dict[str, str] = {}
    front = [start]
    while front:
        following: list[str] = []
        for name in front:
            for mark in marks.get(name, ()):
                for holder in sorted(holders.get(mark, ())):
                    if holder == start and name != start:
                        return _path(came_from, start, name)
                    if holder != start and holder not in came_from:
                        came_from[holder] = name
                        following.append(holder)
        front = following
    return ()


def _path(came_from: dict[str, str], start: str, last: str) -> tuple[str, ...]:
    path = [start, last]
    while last != start:
        last = came_from[last]
        path.append(last)
    return tuple(reversed(path))
