"""The tables of a demo: in a schema of its own, so that nothing is left behind and nobody else's rows are touched; and
the terms that the server has noted there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ..coordinator import AsyncCoordinator
from ..errors import ConfigurationError, StatementFailed
from ..postgres import schema as tables
from ..store import Subject, Term, Terms
from .schema import visited

__all__ = ["ELECTION_NAME", "made_tables", "noted_terms"]

ELECTION_NAME = "demo"


@contextmanager
def made_tables(url: str) -> Iterator[str | None]:
    """The schema, with our tables in it for the time of the block; ``None`` if this role may not make it."""
    name = f"pgconcert_demo_{secrets.token_hex(4)}"
    try:
        visited(url, name, lambda link: tables.apply(link, name))
    except (ConfigurationError, StatementFailed):
        yield None
        return
    try:
        yield name
    finally:
        visited(url, name, lambda link: tables.drop(link, name))


def noted_terms(url: str, schema: str, namespace: str) -> tuple[Term, ...]:
    """All terms of the demo, as the server has noted them."""

    async def ask() -> tuple[Term, ...]:
        async with AsyncCoordinator(url, schema=schema, name="pgconcert demo") as coordinator:
            answer: asyncio.Future[tuple[Term, ...]] = asyncio.get_running_loop().create_future()
            store = coordinator.backend.store
            assert store is not None
            store.ask(Terms(subject=Subject("election", namespace, ELECTION_NAME), after=-1), answer)
            return await answer

    return asyncio.run(ask())
