"""Requests about tasks that are rows, on one link, by group commit: what queues and tables have in common.

Theory. Each kind of request has a desk (``desk.py``); of turns there is one for every set of parts, since each is a
statement of its own. A turn leaves alone, because no two sessions have to do with each other, and what one of them may
not do must not harm the others. What is under way when the link dies is settled with ``Unavailable``: nobody knows what
became of it, and rule 7 of ``taskstore.py`` says what its asker does. While there is no link, requests wait for the
attempt that is being made, and fail with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from ..errors import CoordinatorClosed, GivenUp, PgconcertError, StatementFailed, Unavailable
from ..messenger import Answer
from ..store import Request as Asked
from ..taskstore import CheckPlace, LookAtShares, Move, Recall, ReleaseTasks, Turn
from .desk import Desk, Request
from .groupcommit import Turns
from .keeper import Context, Keeper
from .link import Link, Rows, Statement
from .probe import Proof
from .taskclauses import Rows as Words
from .taskclauses import written
from .taskparameters import (
    Ids,
    Values,
    check_values,
    move_values,
    recall_values,
    release_values,
    share_values,
    turn_parts,
    turn_values,
)
from .taskrows import Read, count, held, ids, turned
from .taskstatements import MOVE, PARTS, RECALL, RELEASE, SHARES, turn_text

__all__ = ["RowTasks"]

T = TypeVar("T")

_CLOSED: Final = "the coordinator was closed"


class RowTasks(ABC):
    """Owns a link of the role *tasks*, and the desks on it. ``patience``: see ``Keeper``."""

    def __init__(self, context: Context, patience: int = 1) -> None:
        self._loop = context.loop
        self._closed = False
        self._turns: Turns | None = None
        self._desks: dict[Hashable, Desk[Any]] = {}
        self.keeper = Keeper(context, "tasks", self, patience=patience)

    def ask(self, request: Asked[T], answer: Answer[T]) -> None:
        """Carry out a request about this place."""
        if self._closed:
            answer.set_exception(CoordinatorClosed(_CLOSED))
        else:
            self._hand_in(Request(request, answer))

    async def close(self) -> None:
        """Close the link; whoever still waits is told."""
        self._closed = True
        await self.keeper.close()
        self._give_up(CoordinatorClosed(_CLOSED), all_of_them=True)

    # what the keeper tells us

    @abstractmethod
    def link_up(self, link: Link, proof: Proof) -> None:
        """Send what has waited."""

    def link_down(self, reason: str) -> None:
        """What was under way is uncertain; what was not sent waits for the next link."""
        self._turns = None
        for desk in self._desks.values():
            desk.down(reason)

    def connect_failed(self, error: PgconcertError) -> None:
        """Whoever waits is told."""
        self._give_up(error, all_of_them=not isinstance(error, Unavailable) or isinstance(error, GivenUp))
        if self.keeper.link is None and not any(desk.waiting for desk in self._desks.values()):
            self.keeper.unwant()

    # what the desks ask

    def wants_link(self, desk: Desk[Any], request: Request[Any]) -> None:
        """A request waits for a link."""
        self.keeper.want()

    @abstractmethod
    def explain(self, error: StatementFailed, batch: Sequence[Request[Any]]) -> None:
        """Something is missing, or not permitted: say what to do."""

    # the desks

    @abstractmethod
    def _hand_in(self, request: Request[Any]) -> None:
        """Give a request to its desk."""

    def _give_up(self, error: PgconcertError, *, all_of_them: bool) -> None:
        for desk in self._desks.values():
            desk.give_up(error, all_of_them=all_of_them)

    def _up(self, link: Link) -> None:
        self._turns = turns = Turns(link, self._loop)
        with turns.together():
            for desk in self._desks.values():
                desk.up(turns)

    def _about_rows(self, request: Request[Any], words: Words, ids_of: Ids, read: Read) -> None:
        """Give a request that queues and tables both know to its desk."""
        plan = _plan(request.what, words, ids_of, read)
        desk = self._desks.get(plan.name)
        if desk is None:
            made = written(plan.text(), words)

            def parameters(asked: Any) -> Sequence[bytes]:
                given = plan.values(asked, self._utf8)
                return [given[name] for name in made.parameters]

            desk = self._new_desk(plan.name, self._alone(plan.kind, made.statement, parameters, plan.answer))
        desk.ask(request)

    def _new_desk(self, name: Hashable, desk: Desk[Any]) -> Desk[Any]:
        self._desks[name] = desk
        if self._turns is not None:
            desk.up(self._turns)
        return desk

    def _alone(
        self,
        kind: str,
        sent: Statement,
        parameters: Callable[[Any], Sequence[bytes]],
        answer: Callable[[Any, Rows], Any],
    ) -> Desk[Any]:
        """A desk whose requests leave one by one."""

        def answered(batch: Sequence[Request[Any]], rows: Rows) -> None:
            (request,) = batch
            request.settle(answer(request.what, rows))

        return Desk(self, kind, sent, lambda batch: parameters(batch[0].what), answered, lambda _: 1)

    @property
    def _utf8(self) -> bool:
        return self.keeper.link is not None and self.keeper.link.utf8


class _Plan(NamedTuple):
    """How a request is said: the desk it goes to, its statement, its parameters, what its rows mean."""

    name: Hashable
    kind: str
    text: Callable[[], str]
    values: Callable[[Any, bool], Values]
    answer: Callable[[Any, Rows], Any]


def _plan(asked: Asked[Any], words: Words, ids_of: Ids, read: Read) -> _Plan:
    match asked:
        case Turn():
            parts = turn_parts(asked)
            return _Plan(
                parts,
                "turn",
                lambda: turn_text(parts, words),
                lambda turn, utf8: turn_values(turn, ids_of, utf8),
                lambda turn, rows: turned(turn, rows, read, queue=words.counts),
            )
        case Recall():
            return _Plan(Recall, "recall", lambda: RECALL, lambda it, _: recall_values(it, ids_of), _read(ids))
        case Move():
            return _Plan(Move, "move", lambda: MOVE, lambda it, _: move_values(it), _read(ids))
        case LookAtShares():
            return _Plan(LookAtShares, "look at shares", lambda: SHARES, lambda it, _: share_values(it), _read(held))
        case ReleaseTasks():
            return _Plan(
                ReleaseTasks, "release of tasks", lambda: RELEASE, lambda it, _: release_values(it), _read(count)
            )
        case _:
            assert isinstance(asked, CheckPlace), asked
            return _Plan(
                CheckPlace,
                "check",
                lambda: turn_text(PARTS, words),
                lambda it, _: check_values(it.place, ids_of),
                lambda _, rows: (),
            )


def _read(rows_mean: Callable[[Rows], Any]) -> Callable[[Any, Rows], Any]:
    return lambda _, rows: rows_mean(rows)
