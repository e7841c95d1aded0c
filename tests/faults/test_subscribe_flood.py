"""Subscribing and unsubscribing while messages pour in: nothing is lost after an entry, and nobody else is harmed.

Theory: the publishers of another process number what they send. What has begun after an entry has returned must come,
number by number; what the server has in its LISTEN session is counted by another connection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from operator import le
from pathlib import Path
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator, Gap
from pgconcert.events import LinkOpened, ListenerReady
from pgconcert.postgres import listener
from pgconcert.testing import eventually_async, sessions
from tests.faults.message_history import Log, judge, lines_of
from tests.faults.message_worker import PROGRAM, Orders, number_of
from tests.faults.scenes import seen
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Engine = Literal["loop", "thread"]
CHANNELS = tuple(f"flood-{number}" for number in range(8))
STEADY = CHANNELS[:2]


def listening(url: str) -> list[int]:
    return [one.pid for one in sessions(url) if one.application_name.endswith("pgconcert-listen")]


async def taken(
    c: AsyncCoordinator, log: Log, name: str, channels: tuple[str, ...], enough: Callable[[int], bool]
) -> None:
    """One cycle: enter, take messages until it is enough, leave; everything is written down."""
    async with c.subscribe(*channels, gaps="yield", capacity=1_000_000) as messages:
        log.entered(name, channels)
        count = 0
        while not enough(count):
            item = await messages.get(60)
            assert not isinstance(item, Gap), item
            log.got(name, *number_of(item))
            count += 1


async def cycles(url: str, path: Path, start: Callable[..., Worker], times: int, engine: Engine) -> None:
    log = Log(path)
    orders = Orders(url, str(path), "publisher", CHANNELS, tasks=8, large=False, pause=0.002)
    publisher = await asyncio.to_thread(start, PROGRAM, orders.text())
    await asyncio.to_thread(publisher.expect, "ready", 30)
    async with AsyncCoordinator(url, engine=engine, network_timeout=60) as c:
        opened, ready = seen(c, LinkOpened), seen(c, ListenerReady)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for name in ("steady-one", "steady-two"):
                group.create_task(taken(c, log, name, STEADY, lambda _: over.is_set()))
            await eventually_async(lambda: ready)
            (pid,) = await asyncio.to_thread(listening, url)
            left = iter(range(times))

            async def come_and_go() -> None:
                for number in left:
                    some = tuple(random.sample(CHANNELS, random.randint(1, 3)))
                    await taken(c, log, f"cycle{number}", some, partial(le, random.randint(1, 20)))

            await asyncio.gather(*(come_and_go() for _ in range(4)))
            assert await asyncio.to_thread(listening, url) == [pid]
            over.set()
        assert [event.role for event in opened] == ["listen"]
    publisher.send("end")
    await asyncio.to_thread(publisher.expect, "done", 30)
    assert publisher.wait() == 0
    log.close()
    verdict = judge(lines_of(path))
    assert verdict.wrong == []
    assert verdict.received > 10 * times


@pytest.mark.parametrize("engine", ["loop", "thread"])
@pytest.mark.parametrize("linger", [0.0, 0.01, 10.0])
@pytest.mark.long
async def test_400_cycles_under_flood(
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Engine,
    linger: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Channels that nobody wants any more are given up at once, soon, or much later, and wanted again all the time."""
    monkeypatch.setattr(listener, "_LINGER", linger)
    await cycles(database, tmp_path / "history", worker, 400, engine)


async def test_a_subscriber_of_each_process_comes_and_goes(
    server: Server, database: str, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """One process has subscribers that stay, and another one comes, dies without a word, and comes again."""
    path = str(tmp_path / "history")
    publisher = worker(PROGRAM, Orders(database, path, "publisher", CHANNELS, tasks=8, large=False).text())
    publisher.expect("ready", 30)
    log = Log(path)
    async with AsyncCoordinator(database, network_timeout=60) as c:
        async with asyncio.TaskGroup() as group:
            group.create_task(taken(c, log, "steady", CHANNELS, lambda count: count >= 1000))
            for _ in range(3):
                other = await asyncio.to_thread(worker, PROGRAM, Orders(database, path, "subscriber", CHANNELS).text())
                await asyncio.to_thread(other.expect, "ready", 30)
                await asyncio.to_thread(other.kill)
    publisher.send("end")
    await asyncio.to_thread(publisher.expect, "done", 30)
    assert publisher.wait() == 0
    log.close()
    assert judge(lines_of(tmp_path / "history")).wrong == []
