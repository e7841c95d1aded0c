"""Group commit: requests of one verb that arrive while a statement is under way leave together.

Theory. The groups of one link take *turns*: one statement is under way at a time (more brought nothing in measurements,
and with one at a time, tasks that drifted apart fall into step again). There is no timer: a lone request leaves at once
as a plain statement. When the last statement carried more than one request, the next one waits for the end of the
loop's turn instead, so that the tasks woken by one answer travel together again.

A group knows nothing of what it carries. It hands every request its part of the answer, or the whole batch its error:
what a failed statement leaves behind on the server differs from verb to verb, so its owner decides. A reader of answers
that raises has got what belongs to somebody else: the link dies of it, and ``take_back`` has the batch as one that was
never answered.

A verb may have a second statement, which follows the first as a transaction of its own in the same turn: it sees what
was there after the first had committed. Each request gets its rows behind those of the first, column for column; if
either fails, both count as failed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import add
from typing import Any, Generic, TypeVar

from ..errors import LinkLost
from .link import Link, Rows, Statement

__all__ = ["Group", "Turns", "Verb"]

T = TypeVar("T")


class Verb(Generic[T]):
    """How requests of one kind are said to the server, and how its answer is read."""

    __slots__ = (
        "after",
        "answered",
        "failed",
        "fit",
        "many",
        "name",
        "one",
        "parameters_after",
        "parameters_many",
        "parameters_one",
    )

    def __init__(
        self,
        name: str,
        *,
        one: Statement,
        parameters_one: Callable[[T], Sequence[bytes | None]],
        many: Statement,
        parameters_many: Callable[[Sequence[T]], Sequence[bytes | None]],
        answered: Callable[[Sequence[T], Rows], None],
        failed: Callable[[Sequence[T], Exception], None],
        fit: Callable[[Sequence[T]], int],
        after: Statement | None = None,
        parameters_after: Callable[[Sequence[T]], Sequence[bytes | None]] | None = None,
    ) -> None:
        """``fit`` says how many of the queued requests may leave in one statement; at least 1. ``after`` follows them
        as a transaction of its own, and answers with as many rows."""
        self.name = name
        self.one = one
        self.parameters_one = parameters_one
        self.many = many
        self.parameters_many = parameters_many
        self.answered = answered
        self.failed = failed
        self.fit = fit
        self.after = after
        self.parameters_after = parameters_after


class Turns:
    """The groups of one link, one statement under way at a time, each group in its turn."""

    __slots__ = ("_busy", "_last_size", "_loop", "_ready", "link", "queued")

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self.link = link
        self._loop = loop
        self._ready: deque[Group[Any]] = deque()
        self._last_size = 0
        self._busy = False
        self.queued = 0

    def group(self, verb: Verb[T]) -> Group[T]:
        """A group of this link."""
        return Group(self, verb)

    def wanted(self, group: Group[Any]) -> None:
        """A group that was empty has something to send."""
        self._ready.append(group)
        if not self._busy:
            self._busy = True
            if self._last_size <= 1:
                self._send_next()
            else:
                self._loop.call_soon(self._send_next)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked inside leaves together, not the first of it alone. Nothing may wait inside."""
        if self._busy:
            yield
            return
        self._busy = True
        try:
            yield
        finally:
            self._send_next()

    def answered(self, size: int) -> None:
        """The statement under way, with ``size`` requests, has its answer."""
        self._last_size = size
        if not self.queued:
            self._busy = False
        elif self.queued == 1 and size <= 1:
            self._send_next()
        else:
            self._loop.call_soon(self._send_next)

    def _send_next(self) -> None:
        ready = self._ready
        while ready:
            group = ready.popleft()
            if group.queue:
                group.leave()
                if group.queue:
                    ready.append(group)
                return
        self._busy = False


class Group(Generic[T]):
    """The requests of one verb on one link. After the link's death it answers nothing: the link's owner knows more."""

    __slots__ = ("_batch", "_turns", "_verb", "queue")

    def __init__(self, turns: Turns, verb: Verb[T]) -> None:
        self._turns = turns
        self._verb = verb
        self._batch: Sequence[T] = ()
        self.queue: list[T] = []

    def ask(self, request: T) -> None:
        """Hand in a request."""
        queue = self.queue
        queue.append(request)
        turns = self._turns
        turns.queued += 1
        if len(queue) == 1:
            turns.wanted(self)

    def ask_all(self, requests: Sequence[T]) -> None:
        """Hand in several requests that shall leave together."""
        with self._turns.together():
            for request in requests:
                self.ask(request)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or under way."""
        return not self._batch and not self.queue

    def take_back(self) -> tuple[Sequence[T], Sequence[T]]:
        """After the link's death: the requests that were sent and never answered, and those never sent."""
        sent, unsent = self._batch, self.queue
        self._batch, self.queue = (), []
        return sent, unsent

    def leave(self) -> None:
        """Send what is queued, as much of it as fits."""
        queue = self.queue
        verb = self._verb
        turns = self._turns
        if len(queue) == 1:
            self._batch, self.queue = queue, []
            turns.queued -= 1
            self._send(verb.one, verb.parameters_one(queue[0]))
            return
        most = verb.fit(queue)
        self._batch, self.queue = queue[:most], queue[most:]
        turns.queued -= len(self._batch)
        self._send(verb.many, verb.parameters_many(self._batch))

    def _send(self, sent: Statement, parameters: Sequence[bytes | None]) -> None:
        link, verb = self._turns.link, self._verb
        if verb.after is None or verb.parameters_after is None:
            link.send(sent, parameters, self._reply)
            return
        first: list[tuple[Rows, Exception | None]] = []

        def second(rows: Rows, error: Exception | None) -> None:
            before, failed = first[0]
            wrong = failed or error
            self._reply([] if wrong else [*map(add, before, rows)], wrong)

        link.send(sent, parameters, lambda rows, error: first.append((rows, error)))
        link.send(verb.after, verb.parameters_after(self._batch), second)

    def _reply(self, rows: Rows, error: Exception | None) -> None:
        if isinstance(error, LinkLost):
            return
        batch, self._batch = self._batch, ()
        try:
            if error is None:
                self._verb.answered(batch, rows)
            else:
                self._verb.failed(batch, error)
        except Exception:
            self._batch = batch
            raise
        finally:
            # what ends a program goes on its way, and the turn is passed on
            if not self._batch:
                self._turns.answered(len(batch))
