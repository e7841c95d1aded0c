"""How a row of somebody else's table becomes Python values: by psycopg's own loaders, from the text of the server.

No connection is asked, so what the text looks like must be settled by the statement: dates and intervals in ISO form
(``datestyle``, ``intervalstyle``). Times with a zone come in UTC. What psycopg does not know is a text. A value that
Python cannot have (a date ``infinity``) concerns its row alone: the error stands in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from psycopg import DataError, adapters
from psycopg.adapt import PyFormat

__all__ = ["RowReader"]

_TEXT: Final = PyFormat.as_pq(PyFormat.TEXT)


class RowReader:
    """Reads rows of certain columns: their names and the oids of their types, in order."""

    def __init__(self, columns: Sequence[tuple[str, int]]) -> None:
        self._columns = [(name, _loader(oid)) for name, oid in columns]

    def read(self, values: Sequence[bytes | None]) -> Mapping[str, Any] | Exception:
        """A row as a mapping, or why it cannot be one. Raises ``ValueError`` if it has other columns."""
        row: dict[str, Any] = {}
        for (name, load), value in zip(self._columns, values, strict=True):
            try:
                row[name] = None if value is None else load(value)
            except Exception as error:  # an application may have loaders of its own
                return DataError(f"column {name!r}: {error}")
        return row


def _loader(oid: int) -> Callable[[bytes], Any]:
    found = adapters.get_loader(oid, _TEXT) or adapters.get_loader(0, _TEXT)
    assert found is not None  # psycopg has one for what it does not know
    return found(oid).load
