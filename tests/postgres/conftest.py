"""Fixtures of the tests on every server found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with database_with_tables(server) as url:
        yield url
