"""Where requests of one kind are on their way over a link: those that wait for one, and those in a group.

Theory. A request is in one of these states, and is settled once, when it leaves the last::

    waiting (for a link) --up--> queued --> under way --answered--> settled
       ^                           |            |  ^
       |-- the link died: unsent --+            |  +-- resting: somebody was in the way, for a moment
       |                                        +-- the link died: settled with Unavailable; or, with an ``until``,
       +-- with it                              |   it waits again, until then
                                                +-- the server said no: asked again alone

A statement that failed has left nothing behind, so its requests are asked again one by one, and only the guilty one
gets the error. Where the server says that somebody was in the way (a lock, a deadlock, a serialisation failure), a
request is asked again some times, first with its neighbours, then settled with ``Unavailable``; one that lacks tables
or rights is settled at once. An answer may say of one request alone that somebody was in its way (``busy``): it rests,
longer each time, and is asked again. What cannot be read is no answer: nothing of it is believed (``paired``), and the
link dies of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from ..errors import StatementFailed, Unavailable
from ..messenger import Answer
from .groupcommit import Group, Turns, Verb
from .link import Link, Rows, Statement, statement
from .schemafiles import NOT_PERMITTED, UNDEFINED, missing_tables, not_permitted

__all__ = ["IN_THE_WAY", "Desk", "DeskOwner", "Request", "explain", "paired"]

T = TypeVar("T")
Row = tuple[bytes | None, ...]

_TRIES: Final = 5
_FIRST_REST: Final = 0.01
IN_THE_WAY: Final = frozenset(("55P03", "40P01", "40001"))
"""lock_not_available, deadlock_detected, serialization_failure: nothing was done, and a moment later it may be."""
_ROLE: Final = statement("select current_user")


class Request(Generic[T]):
    """What somebody asked. ``until``: it may be asked again after a death until then; ``None``: never."""

    __slots__ = ("alone", "answer", "tries", "until", "what")

    def __init__(self, what: T, answer: Answer[Any], until: float | None = None) -> None:
        self.what = what
        self.answer = answer
        self.until = until
        self.alone = False
        self.tries = 0

    def settle(self, result: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class DeskOwner(Protocol):
    """Whoever has the link for some desks."""

    def wants_link(self, desk: Desk[Any], request: Request[Any]) -> None: ...
    def explain(self, error: StatementFailed, batch: Sequence[Request[Any]]) -> None: ...


class Desk(Generic[T]):
    """Where requests of one kind are. See the module."""

    def __init__(
        self,
        owner: DeskOwner,
        kind: str,
        sent: Statement,
        parameters: Callable[[Sequence[Request[T]]], Sequence[bytes]],
        answered: Callable[[Sequence[Request[T]], Rows], None],
        fit: Callable[[Sequence[Request[T]]], int],
        after: Statement | None = None,
        parameters_after: Callable[[Sequence[Request[T]]], Sequence[bytes]] | None = None,
        doubt: str = "",
    ) -> None:
        self._owner = owner
        self._doubt = doubt
        self.kind = kind
        self.group: Group[Request[T]] | None = None
        self.waiting: list[Request[T]] = []
        self._resting: dict[Request[T], asyncio.TimerHandle] = {}
        self.verb = Verb(
            kind,
            one=sent,
            parameters_one=lambda request: parameters([request]),
            many=sent,
            parameters_many=parameters,
            answered=answered,
            failed=self._failed,
            fit=lambda queue: _until_alone(queue[: fit(queue)]),
            after=after,
            parameters_after=parameters_after,
        )

    def ask(self, request: Request[T]) -> None:
        """Send it, or keep it until there is a link."""
        if self.group is not None:
            self.group.ask(request)
        else:
            self.waiting.append(request)
            self._owner.wants_link(self, request)

    def busy(self, request: Request[T], why: str = "a row was locked by others") -> None:
        """Somebody was in the way of this one: ask again after a rest, some times."""
        request.tries += 1
        if request.tries >= _TRIES:
            request.fail(Unavailable(f"the {self.kind} was tried {request.tries} times: {why}"))
            return
        loop = asyncio.get_running_loop()
        self._resting[request] = loop.call_later(_FIRST_REST * 2**request.tries, self._rested, request)

    def up(self, turns: Turns) -> None:
        """Send what has waited."""
        self.group = turns.group(self.verb)
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            self.group.ask(request)

    def down(self, reason: str) -> None:
        """Settle what cannot be asked again; keep the rest."""
        if self.group is None:
            return
        sent, unsent = self.group.take_back()
        self.group = None
        for request in sent:
            if request.answer.done():
                continue  # the answer could be read as far as this one
            if request.until is None:
                what = f"the link died before the server confirmed the {self.kind}"
                request.fail(Unavailable(f"{what}{self._doubt}: {reason}"))
            else:
                self.ask(request)
        for request in unsent:
            self.ask(request)

    def give_up(self, error: Exception, *, all_of_them: bool) -> None:
        """Settle what waits; unless ``all_of_them``, without those that may be asked again."""
        waiting, self.waiting = self.waiting, []
        if all_of_them:
            for request, rest in self._resting.items():
                rest.cancel()
                waiting.append(request)
            self._resting.clear()
        settled: list[Request[T]] = []
        for request in waiting:
            (settled if all_of_them or request.until is None else self.waiting).append(request)
        for request in settled:
            request.fail(error)

    def _rested(self, request: Request[T]) -> None:
        del self._resting[request]
        self.ask(request)

    def _failed(self, batch: Sequence[Request[T]], error: Exception) -> None:
        assert isinstance(error, StatementFailed)  # the group keeps the death of a link to itself
        if error.sqlstate in UNDEFINED or error.sqlstate == NOT_PERMITTED:
            self._owner.explain(error, batch)
            return
        in_the_way = error.sqlstate in IN_THE_WAY
        for request in batch:
            request.tries += 1
            if (in_the_way and request.tries < _TRIES) or len(batch) > 1:
                # whoever was in the way is mostly gone a moment later, and many alone take as many round trips
                request.alone = not in_the_way or request.tries > 1
                self.ask(request)
            elif in_the_way:
                request.fail(
                    Unavailable(f"the {self.kind} was tried {request.tries} times, and others were in the way: {error}")
                )
            else:
                request.fail(error)


def explain(link: Link | None, schema: str, error: StatementFailed, batch: Sequence[Request[Any]]) -> None:
    """Tables or rights are missing: tell each what to do."""
    if error.sqlstate in UNDEFINED:
        for request in batch:
            request.fail(missing_tables(schema, str(error)))
        return

    def tell(rows: Rows, unknown: Exception | None) -> None:
        role = (rows[0][0] or b"").decode(errors="replace") if rows else "your_role"
        for request in batch:
            request.fail(not_permitted(schema, role, error))

    if link is None:
        tell([], error)
    else:
        link.send(_ROLE, (), tell)


def paired(batch: Sequence[Request[T]], rows: Rows, columns: int) -> Iterable[tuple[Request[T], Row]]:
    """Each request with its row. Raises ``ValueError``, before the first, if there are not as many of that width."""
    if len(rows) != len(batch) or any(len(row) != columns for row in rows):
        came = f"{len(rows)} of {len(rows[0]) if rows else 0}"
        raise ValueError(f"{len(batch)} rows of {columns} columns were asked for, and {came} came")
    return zip(batch, rows, strict=True)


def _until_alone(queue: Sequence[Request[Any]]) -> int:
    """How many may leave together, when some must leave alone."""
    if queue[0].alone:
        return 1
    return next((place for place, request in enumerate(queue) if request.alone), len(queue))
