"""A shop whose workers act in concert. Every browser sees each new order at once, and misses none.

    pip install 'pgconcert[starlette,binary]' psycopg-pool fastapi uvicorn websockets
    uvicorn examples.fastapi_app:app --workers 4 --timeout-graceful-shutdown 10

The address comes from PGCONCERT_URL or DATABASE_URL. Open http://127.0.0.1:8000 in two windows.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import HTMLResponse
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from pgconcert import AcquireTimeout, AsyncCoordinator, LockLost, transaction
from pgconcert.contrib.fastapi import Coordinated
from pgconcert.contrib.starlette import lifespan, readiness, sse, websocket_feed

ADDRESS = os.environ.get("PGCONCERT_URL") or os.environ["DATABASE_URL"]
EVERY = float(os.environ.get("REPORT_EVERY", "60"))  # seconds

TABLE = "create table if not exists orders (id bigint generated always as identity primary key, item text not null)"
ADD = "insert into orders (item) values (%s) returning id"
SINCE = "select id, item from orders where id > %s order by id limit 500"

PAGE = """<!doctype html><title>Orders</title><form><input name="item"><button>Order</button></form><ul></ul><script>
const list = document.querySelector("ul")
const show = text => list.insertAdjacentElement("afterbegin", document.createElement("li")).append(text)
const orders = new EventSource("/orders/stream?after=0")
orders.onmessage = event => show(event.lastEventId + ": " + event.data)
orders.addEventListener("gap", event => { if (!JSON.parse(event.data).replayed) location.reload() })
document.forms[0].onsubmit = event => {
  event.preventDefault()
  fetch("/orders", {method: "POST", headers: {"Content-Type": "application/json"},
                    body: JSON.stringify({item: event.target.item.value})})
}
</script>"""


class Order(BaseModel):
    """What a customer sends."""

    item: str


class Orders:
    """The table, for clients that come back."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self.pool = pool

    async def add(self, item: str) -> int:
        """Add an order, and tell it when that is committed."""
        async with self.pool.connection() as conn:
            # one after the other, so that a lower number is never committed after a higher one that somebody has seen
            await transaction.lock(conn, "orders")
            (number,) = await (await conn.execute(ADD, [item])).fetchone()
            await transaction.publish(conn, "orders", item, id=str(number))
        return number

    async def since(self, last_id: str) -> AsyncIterator[tuple[str, str]]:
        """The orders after one, in parts, so that a slow client keeps no connection."""
        last, more = int(last_id), True
        while more:
            async with self.pool.connection() as conn:
                rows = await (await conn.execute(SINCE, [last])).fetchall()
            for last, item in rows:
                yield str(last), item
            more = len(rows) == 500


async def report(c: AsyncCoordinator) -> None:
    """The job that must not run in two workers at a time: wait for the lock, work while it is ours, and again."""
    while True:
        with contextlib.suppress(LockLost):
            async with c.lock("report"):
                while True:
                    print(f"report by {os.getpid()}", flush=True)
                    await asyncio.sleep(EVERY)


@contextlib.asynccontextmanager
async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """What this application needs besides the coordinator, which is open already."""
    c: AsyncCoordinator = app.state.pgconcert
    check = AsyncConnectionPool.check_connection
    async with AsyncConnectionPool(ADDRESS, min_size=1, max_size=4, check=check, open=False) as pool:
        async with c.lock("orders: table"), pool.connection() as conn:
            await conn.execute(TABLE)  # two workers that do this at the same instant would collide
        job = asyncio.create_task(report(c))
        yield {"orders": Orders(pool)}
        job.cancel()
        await asyncio.wait([job])


app = FastAPI(lifespan=lifespan(lambda: AsyncCoordinator(ADDRESS), inner=own, wait=30))
app.add_route("/ready", readiness)


@app.get("/")
async def page() -> HTMLResponse:
    """What a browser shows."""
    return HTMLResponse(PAGE)


@app.post("/orders", status_code=201)
async def order(request: Request, order: Order) -> dict[str, int]:
    """Order something."""
    return {"id": await request.state.orders.add(order.item)}


@app.get("/orders/stream")
async def stream(request: Request, after: str | None = None) -> Response:
    """New orders as server-sent events; a browser that was cut off goes on where it was."""
    return sse(request, "orders", replay=request.state.orders, after=after, retry=1)


@app.websocket("/orders/feed")
async def feed(websocket: WebSocket, after: str | None = None) -> None:
    """New orders for programs."""
    await websocket_feed(websocket, "orders", replay=websocket.state.orders, after=after)


@app.post("/refresh")
async def refresh(c: Coordinated) -> dict[str, int]:
    """Refresh the prices, in one worker at a time."""
    try:
        async with c.lock("refresh", timeout=1):
            await asyncio.sleep(0.1)  # the work
            await c.publish("prices", "refreshed")
    except AcquireTimeout as busy:
        raise HTTPException(409, str(busy)) from None
    return {"refreshed by": os.getpid()}
