"""The backends over which the conformance suite runs here, each as a venue.

Here live the venues and nothing else. Every call makes a world of its own where the backend allows it; on a server the
suite's own namespaces keep the cases apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from examples.toy_backend import ToyBackend, World
from pgconcert import AsyncCoordinator, CoordinatorClosed
from pgconcert.memory import MemoryBackend
from pgconcert.postgres.operator import Operator
from pgconcert.testing.conformance import Place


def postgres(url: str) -> Place:
    """A server; a connection is lost by ending its sessions, as an administrator does."""

    def lose(coordinator: AsyncCoordinator) -> None:
        with Operator(url) as operator:
            for link in coordinator.health().links:
                if link.server_pid:
                    operator.end_session(link.server_pid)

    return Place(lambda **options: AsyncCoordinator(url, **{"migrate": True, **options}), lose)


def _hook(coordinator: AsyncCoordinator) -> None:
    # a fault hook is no part of the port, so its type is not known here
    backend: Any = coordinator.backend
    backend.lose_connection()


def memory() -> Place:
    """A world inside this process. A connection that is lost stays away for a while, so that things are missed."""
    address = f"memory://{secrets.token_hex(8)}"

    def lose(coordinator: AsyncCoordinator) -> None:
        backend = coordinator.backend
        assert isinstance(backend, MemoryBackend)

        def come_back() -> None:
            with contextlib.suppress(CoordinatorClosed):
                backend.reconnect()

        backend.lose_connection(reconnect=False)
        # not here: whoever calls us may be cancelled by what he loses
        asyncio.get_running_loop().call_later(0.002, come_back)

    return Place(lambda **options: AsyncCoordinator(address, **options), lose)


def null() -> Place:
    """What grants everything; it has no connection to lose."""
    return Place(lambda **options: AsyncCoordinator("null://", **options))


def toy() -> Place:
    """The example of a backend, given as ``backend=``."""
    world: World = {}

    def make(**options: Any) -> AsyncCoordinator:
        return AsyncCoordinator(backend=ToyBackend(world, options.get("name")), **options)

    return Place(make, _hook)


def toy_by_address() -> Place:
    """The same, found under its scheme; its entry point must be there."""
    address = f"toy://{secrets.token_hex(8)}"
    return Place(lambda **options: AsyncCoordinator(address, **options), _hook)


IN_PROCESS: dict[str, Callable[[], Place]] = {
    "memory": memory,
    "null": null,
    "toy": toy,
    "toy by its address": toy_by_address,
}
