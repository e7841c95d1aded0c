"""What a driver's connection says of its transaction, and statements with ``%s``: for what wraps drivers.

SQLAlchemy and Django stand on drivers of several makes; here lives what must be asked of those. Pure: nothing is sent.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final, Literal

from .flow import Query

__all__ = ["Status", "percent", "status"]

Status = Literal["idle", "open", "failed"]
"""No transaction; one; one whose statement has failed. A broken connection has none."""

_LIBPQ: Final[dict[int, Status]] = {0: "idle", 1: "open", 2: "open", 3: "failed", 4: "idle"}
_WIRE: Final[dict[bytes, Status]] = {b"I": "idle", b"T": "open", b"E": "failed"}


def status(connection: Any) -> Status | None:
    """The state of the transaction of a driver's own connection; ``None`` from a driver that tells no failed from an
    open one, or nothing."""
    told = getattr(getattr(connection, "info", None), "transaction_status", None)  # psycopg, psycopg2
    if isinstance(told, int):
        return _LIBPQ.get(int(told))
    letter = getattr(connection, "_transaction_status", "")  # pg8000 keeps what the server has said last, if anything
    if letter is None or isinstance(letter, bytes):
        return _WIRE.get(letter or b"I")
    ask = getattr(connection, "is_in_transaction", None)  # asyncpg
    if ask is not None and not ask():
        return "idle"
    return None


_PART: Final = re.compile(r"""("[^"]*"|'[^']*')|\$(\d+)|(%)""")


@cache
def _percent(sql: str, quoted: bool) -> tuple[str, tuple[int, ...]]:
    places: list[int] = []

    def rewritten(found: re.Match[str]) -> str:
        text, number, _ = found.groups()
        if text is not None:
            return text.replace("%", "%%") if quoted else text
        if number is None:
            return "%%"
        places.append(int(number) - 1)
        return "%s"

    return _PART.sub(rewritten, sql), tuple(places)


def percent(query: Query, quoted: bool = True, bytes_as_text: bool = False) -> tuple[str, tuple[Any, ...]]:
    """A query with ``%s`` for its values, and the values in the order of those, for drivers that know no numbers.

    :param quoted: whether the driver looks for ``%`` between quotes too: psycopg and psycopg2 do, pg8000 does not.
    :param bytes_as_text: for drivers that put values into the statement: they would write bytes as a ``bytea`` of
        whichever schema comes first in the search path.
    """
    sql, places = _percent(query.sql, quoted)
    values = (query.values[place] for place in places)
    return sql, tuple(rf"\x{value.hex()}" if bytes_as_text and isinstance(value, bytes) else value for value in values)
