"""Fixtures of the tests on every server found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.postgres.scenes import raw
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with database_with_tables(server) as url:
        yield url


_EMPTY: Final = """
    do $$ declare name text;
    begin
        for name in select tablename from pg_tables
                     where schemaname = 'pgconcert' and tablename not in ('version', 'epoch') loop
            execute format('delete from pgconcert.%I', name);
        end loop;
        drop schema public cascade;
        create schema public;
    end $$
"""


@pytest.fixture(scope="module")
def _kept(server: Server) -> Iterator[str]:
    with database_with_tables(server) as url:
        yield url


@pytest.fixture
def emptied(_kept: str) -> str:
    """The URL of a database with our tables, where nothing of earlier tests is left; cheaper than one of its own."""
    with raw(_kept) as owner:
        owner.execute(_EMPTY.encode())
    return _kept
