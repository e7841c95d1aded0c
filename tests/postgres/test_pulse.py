"""Deafness on a real server: a link whose notifications do not come is found out, and nothing else is taken for it.

Here live tests of `postgres/pulse.py` and `postgres/echoes.py`. Theory: a link goes deaf when its session listens to
nothing any more (`UNLISTEN *` behind our back): the server goes on committing what is sent over it, as behind a proxy
that swallows notifications. The interval is made short, and so is the patience where deafness is to be found; a link
has all the time for its other answers, because a server on a busy machine stands still now and then.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from pgconcert.errors import StatementFailed, Unavailable
from pgconcert.events import Event, LinkLost, ListenerDeaf
from pgconcert.postgres.link import Link, Reply, Statement
from pgconcert.postgres.listener import Listener
from pgconcert.postgres.statements import NOTIFY
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.ears import Heard
from tests.postgres.scenes import QUIET, ask, context, raw
from tests.servers import Server

_PULSE = b"pgconcert:pulse"


@asynccontextmanager
async def listening(
    url: str, *, interval: float = 0.1, timeout: float = QUIET, patience: float | None = None
) -> AsyncGenerator[Listener]:
    """A listener whose pulse is quick. ``patience``: how soon a pulse that is not heard is deafness, if that is to be
    sooner than ``timeout``; a server that stands still for as long has only not answered."""
    listener = Listener(replace(context(url, network_timeout=timeout), pulse_interval=interval))
    if patience is not None:
        listener._heart._patience = patience
    try:
        yield listener
    finally:
        await listener.close()


def seen(listener: Listener, *kinds: type[Event]) -> list[Event]:
    """A list that grows with the events of these kinds."""
    events: list[Event] = []
    listener.keeper.context.events.subscribe(events.append, *kinds)
    return events


def link_of(listener: Listener) -> Link:
    """The link that is up."""
    assert listener.keeper.link is not None
    return listener.keeper.link


async def proof(listener: Listener) -> float:
    """Ask for a proof, and wait for it."""
    answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    listener.prove(answer)
    return await answer


async def test_a_deaf_link_is_found_out_and_replaced(database: str) -> None:
    """Nobody sends anything, and still: deaf, a fresh link, ready again; and then it hears."""
    async with listening(database, patience=0.5) as listener:
        deafness, lost = seen(listener, ListenerDeaf), seen(listener, LinkLost)
        heard = Heard(listener, "silent")
        await heard.until_ready()
        await ask(link_of(listener), "unlisten *")
        await heard.until_ready(2)
        assert heard.story == ["ready", "deaf", "ready"]
        assert len(deafness) == len(lost) == 1
        with raw(database) as other:
            other.execute("notify silent, 'x'")
        await eventually_async(lambda: heard.payloads == ["x"])


async def test_a_deaf_link_is_replaced_without_a_pause(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has been deaf for long enough does not wait for the pause that follows a loss."""
    monkeypatch.setattr("pgconcert.postgres.keeper._FIRST_DELAY", 1e6)
    monkeypatch.setattr("pgconcert.postgres.keeper._LAST_DELAY", 1e6)
    async with listening(database, patience=0.5) as listener:
        heard = Heard(listener, "silent")
        await heard.until_ready()
        await ask(link_of(listener), "unlisten *")
        await heard.until_ready(2)


async def test_a_silent_link_that_hears_is_left_alone(database: str) -> None:
    """Pulse after pulse comes back: the link stays, and what they took is known."""
    async with listening(database, patience=0.1) as listener:
        events = seen(listener, ListenerDeaf, LinkLost)
        heard = Heard(listener, "silent")
        await heard.until_ready()
        link = link_of(listener)
        before = link.statements
        await eventually_async(lambda: link.statements >= before + 5)
        assert link_of(listener) is link
        assert events == []
        assert (listener.hearing().latency or 0) > 0
        assert heard.story == ["ready"]


async def test_one_pulse_serves_all(database: str) -> None:
    """Of several silent listeners, each is served by the pulses of the others too."""
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(database, interval=0.3, patience=0.3)) for _ in range(8)]
        for listener in listeners:
            await Heard(listener, "silent").until_ready()
        watcher = await stack.enter_async_context(listening(database, interval=QUIET))
        pulses = Heard(watcher, _PULSE.decode())
        await pulses.until_ready()
        # alone, each would have sent one for every 0.44 s at the least; some may begin at the same instant, and after
        # a pause of this process all do, so one quiet stretch of several is enough
        shares: list[float] = []
        while len(shares) < 20 and not any(share < 0.5 for share in shares):
            began, before = time.monotonic(), len(pulses.payloads)
            await eventually_async(lambda before=before: len(pulses.payloads) >= before + 8, 30)  # type: ignore[misc]
            alone = len(listeners) * (time.monotonic() - began) / 0.44
            shares.append((len(pulses.payloads) - before) / alone)
        assert min(shares) < 0.5


async def test_talk_of_others_makes_pulses_needless(database: str) -> None:
    """While anything is heard, no pulse is sent."""
    async with listening(database, interval=1.0) as listener:
        heard = Heard(listener, "busy")
        await heard.until_ready()
        link = link_of(listener)
        # a machine that stands still makes a silence of its own, and then it is not the one that was to be tested
        sent = silence = 1e6
        for _ in range(10):
            if silence < 1.0:
                break
            silence, before, last = 0.0, link.statements, time.monotonic()
            with raw(database) as other:
                for _ in range(50):
                    other.execute("notify busy")
                    await asyncio.sleep(0.05)
                    silence = max(silence, link.heard_at - last, time.monotonic() - link.heard_at)
                    last = link.heard_at
            sent = link.statements - before
        assert silence < 1.0
        assert sent == 0


@pytest.mark.long
async def test_a_blocked_loop_is_not_deafness(database: str) -> None:
    """However long the loop stands still, at whatever point of a pulse: the link is kept."""
    async with listening(database, timeout=0.2) as listener:
        events = seen(listener, ListenerDeaf)
        heard = Heard(listener, "blocked")
        await heard.until_ready()
        link = link_of(listener)
        for pause in range(40):
            time.sleep(0.3)
            for _ in range(pause % 5):
                await asyncio.sleep(0.01)
        assert events == []
        assert link_of(listener) is link


async def test_a_pulse_that_is_refused_proves_nothing(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is full, or the lock not to be had: the link is kept, and tried again."""
    send = Link.send
    refused = 0

    def refuse(self: Link, sent: Statement, params: tuple[bytes, ...], reply: Reply) -> None:
        nonlocal refused
        if sent is NOTIFY and params[0] == _PULSE:
            refused += 1
            state = ("54000", "55P03")[refused % 2]
            asyncio.get_running_loop().call_soon(reply, [], StatementFailed("not now", state))
        else:
            send(self, sent, params, reply)

    monkeypatch.setattr(Link, "send", refuse)
    async with listening(database) as listener:
        events = seen(listener, ListenerDeaf, LinkLost)
        heard = Heard(listener, "refused")
        await heard.until_ready()
        await eventually_async(lambda: refused >= 4)
        assert events == []
        assert heard.story == ["ready"]


async def test_a_stuck_ear_does_not_delay_the_proof(database: str) -> None:
    """What consumers do with what they hear is none of the pulse's business; an ear that raises is reported."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, found: complaints.append(found))
    complaints: list[dict[str, object]] = []

    class Broken(Heard):
        def heard(self, payload: bytes, pid: int, own: bool) -> None:
            raise RuntimeError("a defect of the ear")

    async with listening(database) as listener:
        broken, well = Broken(listener, "stuck"), Heard(listener, "stuck")
        await broken.until_ready()
        await well.until_ready()
        with raw(database) as other:
            other.execute("select pg_notify('stuck', n::text) from generate_series(1, 50) n")
        await eventually_async(lambda: len(well.payloads) == 50)
        assert await proof(listener) > 0
        assert len(complaints) == 50


# proofs on demand


async def test_a_proof_is_behind_everything_committed_before(database: str) -> None:
    """When it is answered, all that was committed before the question has been heard."""
    async with listening(database, interval=QUIET) as listener:
        heard = Heard(listener, "before")
        await heard.until_ready()
        with raw(database) as other:
            for n in range(1, 21):
                other.execute("select pg_notify('before', g::text) from generate_series(1, 100) g")
                assert await proof(listener) > 0
                assert len(heard.payloads) == 100 * n
        assert await proof(listener) == listener.hearing().latency


async def test_proofs_asked_together_share_an_echo(database: str) -> None:
    """A hundred questions of one turn cost one notification."""
    async with listening(database, interval=QUIET, timeout=QUIET) as listener:
        await Heard(listener, "together").until_ready()
        before = link_of(listener).statements
        assert len(await asyncio.gather(*(proof(listener) for _ in range(100)))) == 100
        assert link_of(listener).statements - before == 1


async def test_a_proof_on_a_deaf_link_fails_and_heals_it(database: str) -> None:
    """Whoever asks for a proof finds out what the pulse would have found later."""
    async with listening(database, interval=QUIET) as listener:
        deafness = seen(listener, ListenerDeaf)
        heard = Heard(listener, "deaf")
        await heard.until_ready()
        await ask(link_of(listener), "unlisten *")
        listener._echoes._timeout = 0.5
        while not deafness:  # what the server has not even answered in time is no deafness yet
            with pytest.raises(Unavailable, match=r"did not come back within network_timeout=0\.5 s"):
                await proof(listener)
        listener._echoes._timeout = QUIET
        await heard.until_ready(2)
        assert len(deafness) == 1
        assert await proof(listener) > 0


async def test_a_proof_without_a_link(database: str, server: Server) -> None:
    """Never connected, gone, or going: the question is answered at once."""
    async with listening(database, interval=QUIET, timeout=QUIET) as listener:
        with pytest.raises(Unavailable, match="nothing is listened to"):
            await proof(listener)
        heard = Heard(listener, "gone")
        await heard.until_ready()
        asked = asyncio.ensure_future(proof(listener))
        await asyncio.sleep(0)
        link_of(listener).close("a test wanted it")
        with pytest.raises(Unavailable, match="a test wanted it"):
            await asked
        with pytest.raises(Unavailable, match="there is no connection: a test wanted it"):
            await proof(listener)


async def test_a_frozen_network_is_deafness_for_everybody(proxy: FaultProxy, server: Server, database: str) -> None:
    """No byte comes and no connection breaks: the ears are told within the time, and hear again afterwards."""
    async with listening(proxy.url(server.over_tcp(database)), interval=QUIET, timeout=1.0) as listener:
        heard = Heard(listener, "frozen")
        await heard.until_ready()
        proxy.pause()
        asked = asyncio.ensure_future(proof(listener))
        await eventually_async(lambda: not heard.hearing, 10)
        with pytest.raises(Unavailable):
            await asked
        proxy.cut()
        proxy.resume()
        await heard.until_ready(2)

        async def proven() -> bool:
            try:
                return await proof(listener) > 0
            except Unavailable:  # a second is short for a busy machine
                return False

        await eventually_async(proven, 30)
