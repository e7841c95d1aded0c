"""What a hot standby refuses, and how the caller's connection is left."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgconcert import transaction
from pgconcert.testing import rewrite
from tests.servers import Cluster, Server


@pytest.mark.long
def test_a_level_that_is_refused(server: Server, standby: Cluster) -> None:
    """A standby has no serializable transactions. The error is the driver's, and the connection is as before."""
    with psycopg.connect(rewrite(server.tcp_url, port=standby.port)) as connection:
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            transaction.run(connection, lambda _: pytest.fail("it has not begun"), isolation="serializable")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert transaction.run(connection, lambda one: one.execute("select 1").fetchone()) == (1,)


@pytest.mark.long
async def test_a_level_that_is_refused_awaited(server: Server, standby: Cluster) -> None:
    async with await psycopg.AsyncConnection.connect(rewrite(server.tcp_url, port=standby.port)) as connection:

        async def ask(one: psycopg.AsyncConnection[Any]) -> object:
            return await (await one.execute("select 1")).fetchone()

        with pytest.raises(psycopg.errors.FeatureNotSupported):
            await transaction.run(connection, ask, isolation="serializable")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await transaction.run(connection, ask) == (1,)
