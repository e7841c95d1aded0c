"""Fixtures of pytest for programs that use pgconcert: worlds in memory, a PostgreSQL of the test run's own, faults.

Here live the fixtures and what they hand out. pytest loads this file in every run where pgconcert is installed, so it
brings nothing along: what a fixture needs is imported when a test asks for it.

Theory. The fixtures are plain functions and hand out coordinators that are not open, so they need no plugin for
coroutines and work with each: the test opens them on its own event loop, with ``async with``. Each test has a world, or
a database, of its own, so nothing that it leaves can reach another. Whatever is still open at its end is put away as
far as that can be done from outside its event loop, and reported as an error: what a test forgets its program forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from .. import AsyncCoordinator, EmbeddedServerError

if TYPE_CHECKING:
    from .proxy import FaultProxy

__all__ = [
    "CoordinatorFactory",
    "Faults",
    "pgconcert_embedded",
    "pgconcert_embedded_url",
    "pgconcert_faults",
    "pgconcert_memory",
    "pgconcert_memory_url",
]

CoordinatorFactory = Callable[..., AsyncCoordinator]
"""Makes a coordinator, not yet open, from the options of ``AsyncCoordinator`` (all but the address)."""

# nothing in there outlives the run, so nothing need be on a disk
_SETTINGS: Final = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_FAREWELL: Final = 5.0


class Faults:
    """Breaks what stands between a coordinator of this test and its world: ``pgconcert_faults``."""

    def __init__(self) -> None:
        self._made: list[tuple[AsyncCoordinator, str, bool]] = []
        self._left: list[str] = []
        self._proxies: dict[AsyncCoordinator, FaultProxy] = {}
        self.server: str | None = None
        """The address of the embedded server, if this test uses it."""

    def lose_connection(self, coordinator: AsyncCoordinator) -> None:
        """End its connections, as an administrator of the server might. It loses what it holds, and connects again.

        In memory that has happened when this returns; a server needs a moment: wait for ``hold.wait_lost()``.
        """
        backend: Any = coordinator.backend
        if hasattr(backend, "lose_connection"):
            backend.lose_connection()
            return
        if self.server is None:
            raise _stranger(coordinator)
        from ..postgres.operator import Operator

        pids = [link.server_pid for link in coordinator.health().links if link.server_pid]
        if not pids:
            raise ValueError(f"{coordinator!r} is not connected yet, so it has nothing to lose: acquire a lock first")
        with Operator(self.server) as operator:
            for pid in pids:
                operator.end_session(pid)

    def partition(self, coordinator: AsyncCoordinator) -> AbstractContextManager[object]:
        """A block during which nothing passes between this coordinator and its world, and nobody is told.

        What it holds is lost after its ``network_timeout``. At the end of the block everything flows again.
        """
        backend: Any = coordinator.backend
        if hasattr(backend, "partition"):
            parted: AbstractContextManager[object] = backend.partition()
            return parted
        proxy = self._proxies.get(coordinator)
        if proxy is None:
            raise _stranger(coordinator)
        return _frozen(proxy)

    def _note(self, coordinator: AsyncCoordinator, fixture: str, threaded: bool, proxy: FaultProxy | None) -> None:
        self._made.append((coordinator, fixture, threaded))
        if proxy is not None:
            self._proxies[coordinator] = proxy

    def _put_away(self) -> None:
        """Note what is still open, and close it if that does not take the event loop of the test."""
        for coordinator, fixture, threaded in self._made:
            if _is_open(coordinator):
                self._left.append(f"{coordinator!r} made by {fixture}")
                if threaded:
                    _close_from_outside(coordinator)
        self._made.clear()

    def _report(self) -> None:
        if self._left:
            pytest.fail(
                "this test left coordinators open; use them as 'async with', or await close():\n  "
                + "\n  ".join(self._left),
                pytrace=False,
            )


@pytest.fixture
def pgconcert_faults() -> Iterator[Faults]:
    """Breaks connections: ``lose_connection(coordinator)``, and ``with partition(coordinator):``."""
    faults = Faults()
    yield faults
    faults._put_away()
    faults._report()


@pytest.fixture
def pgconcert_memory_url() -> str:
    """The address of a world in memory that only this test knows: for programs that take an address."""
    return f"memory://test-{secrets.token_hex(8)}"


@pytest.fixture
def pgconcert_memory(pgconcert_memory_url: str, pgconcert_faults: Faults) -> CoordinatorFactory:
    """Makes coordinators in the world of this test; each stands for a process. Open them with ``async with``."""

    def make(**options: Any) -> AsyncCoordinator:
        made = AsyncCoordinator(pgconcert_memory_url, **options)
        pgconcert_faults._note(made, "pgconcert_memory", options.get("engine") == "thread", None)
        return made

    return make


@pytest.fixture(scope="session")
def _pgconcert_embedded_server() -> Iterator[str]:
    from ..postgres.embedded import EmbeddedServer

    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pgconcert-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o711)  # root's server runs as another user, who must be able to pass
        try:
            server = stack.enter_context(EmbeddedServer.start(f"embedded://{folder}/server", _SETTINGS))
        except EmbeddedServerError as error:
            pytest.fail(f"pgconcert_embedded: {error}", pytrace=False)
        yield server.url


@pytest.fixture
def pgconcert_embedded_url(_pgconcert_embedded_server: str, pgconcert_faults: Faults) -> Iterator[str]:
    """The address of a new database that only this test knows, on a PostgreSQL that lives as long as the run."""
    from ..postgres.databases import fresh_database
    from .urls import rewrite

    pgconcert_faults.server = _pgconcert_embedded_server
    with fresh_database(_pgconcert_embedded_server) as name:
        yield rewrite(_pgconcert_embedded_server, dbname=name)


@pytest.fixture
def pgconcert_embedded(pgconcert_embedded_url: str, pgconcert_faults: Faults) -> Iterator[CoordinatorFactory]:
    """Makes coordinators on the database of this test; each stands for a process. Open them with ``async with``.

    Each reaches the server by a proxy of its own, so that ``pgconcert_faults`` can part it from the others.
    """
    from .proxy import FaultProxy

    with contextlib.ExitStack() as proxies:

        def make(**options: Any) -> AsyncCoordinator:
            proxy = proxies.enter_context(FaultProxy.to(pgconcert_embedded_url))
            made = AsyncCoordinator(proxy.url(pgconcert_embedded_url), **options)
            pgconcert_faults._note(made, "pgconcert_embedded", options.get("engine") == "thread", proxy)
            return made

        yield make
        pgconcert_faults._put_away()  # while there is still something to say good-bye to


@contextmanager
def _frozen(proxy: FaultProxy) -> Iterator[None]:
    proxy.pause()
    try:
        yield
    finally:
        proxy.resume()


def _stranger(coordinator: AsyncCoordinator) -> ValueError:
    return ValueError(f"{coordinator!r} was not made by pgconcert_memory() or pgconcert_embedded() of this test")


def _is_open(coordinator: AsyncCoordinator) -> bool:
    return coordinator._register is not None


def _close_from_outside(coordinator: AsyncCoordinator) -> None:
    async def close() -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_FAREWELL):
                await coordinator.close()

    # on a thread, because pytest's own may belong to a plugin's event loop
    closing = threading.Thread(target=lambda: asyncio.run(close()), name="pgconcert puts away")
    closing.start()
    closing.join()
