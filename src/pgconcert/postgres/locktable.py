"""How ``pg_locks`` shows our locks: two unsigned halves and a kind. From and to keys and pairs; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LockRow", "halves", "read_row"]


class LockRow(NamedTuple):
    """One granted advisory lock: of a key (then ``pair`` is None) or of a pair, with its session where it was asked."""

    key: int | None
    pair: tuple[int, int] | None
    pid: int = 0
    application: str = ""


def read_row(row: Sequence[bytes | None]) -> LockRow:
    """Read (classid, objid, objsubid) and, if they follow, (pid, application_name)."""
    high, low = int(row[0] or 0), int(row[1] or 0)
    pid = int(row[3] or 0) if len(row) > 3 else 0
    application = (row[4] or b"").decode(errors="replace") if len(row) > 4 else ""
    if row[2] == b"1":
        return LockRow(_signed((high << 32) | low, 64), None, pid, application)
    return LockRow(None, (_signed(high, 32), _signed(low, 32)), pid, application)


def halves(key: int) -> tuple[bytes, bytes]:
    """(classid, objid) of a key, as parameters of a statement."""
    unsigned = key & 0xFFFFFFFFFFFFFFFF
    return b"%d" % (unsigned >> 32), b"%d" % (unsigned & 0xFFFFFFFF)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
