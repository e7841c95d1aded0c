"""How ``pg_locks`` shows our locks: two unsigned halves and a kind. From and to keys and pairs; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ..keys import AGREEMENT, SLOT, gate_pair, interest_pair, numbered_pair
from .owner import Found

__all__ = ["Holders", "LockRow", "Ours", "halves", "numbered_halves", "plain_name", "read_row"]

_KEYS: Final = range(-(2**63), 2**63)
_FIFTY_BITS: Final = 2**50 - 1


class LockRow(NamedTuple):
    """One granted advisory lock: of a key (then ``pair`` is None) or of a pair, with its session where it was asked."""

    key: int | None
    pair: tuple[int, int] | None
    pid: int = 0
    application: str = ""
    shared: bool = False


def read_row(row: Sequence[bytes | None]) -> LockRow:
    """Read (classid, objid, objsubid) and, as far as they follow, (pid, application_name, mode)."""
    high, low = int(row[0] or 0), int(row[1] or 0)
    pid = int(row[3] or 0) if len(row) > 3 else 0
    application = (row[4] or b"").decode(errors="replace") if len(row) > 4 else ""
    shared = len(row) > 5 and row[5] == b"ShareLock"
    if row[2] == b"1":
        return LockRow(_signed((high << 32) | low, 64), None, pid, application, shared)
    return LockRow(None, (_signed(high, 32), _signed(low, 32)), pid, application, shared)


class Ours:
    """What one session has, by key."""

    def __init__(self, rows: Sequence[LockRow]) -> None:
        self._keys = {row.key: row for row in rows if row.key is not None}
        self._pairs = {row.pair for row in rows if row.pair is not None}
        self._numbered: dict[tuple[int, int], set[int]] = {}
        for pair in self._pairs:
            kind, number, bits = numbered_pair(pair)
            self._numbered.setdefault((kind, bits), set()).add(number)

    def of(self, key: int) -> Found:
        """All that concerns this key. A key beyond the server's range is a semaphore's."""
        row = self._keys.get(key)
        bits = key & _FIFTY_BITS
        agreed = self._numbered.get((AGREEMENT, bits), ()) if key not in _KEYS else ()
        return Found(
            exclusive=row is not None and not row.shared,
            shared=row is not None and row.shared,
            marked=interest_pair(key) in self._pairs,
            gate=gate_pair(key) in self._pairs,
            slots=frozenset(self._numbered.get((SLOT, bits), ()) if key not in _KEYS else ()),
            agreed=max(agreed, default=0),
        )


class Holders:
    """Who holds what, by key; the first of the rows."""

    def __init__(self, rows: Sequence[LockRow]) -> None:
        self._keys: dict[int, LockRow] = {}
        self._slots: dict[int, LockRow] = {}
        for row in rows:
            if row.key is not None:
                self._keys.setdefault(row.key, row)
            elif row.pair is not None:
                kind, _, bits = numbered_pair(row.pair)
                if kind == SLOT:
                    self._slots.setdefault(bits, row)

    def of(self, key: int) -> LockRow | None:
        """Who holds this lock, or a slot of this semaphore."""
        return self._keys.get(key) if key in _KEYS else self._slots.get(key & _FIFTY_BITS)


def plain_name(application: str) -> str:
    """The name that somebody gave to a coordinator, from the name of one of its lock sessions."""
    return application.removesuffix(" pgconcert-lock")


def halves(key: int) -> tuple[bytes, bytes]:
    """(classid, objid) of a key, as parameters of a statement."""
    unsigned = key & 0xFFFFFFFFFFFFFFFF
    return b"%d" % (unsigned >> 32), b"%d" % (unsigned & 0xFFFFFFFF)


def numbered_halves(key: int) -> tuple[bytes, bytes]:
    """What the pairs of slots and agreements have of a semaphore's key: eighteen bits of classid, and objid."""
    return b"%d" % ((key >> 32) & 0x3FFFF), b"%d" % (key & 0xFFFFFFFF)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
