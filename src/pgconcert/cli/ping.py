"""``pgconcert ping``: how long a notification takes, there and back, by the way of all others.

Each ping is a proof of listening: a notification to ourselves that must come back through the server's queue, behind
everything that was committed before it. What is lost is therefore a connection that hears nothing, and says so.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import click

from ..coordinator import AsyncCoordinator
from ..errors import PgconcertError, PublishError, Unavailable
from ..events import LinkOpened
from ..messenger import PING_CHANNEL
from .messaging import Signals, Target, execute, opened, reported, say, seconds_type
from .target import direct_url_option, url_option

__all__ = ["command"]

_ENTRY = 15.0
_NOTHING_CAME_BACK = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    target: Target
    count: int | None
    interval: float
    listeners: bool


@click.command(
    epilog="""\b
Examples:
  pgconcert ping                            until Ctrl-C
  pgconcert ping --count 5 --interval 0.2
  pgconcert ping --listeners --count 1      tell all listeners that they can hear

\b
Exit code: 0 if one came back (with --listeners: if one was sent), also after
Ctrl-C; 1 if none did, and why is on standard error; 2 if the call is wrong.
"""
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N.  [default: never]")
@click.option("--interval", type=seconds_type, default=1.0, show_default=True, metavar="S", help="Seconds between two.")
@click.option(
    "--listeners",
    is_flag=True,
    help=f"Send pings on {PING_CHANNEL}, where the listeners of this database expect them. None comes back.",
)
@url_option
@direct_url_option
def command(count: int | None, interval: float, listeners: bool, url: str | None, direct_url: str | None) -> None:
    """Measure how long a notification takes, there and back, and tell what stands in between.

    What is measured is the way of all messages: through the server's queue to a connection that listens.
    """
    target = Target(url=url, direct_url=direct_url, name="pgconcert ping")
    job = _Job(target=target, count=count, interval=interval, listeners=listeners)
    execute(lambda signals: _ping(job, signals))


async def _ping(job: _Job, signals: Signals) -> int:
    pinger = _Listeners() if job.listeners else _Proofs()
    try:
        async with opened(job.target) as coordinator, pinger.way(coordinator) as send:
            ended = asyncio.Event()
            signals.on_signal = ended.set
            works = [asyncio.ensure_future(_repeat(job, send)), asyncio.ensure_future(ended.wait())]
            try:
                await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for work in works:
                    work.cancel()
                await asyncio.wait(works)
    except PgconcertError as error:
        say(f"nothing came back: {error}")
        return _NOTHING_CAME_BACK
    click.echo(pinger.summary())
    return 0 if pinger.succeeded else _NOTHING_CAME_BACK


async def _repeat(job: _Job, send: Callable[[int], Awaitable[None]]) -> None:
    numbers = itertools.count(1) if job.count is None else range(1, job.count + 1)
    for number in numbers:
        if number > 1:
            await asyncio.sleep(job.interval)
        await send(number)


class _Proofs:
    """Notifications to ourselves."""

    def __init__(self) -> None:
        self._sent = 0
        self._took: list[float] = []

    @property
    def succeeded(self) -> bool:
        return bool(self._took)

    @asynccontextmanager
    async def way(self, coordinator: AsyncCoordinator) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Listen, and tell on what."""

        def tell(event: LinkOpened) -> None:
            if event.role == "listen":
                click.echo(f"{event.server}, {event.through}, server process {event.server_pid}")

        coordinator.events.subscribe(tell, LinkOpened)
        reported(coordinator)
        async with coordinator.subscribe(PING_CHANNEL, timeout=_ENTRY):

            async def send(number: int) -> None:
                messenger = coordinator.backend.messenger
                assert messenger is not None
                answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
                self._sent += 1
                messenger.prove(answer)
                try:
                    took = await answer
                except Unavailable as error:
                    click.echo(f"{number}: nothing came back: {error}")
                    return
                self._took.append(took)
                click.echo(f"{number}: {_milliseconds(took)}")

            yield send

    def summary(self) -> str:
        """All of them in a line."""
        said = f"{self._sent} sent, {len(self._took)} came back"
        if not self._took:
            return said
        least, middle, most = min(self._took), median(self._took), max(self._took)
        return f"{said}; min/median/max {least * 1e3:.2f}/{middle * 1e3:.2f}/{most * 1e3:.2f} ms"


class _Listeners:
    """Pings for everybody who listens."""

    def __init__(self) -> None:
        self._sent = 0

    @property
    def succeeded(self) -> bool:
        return self._sent > 0

    @asynccontextmanager
    async def way(self, coordinator: AsyncCoordinator) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Nothing to prepare."""

        async def send(number: int) -> None:
            try:
                await coordinator.publish(PING_CHANNEL, b"")
            except (Unavailable, PublishError) as error:
                click.echo(f"{number}: not sent: {error}")
                return
            self._sent += 1
            click.echo(f"{number}: sent to the listeners of this database")

        yield send

    def summary(self) -> str:
        """All of them in a line."""
        return f"{self._sent} sent"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
