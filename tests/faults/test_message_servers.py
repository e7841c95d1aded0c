"""A server that ends idle sessions, speaks TLS, stops, is not there, or is a standby: messages go on, gaps are told.

Theory: who is inside a subscription stays inside, whatever the server does, and is told where something is missing. Who
enters while there is no server waits, unless there is a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import AsyncCoordinator, Gap, GivenUp, Message, PublishUncertain, RequestTimeout, Unavailable
from pgconcert.events import ConnectFailed, LinkLost, LinkOpened
from pgconcert.testing import FaultProxy, eventually_async, rewrite
from tests.faults.scenes import down, seen
from tests.servers import Cluster, OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SMOKE_OUTAGE = 1.0
LONG_OUTAGE = 30.0


async def texts(messages: object, count: int) -> list[str]:
    got = [await messages.get(30) for _ in range(count)]  # type: ignore[attr-defined]
    assert all(isinstance(item, Message) for item in got), got
    return [item.text for item in got]


async def insist(c: AsyncCoordinator, channel: str, text: str) -> int:
    """Publish until it is sent for certain; how many may have been sent before that."""
    uncertain = 0

    async def sent() -> bool:
        nonlocal uncertain
        try:
            await c.publish(channel, text)
        except PublishUncertain:
            uncertain += 1
        except Unavailable:
            pass
        else:
            return True
        return False

    await eventually_async(sent, 60)
    return uncertain


@pytest.mark.parametrize("scope", ["database", "role"])
async def test_idle_sessions_are_ended_by_the_server(server: Server, scope: str) -> None:
    """Ours are not: the setting does not hold for our links, whatever the role or the database says."""
    with server.fresh_database() as url:
        name = str(conninfo_to_dict(url)["dbname"])
        role = f"pgconcert_test_idle_{secrets.token_hex(4)}"
        server.execute(f"create role {role} login superuser password 'secret'")
        try:
            server.execute(f"alter {scope} {name if scope == 'database' else role} set idle_session_timeout = '300ms'")
            async with AsyncCoordinator(rewrite(url, user=role, password="secret"), network_timeout=60) as c:
                lost, opened = seen(c, LinkLost), seen(c, LinkOpened)
                async with c.subscribe("idle", gaps="yield") as messages:
                    await c.publish("idle", "first")
                    for _ in range(3):  # the setting works for others, who have been idle for less than we have
                        with psycopg.connect(rewrite(url, user=role, password="secret"), autocommit=True) as other:
                            pid = other.info.backend_pid
                            await eventually_async(lambda: pid not in {one.pid for one in server.sessions()})  # noqa: B023
                    await c.publish("idle", "second")
                    assert await texts(messages, 2) == ["first", "second"]
                assert lost == []
                assert sorted(event.role for event in opened) == ["listen", "publish"]
        finally:
            server.execute(f"drop role {role}")


@pytest.mark.parametrize("piece", [None, 1000, 16_500])
@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_bursts_over_tls(
    server: Server, database: str, tls_proxy: FaultProxy, piece: int | None, engine: str
) -> None:
    """What the TLS layer has read ahead is read at once: a burst arrives whole, with nothing coming behind it."""
    url = tls_proxy.url(server.over_tcp(database), sslmode="verify-ca", sslrootcert=str(tls_proxy.certificate))
    async with (
        AsyncCoordinator(url, engine=engine, network_timeout=60) as c,  # type: ignore[arg-type]  # pieces take their time
        AsyncCoordinator(database, network_timeout=60) as near,
    ):
        async with c.subscribe("burst", gaps="yield", capacity=10_000) as messages:
            tls_proxy.split(piece)
            for size in (1, 200, 2000, 7000):
                await near.publish_many([("burst", f"{number}:" + "x" * size) for number in range(300)])
                got = await texts(messages, 300)
                assert [text.split(":")[0] for text in got] == [str(number) for number in range(300)]
            await asyncio.gather(*(c.publish("burst", "y" * 7000 + str(number)) for number in range(300)))
            assert len(await texts(messages, 300)) == 300


@contextlib.asynccontextmanager
async def inside_an_outage(server: OwnServer, url: str, seconds: float) -> AsyncIterator[AsyncCoordinator]:
    """Subscribed, then the server is away for so long; the block is entered while it is."""
    async with AsyncCoordinator(url) as c, AsyncCoordinator(url) as new:
        failed = seen(c, ConnectFailed)
        async with c.subscribe("outage", gaps="yield") as messages:
            await c.publish("outage", "before")
            assert await texts(messages, 1) == ["before"]
            async with down(server):
                await eventually_async(lambda: failed)
                entering = asyncio.create_task(new.subscribe("outage", gaps="yield").__aenter__())
                with pytest.raises(Unavailable):
                    await new.publish("outage", "never")
                with pytest.raises(RequestTimeout, match="connection was lost"):
                    await new.request("outage", "never", timeout=2.0)
                with pytest.raises(Unavailable):
                    async with new.subscribe("elsewhere", timeout=0.2):
                        pass
                yield c
                await asyncio.sleep(seconds)  # the outage itself
                assert not entering.done(), "who enters without a limit waits"
            entered = await entering
            gap = await messages.get(60)
            assert isinstance(gap, Gap)
            assert gap.reason == "reconnect"
            assert gap.until - gap.since > seconds
            assert await insist(c, "outage", "after") == 0
            assert await texts(messages, 1) == ["after"]
            assert await texts(entered, 1) == ["after"]
            assert entered.statistics.gaps == {}
            await entered.close()


async def test_a_short_outage(own_server: OwnServer, database: str) -> None:
    async with inside_an_outage(own_server, database, SMOKE_OUTAGE):
        pass


@pytest.mark.long
async def test_a_long_outage(own_server: OwnServer, database: str) -> None:
    async with inside_an_outage(own_server, database, LONG_OUTAGE):
        pass


async def started_into_an_outage(server: OwnServer, url: str, seconds: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with down(server):
            c = await stack.enter_async_context(AsyncCoordinator(url))
            limited = await stack.enter_async_context(AsyncCoordinator(url, reconnect_limit=3))
            failed, told = seen(c, ConnectFailed), seen(limited, ConnectFailed)
            entering = asyncio.create_task(c.subscribe("early").__aenter__())
            with pytest.raises(GivenUp, match="3 times in vain"):
                async with limited.subscribe("early"):
                    pass
            assert len(told) == 3
            with pytest.raises(Unavailable):
                await c.publish("early", "never")
            await asyncio.sleep(seconds)  # the outage itself
            await eventually_async(lambda: len([event for event in failed if event.role == "listen"]) > 2, 30)
            assert not entering.done()
        messages = await asyncio.wait_for(entering, 60)
        async with limited.subscribe("early") as others:  # wanting again begins anew
            await insist(c, "early", "at last")
            assert (await others.get(30)).text == "at last"
        assert (await messages.get(30)).text == "at last"
        assert messages.statistics.gaps == {}
        await messages.close()


async def test_started_while_the_server_is_down(own_server: OwnServer, database: str) -> None:
    await started_into_an_outage(own_server, database, 1.0)


@pytest.mark.long
async def test_started_while_the_server_is_down_for_long(own_server: OwnServer, database: str) -> None:
    await started_into_an_outage(own_server, database, LONG_OUTAGE)


async def test_the_limit_inside_a_subscription(own_server: OwnServer, database: str) -> None:
    """Whoever is inside when it is given up gets what is queued, and then is told so."""
    async with AsyncCoordinator(database, reconnect_limit=2) as c:
        messages = await c.subscribe("limited", gaps="yield").__aenter__()
        await c.publish("limited", "queued")
        await eventually_async(lambda: messages.statistics.queued == 1)
        async with down(own_server):
            assert await texts(messages, 1) == ["queued"]
            with pytest.raises(GivenUp, match="2 times in vain"):
                await messages.get(60)
        await messages.close()
        async with c.subscribe("limited") as again:
            await insist(c, "limited", "again")
            assert (await again.get(30)).text == "again"


async def test_a_standby_is_waited_for(server: Server, database: str, standby: Cluster) -> None:
    """It cannot notify: a publisher is told, a subscriber waits, and both work once it is promoted."""
    standby.catch_up()
    async with AsyncCoordinator(standby.over_tcp(database)) as c:
        failed = seen(c, ConnectFailed)
        with pytest.raises(Unavailable, match=r"not sent.*hot standby.*cannot notify"):
            await c.publish("promoted", "never")
        with pytest.raises(Unavailable, match="standby"):
            async with c.subscribe("promoted", timeout=3.0):
                pass
        entering = asyncio.create_task(c.subscribe("promoted").__aenter__())
        await eventually_async(lambda: any(event.role == "listen" for event in failed))
        assert not entering.done()
        await asyncio.to_thread(standby.promote)
        messages = await asyncio.wait_for(entering, 60)
        await insist(c, "promoted", "by the new primary")
        assert (await messages.get(30)).text == "by the new primary"
        await messages.close()


@pytest.mark.long
async def test_a_failover(own_server: OwnServer, database: str, standby: Cluster) -> None:
    """Subscribers go over to the new primary, and are told of the gap."""
    standby.catch_up()
    place = conninfo_to_dict(own_server.over_tcp(database))
    address = rewrite(database, host="127.0.0.1,127.0.0.1", hostaddr=None, port=f"{standby.port},{place['port']}")
    async with AsyncCoordinator(address) as one, AsyncCoordinator(address) as two:
        async with one.subscribe("failover", gaps="yield") as messages:
            await two.publish("failover", "before")
            assert await texts(messages, 1) == ["before"]
            async with down(own_server, "immediate"):
                await asyncio.to_thread(standby.promote)
                gap = await messages.get(60)
                assert isinstance(gap, Gap)
                await insist(two, "failover", "after")
                assert await texts(messages, 1) == ["after"]
