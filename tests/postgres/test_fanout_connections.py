"""A fan-out over a real server: values on a connection of the caller's are sent with its transaction, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import pytest

from pgconcert import AsyncCoordinator


@dataclass
class Order:
    id: int


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_value_goes_with_the_callers_transaction(database: str, blocking: bool) -> None:
    async with AsyncCoordinator(database) as c:
        orders = c.fanout("orders", Order)
        async with orders.subscribe() as listener:
            if blocking:
                with psycopg.connect(database) as connection:
                    await orders.publish(Order(1), connection=connection)
                    connection.rollback()
                    await orders.publish(Order(2), connection=connection)
                    assert listener.statistics.received == 0
                    connection.commit()
            else:
                async with await psycopg.AsyncConnection.connect(database) as other:
                    await orders.publish(Order(1), connection=other)
                    await other.rollback()
                    await orders.publish(Order(2), connection=other)
                    assert listener.statistics.received == 0
                    await other.commit()
            await orders.publish(Order(3))
            assert [(await listener.get(30)).id for _ in range(2)] == [2, 3]
