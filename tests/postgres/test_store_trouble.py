"""The store in trouble: links that die, what is said then, and the purge beside it all.

Here live tests of `postgres/store.py` that disturb it: by the proxy between sending and answer, by ending sessions, by
old rows. What it does in peace stands in `test_store.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgconcert.errors import (
    ConfigurationError,
    CoordinatorClosed,
    Unavailable,
)
from pgconcert.postgres import purge
from pgconcert.postgres.store import Store
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.scenes import QUIET, context, raw
from tests.postgres.store_scenes import (
    CLAIMS,
    PAYLOADS,
    claim,
    count,
    fetch,
    make_old,
    spill,
    statements,
    storing,
    until_purged,
)
from tests.servers import Server

# links that die


@pytest.mark.parametrize("server_did_it", [True, False])
@pytest.mark.parametrize("what", ["spill", "claim"])
async def test_cut_before_the_answer(
    proxy: FaultProxy, server: Server, tables: str, what: str, server_did_it: bool
) -> None:
    """What was under way is uncertain and never asked again; what was not sent goes out on the next link."""
    table = PAYLOADS if what == "spill" else CLAIMS
    async with storing(proxy.url(server.over_tcp(tables))) as store:

        def ask(name: str) -> asyncio.Future[Any]:
            return spill(store, name.encode()) if what == "spill" else claim(store, name)

        await ask("before")
        await until_purged(store)
        proxy.pause("to_client" if server_did_it else "to_server")
        sent = ask("sent")
        waiting = [ask(f"waiting {n}") for n in range(3)]
        if server_did_it:
            await eventually_async(lambda: count(tables, table) == 2)
        proxy.cut()
        proxy.resume()
        with pytest.raises(Unavailable, match=f"the link died before the server confirmed the {what}"):
            await sent
        outcomes = await asyncio.gather(*waiting)
        assert outcomes == [True] * 3 or len(set(outcomes)) == 3
        if what == "claim":
            assert await ask("sent") != server_did_it
    assert count(tables, table) == 4 + (server_did_it or what == "claim")


async def test_fetch_asks_again(proxy: FaultProxy, server: Server, tables: str) -> None:
    """A link that dies while a payload is fetched costs nothing but time, several times in a row."""
    async with storing(proxy.url(server.over_tcp(tables))) as store:
        number = await spill(store, b"precious")
        await until_purged(store)
        proxy.pause("to_client")
        answers = [fetch(store, number) for _ in range(3)]
        proxy.cut()
        await eventually_async(lambda: proxy.connections == 2, what="a second link")
        proxy.cut()
        await eventually_async(lambda: proxy.connections == 3, what="a third link")
        proxy.resume()
        assert await asyncio.gather(*answers) == [b"precious"] * 3


async def test_backend_killed_while_fetching(server: Server, tables: str) -> None:
    """The server ends the session while a fetch waits for a lock on the table."""
    async with storing(tables, network_timeout=20.0) as store:
        number = await spill(store, b"precious")
        await until_purged(store)
        link = store.keeper.link
        assert link is not None
        with raw(tables) as other, other.transaction():
            other.execute("lock table pgconcert.message_payload in access exclusive mode")
            answer = fetch(store, number)
            waits = f"select count(*) from pg_locks where pid = {link.pid} and not granted"
            await eventually_async(lambda: server.execute(waits) == [(1,)])
            assert server.kill_backend(link.pid)
            await eventually_async(lambda: link.dead)
        assert await answer == b"precious"


async def test_fetch_gives_up(proxy: FaultProxy, server: Server, tables: str) -> None:
    """Without a link a fetch ends after ``network_timeout``, with the reason; spills and claims end at once."""
    async with storing(tables) as other:
        number = await spill(other, b"x")
    async with storing(proxy.url(server.over_tcp(tables)), network_timeout=1.0) as store:

        async def fetched() -> bool:
            try:
                return await fetch(store, number) == b"x"
            except Unavailable:  # a second is short for a busy machine
                return False

        await eventually_async(fetched, 30)
        proxy.refuse()
        proxy.cut()
        await eventually_async(lambda: store.keeper.link is None)
        with pytest.raises(Unavailable, match="no fetch within network_timeout=1 s: "):
            await fetch(store, number)
        for answer in (spill(store, b"y"), claim(store, "z")):
            with pytest.raises(Unavailable):
                await answer
        await eventually_async(lambda: store.keeper.health().state == "idle", what="nobody tries any more")
        proxy.accept()
        await eventually_async(fetched, 30)


async def test_no_server() -> None:
    """Without a server the reason is known soon, with the address and without the secret."""
    async with storing("postgresql://ann:hunter2@127.0.0.1:1/app", network_timeout=1.0) as store:
        for answer in (spill(store, b"x"), claim(store, "x"), fetch(store, 1)):
            with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as failed:
                await answer
            assert "hunter2" not in str(failed.value)


async def test_an_address_that_cannot_get_better() -> None:
    """A fetch does not go on trying where trying does not help."""
    async with storing("host=a,b,c port=1,2") as store:
        with pytest.raises(ConfigurationError, match="names 3 hosts but 2 values of port"):
            await fetch(store, 1)


async def test_close(proxy: FaultProxy, server: Server, tables: str) -> None:
    """Whoever still waits is told, whether there was a link or not; afterwards nothing is taken."""
    async with storing(proxy.url(server.over_tcp(tables))) as store:
        await spill(store, b"x")
        await until_purged(store)
        proxy.pause()
        sent: list[asyncio.Future[Any]] = [spill(store, b"y"), claim(store, "y"), fetch(store, 1)]
        unsent: list[asyncio.Future[Any]] = [spill(store, b"z"), claim(store, "z"), fetch(store, 2)]
        await store.close()
        outcomes = await asyncio.gather(*sent, *unsent, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable | CoordinatorClosed) for outcome in outcomes)
        for answer in (spill(store, b"y"), claim(store, "y"), fetch(store, 1)):
            with pytest.raises(CoordinatorClosed):
                await answer
    early = Store(context(proxy.url(server.over_tcp(tables))), "pgconcert")
    answers: list[asyncio.Future[Any]] = [spill(early, b"y"), claim(early, "y"), fetch(early, 1)]
    await early.close()
    for answer in answers:
        with pytest.raises(CoordinatorClosed):
            await answer


async def test_whoever_has_left(tables: str) -> None:
    """An answer that nobody waits for any more harms nobody."""
    async with storing(tables) as store:
        number = await spill(store, b"x")
        number_again = fetch(store, number)
        answers: list[asyncio.Future[Any]] = [spill(store, b"y"), claim(store, "y"), fetch(store, number)]
        for answer in answers:
            answer.cancel()
        assert await number_again == b"x"
        assert await claim(store, "z")


# the purge


async def test_purge(tables: str) -> None:
    """Whoever uses the tables removes what is old, in small statements, and then not again for a minute."""
    make_old(tables)
    async with storing(tables) as store:
        assert await claim(store, "mine")
        number = await spill(store, b"mine")
        await until_purged(store)
        assert (count(tables, PAYLOADS), count(tables, CLAIMS)) == (1, 1)
        assert statements(store) >= 2 + 3  # 1,200 claims go in three statements, 45 payloads too
        make_old(tables)
        before = statements(store)
        await asyncio.gather(*(claim(store, str(n)) for n in range(10)))
        assert await fetch(store, number) == b"mine"
        assert not store.purge.running
        assert statements(store) - before <= 4
    assert count(tables, CLAIMS) == 1200 + 11


async def test_purge_skips_what_is_locked(tables: str) -> None:
    """Rows that others have locked are left to others, and not waited for."""
    make_old(tables, payloads=3, claims=3)
    with raw(tables) as other, other.transaction():
        other.execute("select from pgconcert.message_payload order by id limit 1 for update")
        other.execute("select from pgconcert.message_claim order by id limit 1 for update")
        async with storing(tables) as store:
            assert await claim(store, "mine")
            await until_purged(store)
    assert (count(tables, PAYLOADS), count(tables, CLAIMS)) == (1, 2)


async def test_purges_side_by_side(tables: str) -> None:
    """Several who purge at once share the work, without an error and without waiting for each other."""
    make_old(tables, payloads=200, claims=5000)
    stores = [Store(context(tables, network_timeout=QUIET), "pgconcert") for _ in range(4)]
    try:
        assert await asyncio.gather(*(claim(store, str(n)) for n, store in enumerate(stores))) == [True] * 4
        await asyncio.gather(*map(until_purged, stores))
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert (count(tables, PAYLOADS), count(tables, CLAIMS)) == (0, 4)


async def test_purge_again_after_a_minute(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "_EVERY", 0.0)
    async with storing(tables) as store:
        for n in range(3):
            make_old(tables, claims=3)
            assert await claim(store, str(n))
            await until_purged(store)
            assert count(tables, CLAIMS) == n + 1
