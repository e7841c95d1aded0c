"""The port for messages on a real server: there and back, and nothing is lost unreported, whatever happens.

Here live tests of `PostgresMessenger` as a whole, through `PostgresBackend`; what happens to its listen link when
somebody wants another, or when there is none, stands in `test_listen_links.py`.
"""

import asyncio
import os
from collections.abc import Callable

import pytest

from pgconcert.errors import BrokerClosed, PublishUncertain, Unavailable
from pgconcert.events import LinkLost, ListenerDeaf, ListenerReady
from pgconcert.postgres import probe
from pgconcert.testing import FaultProxy, eventually, eventually_async, rewrite
from tests.poolers import PgBouncer
from tests.postgres.ears import Heard
from tests.postgres.messaging import Numbered, flood, messaging
from tests.postgres.scenes import raw
from tests.servers import Server

# the way there and back


async def test_there_and_back(database: str) -> None:
    """What is published is heard, with its sender; others are told from ourselves."""
    async with messaging(database) as play:
        heard = Heard(play.messenger, "way")
        await heard.until_ready()
        assert await play.publish("way", "ours")
        with raw(database) as other:
            other.execute("notify way, 'theirs'")
        await eventually_async(lambda: heard.payloads == ["ours", "theirs"])
        assert heard.own == [True, False]
        hearing = play.backend.health().hearing
        assert hearing is not None
        assert hearing.proven
        assert hearing.connects == 1
        assert hearing.own_at is not None
        assert hearing.others_at is not None
        assert hearing.own_at <= hearing.others_at


async def test_everything_is_said_in_capabilities(database: str) -> None:
    """The backend carries messages, large ones too, and can let one process handle each."""
    async with messaging(database) as play:
        assert {"messages", "payloads", "claims"} <= play.backend.capabilities


async def test_own_outlives_the_link(database: str, server: Server) -> None:
    """What a link of ours has sent is our own also if the link has died before it is heard."""
    async with messaging(database) as play:
        heard = Heard(play.messenger, "mine")
        await heard.until_ready()
        await play.publish("mine", "warm")
        await eventually_async(heard.payloads.copy)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(asyncio.Future.exception)
        play.messenger.publish(b"mine", b"last words", answer)
        # the loop stands still: the message and the end of its link are read one after the other, in any order
        eventually(lambda: server.kill_backend(play.pid("publish")))
        await eventually_async(lambda: play.told(LinkLost, "publish"))
        await play.publish("mine", "after")
        await eventually_async(lambda: heard.payloads[-1:] == ["after"])
        assert all(heard.own)


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_own_behind_a_pooler(
    database: str, pgbouncer: Callable[..., PgBouncer], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In session mode the session behind it is ours; in transaction mode it is anybody's."""
    for patience in ("_PATIENCE", "_SOON"):  # on a busy machine a pooler keeps its clients waiting in either mode
        monkeypatch.setattr(probe, patience, 3.0)
    pooler = pgbouncer(mode)
    async with messaging(pooler.url, direct_url=database) as play:
        heard = Heard(play.messenger, "pooled")
        await heard.until_ready()
        assert await play.publish("pooled", "x")
        await eventually_async(lambda: heard.payloads == ["x"])
        assert heard.own == [mode == "session"]


async def test_a_thousand_channels_are_one_session(database: str, server: Server) -> None:
    """However many channels and ears: one session listens, and each ear hears its own."""
    async with messaging(database) as play:
        ears = [Heard(play.messenger, f"channel {n % 1000}") for n in range(2000)]
        for ear in ears:
            await ear.until_ready()
        with raw(database) as other:
            other.execute("select count(pg_notify('channel ' || n, n::text)) from generate_series(0, 999) n")
        await eventually_async(lambda: all(ear.payloads for ear in ears))
        assert [ear.payloads for ear in ears] == [[str(n % 1000)] for n in range(2000)]
        ours = [session for session in server.sessions() if "pgconcert" in session.application_name]
        assert len(ours) == 1


async def test_after_the_end(database: str) -> None:
    """Closed: ears are told, publishing and proofs are refused at once, nothing hangs."""
    async with messaging(database) as play:
        heard = Heard(play.messenger, "end")
        await heard.until_ready()
    assert heard.story == ["ready", "deaf"]
    with pytest.raises(BrokerClosed):
        await play.publish("end", "x")
    with pytest.raises(Unavailable):
        await play.prove()
    play.messenger.bounce("nobody is there")


@pytest.mark.needs("pgbouncer")
async def test_publishing_through_a_transaction_pooler(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Publishing needs no session of its own; listening has the direct address."""
    pooler = pgbouncer("transaction", pool_size=2)
    async with messaging(pooler.url, direct_url=database) as play:
        ear = Numbered(play.messenger, "through")
        await ear.until_ready()
        await asyncio.gather(*(play.publish("through", str(n)) for n in range(1, 501)))
        await eventually_async(lambda: ear.last == 500)
        assert ear.unreported() == []


async def test_a_database_of_another_encoding(server: Server) -> None:
    """What it cannot store fails alone, its neighbours arrive, in order."""
    name = f"pgconcert_test_latin_{os.getpid()}"
    server.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    try:
        async with messaging(rewrite(server.url, dbname=name)) as play:
            heard = Heard(play.messenger, "latin")
            await heard.until_ready()
            assert await play.publish("latin", "warm")
            texts = [("\N{ELEPHANT}" if n % 7 == 3 else f"é {n // 2}") for n in range(30)]
            fates = await asyncio.gather(*(play.publish("latin", text) for text in texts), return_exceptions=True)
            assert [fate is True for fate in fates] == [text[0] == "é" for text in texts]
            wanted = ["warm", *(text for text in texts if text[0] == "é")]
            await eventually_async(lambda: len(heard.payloads) == len(wanted))
            assert heard.payloads == wanted
    finally:
        server.execute(f"drop database {name} with (force)")


# losses


@pytest.mark.long
async def test_killed_under_flood(database: str, server: Server) -> None:
    """Each kill is told to every ear, and outside the windows so told nothing is missing."""
    async with messaging(database) as play:
        ears = [Numbered(play.messenger, "flood") for _ in range(3)]
        with flood(database, "flood"):
            for ear in ears:
                await ear.until_ready()
            for kills in range(1, 11):
                for ear in ears:
                    await ear.until(ears[0].last + 50)
                server.kill_backend(play.pid())
                for ear in ears:
                    await ear.until_ready(kills + 1)
            for ear in ears:
                await ear.until(ears[0].last + 1)
        for ear in ears:
            assert ear.unreported() == []
            assert ear.story == ["ready", *(["deaf", "ready"] * 10)]
        events = play.told(ListenerReady)
        assert [event.initial for event in events if isinstance(event, ListenerReady)] == [True, *([False] * 10)]


@pytest.mark.parametrize("times", [100, pytest.param(400, marks=pytest.mark.long)])
async def test_subscribing_under_flood(database: str, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Ears come and go, on a channel that is given up between them or not: what is sent after ready is heard."""
    monkeypatch.setattr("pgconcert.postgres.listener._LINGER", 0.0)
    async with messaging(database) as play:
        keeps = Heard(play.messenger, "another")
        await keeps.until_ready()
        with flood(database, "coming and going") as sent:
            for n in range(times):
                ear = Numbered(play.messenger, "coming and going", sent)
                await ear.until_ready()
                await ear.until(ear.marks[0] + 11)
                ear.leave()
                heard = [note for note in ear.notes if isinstance(note, int)]
                assert heard[0] <= ear.marks[0] + 1
                assert ear.unreported() == []
                for _ in range(n % 3):
                    await asyncio.sleep(0)
                assert ear.last == heard[-1]


async def test_wanted_again_while_it_is_given_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ear that comes while UNLISTEN is under way is not told that it hears before it does."""
    monkeypatch.setattr("pgconcert.postgres.listener._LINGER", 0.0)
    async with messaging(database) as play:
        keeps = Heard(play.messenger, "another")
        await keeps.until_ready()
        for n in range(50):
            first = Heard(play.messenger, "again")
            await first.until_ready()
            first.leave()
            # the timer fires, UNLISTEN leaves, and its answer is not read yet
            for _ in range(n % 4):
                await asyncio.sleep(0)
            second = Heard(play.messenger, "again")
            await second.until_ready()
            assert await play.publish("again", str(n))
            await eventually_async(second.payloads.copy)
            assert second.payloads == [str(n)]
            second.leave()


async def test_an_ear_that_leaves_hears_no_more(database: str) -> None:
    """Not even what came in the same breath: an ear may send others away, and itself."""
    async with messaging(database) as play:

        class Jealous(Heard):
            def heard(self, payload: bytes, pid: int, own: bool) -> None:
                super().heard(payload, pid, own)
                for rival in (first, second, third):
                    if rival is not self:
                        rival.leave()

        first, second, third = (Jealous(play.messenger, "jealous") for _ in range(3))
        for ear in (first, second, third):
            await ear.until_ready()
        with raw(database) as other:
            other.execute("select pg_notify('jealous', n::text) from generate_series(1, 5) n")
        await eventually_async(lambda: len(first.payloads) == 5)
        await play.prove()
        assert second.payloads == third.payloads == []


async def test_tls_bursts(tls_proxy: FaultProxy, server: Server, database: str) -> None:
    """Bursts that fill the TLS layer arrive whole, although nothing else happens on the link."""
    url = tls_proxy.url(server.over_tcp(database), sslmode="require")
    async with messaging(url) as play:
        ear = Numbered(play.messenger, "burst")
        await ear.until_ready()
        with raw(database) as other:
            for burst in range(40):
                other.execute(
                    "select count(pg_notify('burst', lpad(n::text, 3000, '0')))"
                    " from generate_series(%s::int, %s::int) n",
                    (80 * burst + 1, 80 * burst + 80),
                )
                await ear.until(80 * burst + 80)
        assert ear.unreported() == []


async def test_uncertain_is_not_sent_again(proxy: FaultProxy, server: Server, database: str) -> None:
    """Behind a link that dies before the answer the caller is told so, and the message is there at most once."""
    async with messaging(proxy.url(server.over_tcp(database)), direct_url=database) as play:
        heard = Heard(play.messenger, "once")
        await heard.until_ready()
        await play.publish("once", "before")
        proxy.pause("to_client")
        fate = asyncio.ensure_future(play.publish("once", "sent"))
        await eventually_async(lambda: heard.payloads == ["before", "sent"])
        proxy.cut()
        proxy.resume()
        with pytest.raises(PublishUncertain):
            await fate
        await play.publish("once", "after")
        await eventually_async(lambda: heard.payloads == ["before", "sent", "after"])


async def test_frozen_network(proxy: FaultProxy, server: Server, database: str) -> None:
    """No byte comes any more: every ear is told within the time, and hears again when the network is back."""
    async with messaging(proxy.url(server.over_tcp(database)), network_timeout=1.0) as play:
        ears = [Heard(play.messenger, f"frozen {n}") for n in range(5)]
        for ear in ears:
            await ear.until_ready()
        proxy.pause()
        await eventually_async(lambda: not any(ear.hearing for ear in ears), 30)
        proxy.cut()
        proxy.resume()
        for ear in ears:
            await ear.until_ready(2)
        assert not play.told(ListenerDeaf), "the server was silent: that is a loss, and no deafness"
