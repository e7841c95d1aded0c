"""A backend of which only the port for messages is used, what happens to it, and numbered messages.

Here live helpers for `test_messenger.py` and `test_listen_links.py`. Theory: messages carry sequence numbers, and an
ear notes what it is told between them, so that what is missing can be compared with what was reported missing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from typing import TypeVar

import psycopg

from pgconcert.backend import Options
from pgconcert.events import Event, EventStream
from pgconcert.messenger import Answer
from pgconcert.postgres.engine import PostgresBackend
from pgconcert.testing import eventually_async
from tests.postgres.ears import Heard, Listens
from tests.postgres.scenes import QUIET

T = TypeVar("T")


class Play:
    """An open backend, and everything that happened to it."""

    def __init__(self, backend: PostgresBackend, events: EventStream) -> None:
        self.backend = backend
        self.messenger = backend.messenger
        self.events = events
        self.story: list[Event] = []
        events.subscribe(self.story.append)

    def told(self, kind: type[Event], role: str = "listen") -> list[Event]:
        """The events of one kind, of one role."""
        return [event for event in self.story if isinstance(event, kind) and getattr(event, "role", role) == role]

    def pid(self, role: str = "listen") -> int:
        """The server process behind a link."""
        (pid,) = [link.server_pid for link in self.backend.health().links if link.role == role]
        return pid or 0

    def state(self, role: str = "listen") -> str:
        """The state of a link."""
        (state,) = [link.state for link in self.backend.health().links if link.role == role]
        return state

    async def publish(self, channel: str, payload: str) -> bool:
        """Publish, and wait for what became of it."""
        return await answered(lambda answer: self.messenger.publish(channel.encode(), payload.encode(), answer))

    async def prove(self) -> float:
        """Ask for a proof."""
        return await answered(self.messenger.prove)


async def answered(ask: Callable[[Answer[T]], None]) -> T:
    """Ask, and wait."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    ask(answer)
    return await answer


@asynccontextmanager
async def messaging(
    url: str, *, network_timeout: float = QUIET, direct_url: str | None = None, reconnect_limit: int | None = None
) -> AsyncGenerator[Play]:
    """A backend that ends with the block."""
    options = Options(
        name="play", network_timeout=network_timeout, direct_url=direct_url, reconnect_limit=reconnect_limit
    )
    backend, events = PostgresBackend(url, options), EventStream()
    await backend.open(events)
    try:
        yield Play(backend, events)
    finally:
        await backend.close()


@contextmanager
def flood(url: str, channel: str) -> Iterator[Callable[[], int]]:
    """Somebody else's messages, numbered, one after the other; gives the last number that may have been sent."""
    stop = asyncio.Event()
    sent = 0

    async def run() -> None:
        nonlocal sent
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                first, sent = sent + 1, sent + 10
                await connection.execute(
                    "select count(pg_notify(%s, n::text)) from generate_series(%s::int, %s::int) n",
                    (channel, first, sent),
                )

    task = asyncio.ensure_future(run())
    try:
        yield lambda: sent
    finally:
        stop.set()
        task.add_done_callback(lambda done: done.exception())


class Numbered(Heard):
    """An ear that notes what it is told between the numbers it hears, and what ``mark`` says when it becomes ready."""

    def __init__(self, messenger: Listens, channel: str, mark: Callable[[], int] = lambda: 0) -> None:
        self.notes: list[int | str] = []
        self.marks: list[int] = []
        self._mark = mark
        super().__init__(messenger, channel)

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """A number."""
        assert self.hearing, "heard before it was told that it hears"
        self.notes.append(int(payload))

    def ready(self) -> None:
        """It hears."""
        super().ready()
        self.notes.append("ready")
        self.marks.append(self._mark())

    def deaf(self, reason: str) -> None:
        """It hears no more."""
        super().deaf(reason)
        self.notes.append("deaf")

    @property
    def last(self) -> int:
        """The last number heard."""
        return next((note for note in reversed(self.notes) if isinstance(note, int)), 0)

    async def until(self, number: int) -> None:
        """Wait until this number, or a later one, is heard."""
        await eventually_async(lambda: self.last >= number, 30, what=f"{number} is heard")

    def unreported(self) -> list[tuple[int | str, int | str]]:
        """Where numbers are missing, or come again, and nothing was told in between."""
        return [
            (one, other)
            for one, other in pairwise(self.notes)
            if isinstance(one, int) and isinstance(other, int) and other != one + 1
        ]
