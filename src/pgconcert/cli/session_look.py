"""One look at all that hangs on sessions: what ``pgconcert status`` and ``watch`` show besides locks.

Here live the question, asked through a coordinator like every other, and the answer, sorted by kinds. Missing tables
are an answer, not an error: locks work without them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

from ..coordinator import AsyncCoordinator
from ..errors import ConfigurationError, SchemaMissing, StatementFailed, Unavailable
from ..postgres.schemafiles import apply_command
from ..store import Entry, Kind, Look, LookAtSessions, Request, SessionInfo

__all__ = ["Holding", "Looker", "sort"]

T = TypeVar("T")

_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What hangs on sessions. Job locks and elections are those that somebody has or waits for, in the order of their
    names; ``members`` and ``runners`` are those that live, ``groups`` the names (namespace and name) of all groups,
    also of empty ones.

    ``entries`` are all that was looked at, also what nobody has; ``holds``: how much hangs on each session.
    ``trouble``: why nothing could be seen, in a sentence."""

    sessions: tuple[SessionInfo, ...] = ()
    jobs: tuple[Entry, ...] = ()
    elections: tuple[Entry, ...] = ()
    members: tuple[Entry, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()
    runners: tuple[Entry, ...] = ()
    entries: tuple[Entry, ...] = ()
    holds: Counter[int] = field(default_factory=Counter)
    trouble: str | None = None

    @property
    def namespaced(self) -> bool:
        """Whether anything is in a namespace."""
        return any(each.subject.namespace for each in self._shown) or any(namespace for namespace, _ in self.groups)

    def has(self, name: str) -> bool:
        """Whether somebody has or waits for something of this name, or is in it."""
        return any(each.subject.name == name for each in self._shown) or any(known == name for _, known in self.groups)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.sessions or self.jobs or self.elections or self.groups or self.runners)

    @property
    def held(self) -> bool:
        """Whether anything is held by somebody."""
        return any(each.session is not None for each in self._shown)

    @property
    def _shown(self) -> tuple[Entry, ...]:
        return (*self.jobs, *self.elections, *self.members, *self.runners)


def sort(
    sessions: Sequence[SessionInfo], entries: Sequence[Entry], names: Collection[str] = (), namespace: str = ""
) -> Holding:
    """What was seen, by kinds. With ``names``, only what is called so; with a ``namespace``, only what is there."""
    holds = Counter(entry.session.id for entry in entries if entry.session is not None)
    seen = [
        entry
        for entry in entries
        if (not names or entry.subject.name in names) and (not namespace or entry.subject.namespace == namespace)
    ]

    def of(kind: Kind) -> tuple[Entry, ...]:
        return tuple(e for e in seen if e.subject.kind == kind and (e.session is not None or e.waiting))

    members = of("member")
    groups = {(each.subject.namespace, each.subject.name) for each in seen if each.subject.kind == "group"}
    groups |= {(each.subject.namespace, each.subject.name) for each in members}
    shown = sessions
    if names or namespace:
        concerned = {entry.session.id for entry in seen if entry.session is not None}
        shown = [session for session in sessions if session.id in concerned]
    return Holding(
        sessions=tuple(shown),
        jobs=of("job"),
        elections=of("election"),
        members=members,
        groups=tuple(sorted(groups)),
        runners=of("runner"),
        entries=tuple(seen),
        holds=holds,
    )


class Looker:
    """Looks as often as it is asked to. Use it as ``with``, from one thread; a connection is made at the first look.

    ``address`` as for ``AsyncCoordinator``; ``names`` and ``namespace`` as for ``sort``.
    """

    def __init__(
        self, address: str | None, schema: str, called: str, names: Collection[str] = (), namespace: str = ""
    ) -> None:
        self._address, self._schema, self._called = address, schema, called
        self._names, self._namespace = names, namespace
        self._runner = asyncio.Runner()
        logging.getLogger("pgconcert").addHandler(logging.NullHandler())  # what happened is said here, once
        self._coordinator: AsyncCoordinator | None = None

    def look(self) -> Holding:
        """Raises ``Unavailable``, and ``ConfigurationError`` for a schema's name that can be none."""
        return self._runner.run(self._look())

    async def _look(self) -> Holding:
        if self._coordinator is None:
            self._coordinator = AsyncCoordinator(
                self._address,
                schema=self._schema,
                name=self._called,
                connect_timeout=_PATIENCE,
                network_timeout=_PATIENCE,
            )
            await self._coordinator.open()
        try:
            sessions, entries = await asyncio.gather(self._ask(LookAtSessions()), self._ask(Look()))
        except Unavailable:
            await self._close()  # the next look makes a new connection, without the pauses of this one
            raise
        except SchemaMissing:
            return Holding(
                trouble=f"job locks, elections, groups and runners need tables, which are missing or old in schema "
                f"{self._schema}: {apply_command(self._schema)}",
            )
        except (ConfigurationError, StatementFailed) as error:
            return Holding(trouble=f"job locks, elections, groups and runners cannot be seen: {error}")
        return sort(sessions, entries, self._names, self._namespace)

    def _ask(self, request: Request[T]) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        assert self._coordinator is not None
        store = self._coordinator.backend.store
        assert store is not None
        store.ask(request, answer)
        return answer

    async def _close(self) -> None:
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            await coordinator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self._close())
        finally:
            self._runner.close()
