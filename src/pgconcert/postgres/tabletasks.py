"""Tasks that are rows of a table of the application, on a link of its own.

Theory. What the statements need to know of a table (the type of its id, its columns) is looked up when the link is up,
and again whenever something is missing or the place is to be checked (``taskcheck.py`` says what it means)::

    waiting (for a link) --> learning (what the table is like) --> at a desk (``rowtasks.py``)
         ^                        |-- it cannot be worked with: ConfigurationError, and the next request looks again
         +-- the link died -------+

Names in the SQL of the application are found by the search path of its role, which our links have not, so it is set
back here. Whatever the server says against that SQL names the table. A table that is locked (it is being altered) makes
its requests fail with ``Unavailable`` after a while, and nobody else's. A statement may take longer than those of ours,
because it has the application's SQL in it. A link that nobody has used for a minute closes itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from ..errors import ConfigurationError, PgconcertError, StatementFailed, Unavailable
from ..messenger import Answer
from ..store import Request as Asked
from ..taskstore import CheckPlace, TablePlace
from .context import PATIENCE, Context
from .desk import Request
from .link import Link, Rows, Statement, statement
from .probe import Proof
from .rowtasks import RowTasks
from .schemafiles import checked
from .sessionclauses import PLANS
from .taskcheck import LOOK, TableFound, found_table, look_values, misuse
from .taskparameters import table_ids

__all__ = ["TableTasks"]

T = TypeVar("T")

_IDLE: Final = 60.0
_CHANGED: Final = "0A000"
"""What a prepared statement says when the types of its columns are others than before."""
_OWN_PATH: Final = Statement(b"pgc_own_path", b"reset search_path")
_PATIENCE: Final = statement("select set_config('lock_timeout', '500ms', false)")


class TableTasks(RowTasks):
    """Owns the link of one table."""

    def __init__(self, context: Context, schema: str, place: TablePlace) -> None:
        super().__init__(context, PATIENCE)
        self._schema = checked(schema)
        self._place = place
        self._found: TableFound | None = None
        self._learning = False
        self._asked = 0
        self._waiting: list[Request[Any]] = []
        self._idle: asyncio.TimerHandle | None = None

    def ask(self, request: Asked[T], answer: Answer[T]) -> None:
        """Carry out a request about this table."""
        self._asked += 1
        if self._idle is None and not self._closed:
            self._idle = self._loop.call_later(_IDLE, self._rest, self._asked)
        super().ask(request, _Named(answer, self, request, self._place))

    async def close(self) -> None:
        """Close the link; whoever still waits is told."""
        if self._idle is not None:
            self._idle.cancel()
        await super().close()

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """Learn what the table is like, then send what has waited."""
        if link.named:
            for setting in (_OWN_PATH, PLANS, _PATIENCE):
                link.send(setting, (), _ignore)
        # nothing is under way at any desk, and their statements may be out of date
        self._waiting += [request for desk in self._desks.values() for request in desk.waiting]
        self._desks.clear()
        self._found = None
        self._up(link)
        self._learn()

    # what the desks ask

    def explain(self, error: StatementFailed, batch: Sequence[Request[Any]]) -> None:
        """Something is missing, or not permitted: look what it is."""

        def looked(found: TableFound | Exception) -> None:
            told = found if isinstance(found, Exception) else misuse(self._place, error)
            if isinstance(found, TableFound) and self._found is not None and found.words != self._found.words:
                told = self.altered(error)
            for request in batch:
                request.fail(told)

        self._look(looked)

    # what the table is like

    def _hand_in(self, request: Request[Any]) -> None:
        if self._found is not None and not isinstance(request.what, CheckPlace):
            self._about_rows(request, self._found.words, table_ids, self._found.reader.read)
            return
        self._waiting.append(request)
        if self.keeper.link is not None:
            self._learn()
        else:
            self.keeper.want()

    def _learn(self) -> None:
        """Look, then hand on what waits, or fail it."""
        if self._learning:
            return
        self._learning = True

        def learned(found: TableFound | Exception) -> None:
            self._learning = False
            if isinstance(found, Exception):
                self._fail_waiting(found)
                return
            before, self._found = self._found, found
            if before is not None and before.words != found.words:
                self._begin_anew()
                return
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                if isinstance(request.answer, _Named):
                    request.answer.advice = found.advice
                self._about_rows(request, found.words, table_ids, found.reader.read)

        self._look(learned)

    def _look(self, looked: Callable[[TableFound | Exception], None]) -> None:
        link = self.keeper.link
        if link is None:
            looked(Unavailable(f"the link died before table {self._place.table} could be looked at"))
            return

        def reply(rows: Rows, error: Exception | None) -> None:
            if isinstance(error, StatementFailed):
                looked(misuse(self._place, error))
                return
            if error is not None:
                looked(Unavailable(f"the link died while table {self._place.table} was looked at: {error}"))
                return
            try:
                found = found_table(self._schema, self._place, rows)
            except ConfigurationError as wrong:
                looked(wrong)
            else:
                looked(found)

        link.send(LOOK, look_values(self._schema, self._place), reply)

    def _give_up(self, error: PgconcertError, *, all_of_them: bool) -> None:
        self._fail_waiting(error)
        super()._give_up(error, all_of_them=all_of_them)

    def _fail_waiting(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            request.fail(error)

    def _rest(self, asked: int) -> None:
        link = self.keeper.link
        idle = asked == self._asked and not self._waiting and not any(desk.waiting for desk in self._desks.values())
        if idle and (link is None or not link.unanswered):
            self._idle = None
            self.keeper.unwant("it was not used for a minute")
        else:
            self._idle = self._loop.call_later(_IDLE, self._rest, self._asked)

    def altered(self, error: StatementFailed) -> Unavailable:
        """The table is not what it was when a statement was made: begin anew."""
        self._begin_anew()
        return Unavailable(f"table {self._place.table} has been altered ({error}); ask again")

    def _begin_anew(self) -> None:
        if self.keeper.link is not None:
            self.keeper.bounce(self.keeper.link, f"table {self._place.table} has been altered")


class _Named:
    """The answer to a request about a table: what goes wrong names the table."""

    def __init__(self, answer: Answer[Any], of: TableTasks, asked: Asked[Any], place: TablePlace) -> None:
        self._answer = answer
        self._of = of
        self._check = isinstance(asked, CheckPlace)
        self._place = place
        self.advice: tuple[str, ...] = ()

    def done(self) -> bool:
        return self._answer.done()

    def set_result(self, result: Any) -> None:
        self._answer.set_result(self.advice if self._check else result)

    def set_exception(self, exception: Exception) -> None:
        if isinstance(exception, StatementFailed):
            if exception.sqlstate == _CHANGED and not self._check:
                exception = self._of.altered(exception)
            else:
                exception = misuse(self._place, exception)
        self._answer.set_exception(exception)


def _ignore(rows: Rows, error: Exception | None) -> None:
    """Without it all is well too."""
