"""Everything about tasks: which link a place has, and the way of a request to it.

All queues are on one link. A table of the application has a link of its own, and so has each schema with functions: how
long their statements take is not ours to say, and neither a heartbeat nor a queue must stand behind them.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from ..errors import ConfigurationError, CoordinatorClosed
from ..messenger import Answer
from ..store import Request
from ..taskstore import FunctionPlace, TablePlace
from .functiontasks import FunctionOwner
from .keeper import Context, Keeper
from .queuetasks import QueueTasks
from .tabletasks import TableTasks

__all__ = ["PostgresTaskStore"]

T = TypeVar("T")


class _Owner(Protocol):
    """Whoever has the link of a place."""

    @property
    def keeper(self) -> Keeper: ...
    def ask(self, request: Request[T], answer: Answer[T]) -> None: ...
    async def close(self) -> None: ...


class PostgresTaskStore:
    """Owns the links for tasks. ``schema`` is where our tables are; raises ``ConfigurationError`` if it can be none."""

    def __init__(self, context: Context, schema: str) -> None:
        self._context = context
        self._schema = schema
        self._closed = False
        self.queues = QueueTasks(context, schema)
        self._others: dict[TablePlace | FunctionPlace, _Owner] = {}

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Carry out a request about tasks. See the port."""
        if self._closed:
            answer.set_exception(CoordinatorClosed("the coordinator was closed"))
            return
        try:
            owner = self._for(getattr(request, "place", None))
        except ConfigurationError as error:
            answer.set_exception(error)
        else:
            owner.ask(request, answer)

    @property
    def keepers(self) -> list[Keeper]:
        """Of all links. Safe from any thread."""
        return [self.queues.keeper, *(owner.keeper for owner in [*self._others.values()])]

    async def close(self) -> None:
        """Close the links; whoever still waits is told."""
        self._closed = True
        try:
            await self.queues.close()
        finally:
            while self._others:
                _, owner = self._others.popitem()
                await owner.close()
                self._counted(owner)

    def _for(self, place: Any) -> _Owner:
        if not isinstance(place, TablePlace | FunctionPlace):
            return self.queues
        owner = self._others.get(place)
        if owner is None:
            # places may be as many as a program makes up: of those that nobody uses nothing is kept
            used = {at: other for at, other in self._others.items() if other.keeper.health().state != "idle"}
            for at in self._others.keys() - used.keys():
                self._counted(self._others[at])
            self._others = used
            made: _Owner
            if isinstance(place, TablePlace):
                made = TableTasks(self._context, self._schema, place)
            else:
                made = FunctionOwner(self._context, place)
            owner = self._others[place] = made
        return owner

    def _counted(self, owner: _Owner) -> None:
        """Keep count of the statements of a link that is forgotten."""
        self._context.events.tally.statements += owner.keeper.health().statements
