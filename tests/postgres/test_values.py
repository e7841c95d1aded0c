"""What `pgconcert.values` lets through is taken by a column of that type and comes back equal, with every driver.

Theory: the server is the judge of a range, so values are made from the whole range of the Python type, and whatever the
check lets pass must survive the way there and back. What a driver brings back passes the same check again, unchanged.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as given_by
from hypothesis import strategies as st

from pgconcert import values
from pgconcert.errors import ConfigurationError
from tests.postgres.callers import asyncpg_parts, parts
from tests.servers import Server

COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "int2": st.integers(-(2**15) - 1, 2**15),
    "int4": st.integers(-(2**31) - 1, 2**31),
    "int8": st.integers(-(2**63) - 1, 2**63),
    "boolean": st.booleans(),
    "text": st.text(),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": st.datetimes(),
    "timestamptz": st.datetimes(timezones=st.timezones()),
    "uuid": st.uuids() | st.uuids().map(str),
}
EDGES: dict[str, list[Any]] = {
    "int2": [-(2**15), 2**15 - 1],
    "int4": [-(2**31), 2**31 - 1],
    "int8": [-(2**63), 2**63 - 1],
    "boolean": [True, False],
    "text": ["", "ä€😀", "\x01\x7f", "a\\'\"%s:x"],
    "date": [date.min, date.max],
    "time": [time.min, time.max],
    "timestamp": [datetime.min, datetime.max],  # noqa: DTZ901
    "timestamptz": [
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),  # off by minutes and seconds
    ],
    "uuid": [uuid.UUID(int=0), "ffffffff-ffff-ffff-ffff-ffffffffffff"],
}


def checked(kind: str, given: Sequence[Any]) -> list[Any]:
    """What the check lets pass; the ends of the ranges are one too far on purpose."""
    passed = []
    for value in given:
        try:
            passed.append(getattr(values, kind)(value))
        except ConfigurationError:
            continue
    return passed


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(**asyncpg_parts(url))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("kind", COLUMNS)
async def test_what_passes_comes_back_equal(database: str, kind: str) -> None:
    """Through asyncpg, which is the strictest: it sends binary values of the column's own type."""
    async with asyncpg_connection(database) as connection:
        await connection.execute("set timezone to 'Asia/Kolkata'")
        await connection.execute(f"create temp table v (at int, x {kind})")
        # asyncpg takes the first and the last datetime of Python for the server's infinities
        batches: list[list[Any]] = [[None, *(EDGES[kind][2:] if kind == "timestamptz" else EDGES[kind])]]

        @settings(max_examples=20, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given_by(st.lists(COLUMNS[kind], max_size=20))
        def collect(batch: list[Any]) -> None:
            batches.append(batch)

        collect()
        sent = checked(kind, [value for batch in batches for value in batch])
        assert len(sent) > 10 or kind == "boolean"
        await connection.executemany("insert into v values ($1, $2)", list(enumerate(sent)))
        found = [row["x"] for row in await connection.fetch("select x from v order by at")]
    assert found == sent
    assert [getattr(values, kind)(value) for value in found] == sent


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000.dbapi"])
def test_every_driver_takes_the_edges(database: str, driver: str) -> None:
    module = pytest.importorskip(driver)
    where = parts(database)
    if driver.startswith("pg8000"):
        where["database"] = where.pop("dbname")
        where["unix_sock"] = f"{where.pop('host')}/.s.PGSQL.{where.pop('port')}"
    connection = module.connect(**where)
    try:
        cursor = connection.cursor()
        cursor.execute("set timezone to 'UTC'")
        for kind, edges in EDGES.items():
            cursor.execute(f"create temp table {kind}_column (at int, x {kind})")
            sent = checked(kind, [*edges, None])
            for at, value in enumerate(sent):
                plain = str(value) if driver == "psycopg2" and kind == "uuid" and value else value
                cursor.execute(f"insert into {kind}_column values (%s, %s)", (at, plain))
            cursor.execute(f"select x from {kind}_column order by at")
            assert [getattr(values, kind)(row[0]) for row in cursor.fetchall()] == sent, kind
    finally:
        connection.close()


def test_what_is_refused_would_not_have_been_taken(server: Server) -> None:
    """The ranges are the server's own."""
    for kind in ("int2", "int4", "int8"):
        for value in (max(EDGES[kind]) + 1, min(EDGES[kind]) - 1):
            with pytest.raises(Exception, match="out of range"):
                server.execute(f"select cast('{value}' as {kind})")
