"""Ships orders: rows of a table of the application, which all processes that run this share.

    python shipping.py

The address comes from PGCONCERT_URL or DATABASE_URL; `pgconcert schema apply` has made the tables of pgconcert, and
`pgconcert schema show --table orders ...` has printed what the table `orders` needs.
"""

import asyncio
import os

from pgconcert import AsyncCoordinator, TableTasks
from pgconcert.shutdown import graceful_shutdown

EACH = float(os.environ.get("SHIPPING_EACH", "1"))  # seconds for an order
TTL = float(os.environ.get("SHIPPING_TTL", "40"))  # seconds after which others ship what we have when we die

ORDERS = TableTasks(
    "orders",
    where="t.shipped_at is null",
    order_by="t.created_at",
    finish="shipped_at = clock_timestamp()",
)


async def ship(tasks):
    """The work. It is cancelled when others may have these orders by now."""
    for task in tasks:
        print(f"{os.getpid()} ships order {task.id} of {task.payload['customer']}", flush=True)
        await asyncio.sleep(EACH)


async def main():
    """Ship our share until a signal comes; then the others have at once what we have not shipped."""
    async with graceful_shutdown(), AsyncCoordinator() as c:
        await c.runner("shipping", ship, ORDERS, batch=2, ttl=TTL).run()


if __name__ == "__main__":
    asyncio.run(main())
