"""Event readers and log handlers that raise: the machinery that tells them goes on as if they were silent.

Here live tests with a listener that fails on everything it hears. Theory: an event is told in the middle of a state
change (a link has died, a hold is given back), so whatever a listener does must not end that change half-way: a hold
that stays "held" because the log was full is a second holder.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.events import Event
from pgconcert.testing import eventually_async
from tests.postgres.scenes import Engine, both_engines, keys_on_server, lock_pid, raw, until_free

LIMIT: Final = 30.0

Spoil = Callable[[AsyncCoordinator], None]


class _Failing(logging.Handler):
    """Fails on every record."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def handle(self, record: logging.LogRecord) -> bool:
        raise self.error


@pytest.fixture(
    params=[
        pytest.param(("reader", RuntimeError), id="reader-error"),
        pytest.param(("reader", asyncio.CancelledError), id="reader-cancelled"),
        pytest.param(("handler", RuntimeError), id="handler-error"),
        pytest.param(("handler", asyncio.CancelledError), id="handler-cancelled"),
    ]
)
def spoil(request: pytest.FixtureRequest) -> Iterator[Spoil]:
    """Gives a coordinator a listener that raises."""
    where, error = request.param
    logger = logging.getLogger("pgconcert")
    handler, level = _Failing(error), logger.level

    def read(event: Event) -> None:
        raise error

    def act(coordinator: AsyncCoordinator) -> None:
        if where == "reader":
            coordinator.events.subscribe(read)
        else:
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)

    yield act
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def complaints() -> Callable[[], list[str]]:
    """What the running loop was told of exceptions that nobody caught."""
    told: list[str] = []

    def listen() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, known: told.append(f"{known.get('message')}: {known.get('exception')!r}")
        )
        return told

    return listen


@both_engines
async def test_a_loss_is_not_hidden(
    database: str, engine: Engine, spoil: Spoil, complaints: Callable[[], list[str]]
) -> None:
    """The lock link is killed: the hold is lost, whoever waits elsewhere gets the lock, and a new link is made."""
    told = complaints()
    async with AsyncCoordinator(database, engine=engine) as c, AsyncCoordinator(database) as other:
        hold = await c.lock("spoilt").acquire()
        waiting = asyncio.create_task(other.lock("spoilt").acquire())
        spoil(c)
        with raw(database) as operator:
            operator.execute("SELECT pg_terminate_backend(%s)", [lock_pid(c)])
        theirs = await asyncio.wait_for(waiting, LIMIT)
        await asyncio.wait_for(hold.wait_lost(), LIMIT)
        assert hold.lost
        again = await asyncio.wait_for(c.lock("afterwards").acquire(), LIMIT)
        assert not again.lost
        await again.release()
        await theirs.release()
    await until_free(database)
    assert told == []


@both_engines
async def test_connecting_and_locking_go_on(
    database: str, engine: Engine, spoil: Spoil, complaints: Callable[[], list[str]]
) -> None:
    """A listener that fails from the beginning: connecting, waiting, waking and closing work."""
    told = complaints()
    c = AsyncCoordinator(database, engine=engine)
    spoil(c)
    await asyncio.wait_for(c.open(), LIMIT)
    async with AsyncCoordinator(database) as other:
        theirs = await asyncio.wait_for(other.lock("told").acquire(), LIMIT)
        waiting = asyncio.create_task(c.lock("told").acquire())
        await eventually_async(lambda: c.health().locks_waited_for == 1)
        await theirs.release()
        await (await asyncio.wait_for(waiting, LIMIT)).release()
        await asyncio.wait_for(c.close(), LIMIT)
    await until_free(database)
    assert told == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@both_engines
async def test_a_dropped_hold_is_released(
    database: str, engine: Engine, spoil: Spoil, complaints: Callable[[], list[str]]
) -> None:
    """Nobody can be told that a hold was thrown away; it is given back all the same."""
    told = complaints()
    async with AsyncCoordinator(database, engine=engine) as c:
        hold = await c.lock("dropped").acquire()
        assert keys_on_server(database)
        spoil(c)
        del hold
        gc.collect()
        await until_free(database)
        await eventually_async(lambda: c.health().locks_held == 0)
    assert told == []


@both_engines
async def test_close_gives_everything_back(
    database: str, engine: Engine, spoil: Spoil, complaints: Callable[[], list[str]]
) -> None:
    """A coordinator that closes while it holds: the hold is lost, the server free, and `close` raises nothing."""
    told = complaints()
    c = AsyncCoordinator(database, engine=engine)
    await c.open()
    hold = await c.lock("closing").acquire()
    spoil(c)
    await asyncio.wait_for(c.close(), LIMIT)
    assert hold.lost
    await until_free(database)
    assert told == []
