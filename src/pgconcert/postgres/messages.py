"""Publishing: NOTIFY on a link of its own, by group commit.

A NOTIFY waits for the server's notify lock at its commit, so nothing else may stand behind it on a link. What is handed
in while statements are under way leaves together when the last of them is answered: a *turn*. There is no timer: a lone
message leaves at once as a plain statement; after a turn of several messages the next one waits for the end of the
loop's turn, so that the tasks woken by one answer travel together again.

One transaction never carries the same (channel, payload) twice, because the server would deliver it once. A turn is cut
before every repetition into *runs*, one statement each. Runs follow each other without waiting where the server cannot
refuse a message for what it says (our callers have checked it, and the database is UTF-8); else each waits for the one
before, because a run that fails for the sake of one message is sent again singly (a notification leaves nothing
behind), and nothing may overtake it. Where the link sends one at a time anyhow, what waits here was never sent.

What a caller learns: ``True`` when the server has committed; ``StatementFailed`` for its own message;
``NotifyQueueFull``; ``PublishUncertain`` when the link died after sending; ``Unavailable`` when it was never sent.
Nothing is ever sent twice after a death.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from copy import copy
from typing import Final

from ..errors import (
    BrokerClosed,
    ConfigurationError,
    LinkLost,
    PgconcertError,
    PublishUncertain,
    StatementFailed,
    Unavailable,
)
from ..messenger import Answer
from .keeper import Context, Keeper
from .link import Link, Rows
from .probe import Proof
from .queuewatch import QueueWatch
from .statements import NOTIFY, NOTIFY_MANY, NOTIFY_MANY_ON_ONE, PING

__all__ = ["Publisher"]

_MOST: Final = 2000
_MOST_BYTES: Final = 1_000_000
_FAREWELL: Final = 0.5
_FAREWELL_TURNS: Final = 3
_MESSAGE_AT_FAULT: Final = "22"  # the class of SQLSTATEs that says so
_QUEUE_FULL: Final = "54000"
_LOCKED: Final = "55P03"

_Message = tuple[bytes, bytes, Answer[bool]]


class Publisher:
    """Owns the publish link."""

    def __init__(self, context: Context) -> None:
        self._loop = context.loop
        self._link: Link | None = None
        self._queue: list[_Message] = []
        self._runs: deque[list[_Message]] = deque()
        self._to_send: deque[list[_Message]] = deque()
        self._busy = False
        self._turn_size = 0
        self._closing = False
        self._closed = False
        self._pausing: asyncio.TimerHandle | None = None
        self._attempt: asyncio.Future[None] | None = None
        self.watch = QueueWatch(context.loop, context.events)
        self.keeper = Keeper(context, "publish", self)

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        """Hand in a message. The caller has checked channel and size."""
        watch = self.watch
        if watch.full is not None and (refusal := watch.refuse()) is not None:
            answer.set_exception(refusal)
            return
        self._queue.append((channel, payload, answer))
        if not self._busy:
            self._start()

    @property
    def idle(self) -> bool:
        """Whether every message has met its fate."""
        return not (self._queue or self._runs or self._to_send)

    async def close(self) -> None:
        """Publish what was handed in, if that is quick, and nothing more."""
        link = self._link
        self._closing = True
        if self._pausing is not None and link is not None:
            self._pausing.cancel()
            self._leave(link)
        # answers come in order: behind this ping the turn under way is done, and what was queued has left
        for _ in range(_FAREWELL_TURNS):
            link = self._link
            if self.idle or (link is not None and link.dead is not None):
                break
            if link is None:
                # the first message of all has asked for a link: what wakes others must not wait for their next look
                self._attempt = self._loop.create_future()
                await asyncio.wait([self._attempt], timeout=_FAREWELL)
            else:
                await asyncio.wait([link.execute(PING)], timeout=_FAREWELL)
        self._closed = True
        await self.keeper.close()
        self._fail_queue(BrokerClosed("the message was not sent: the coordinator is closed"))

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """Send what has waited."""
        self._link = link
        self._busy = False
        self._turn_size = 0
        self.watch.up(link)
        if self._queue:
            self._start()
        self._attempted()

    def link_down(self, reason: str) -> None:
        """What was under way is uncertain; what was not sent is not."""
        self._link = None
        self._busy = False
        self.watch.down()
        sent, self._runs = self._runs, deque()
        unsent, self._to_send = self._to_send, deque()
        for run in sent:
            _fail(run, PublishUncertain(f"the link died before the server confirmed the notification: {reason}"))
        error = Unavailable(f"the notification was not sent: {reason}")
        for run in unsent:
            _fail(run, error)
        self._fail_queue(error)

    def connect_failed(self, error: PgconcertError) -> None:
        """Without a link nothing is sent: whoever waits is told, and decides."""
        self.keeper.unwant()
        if not isinstance(error, ConfigurationError):
            failure = Unavailable(f"the notification was not sent: {error}")
            failure.__cause__ = error
            error = failure
        self._fail_queue(error)
        self._attempted()

    # the work

    def _attempted(self) -> None:
        if self._attempt is not None and not self._attempt.done():
            self._attempt.set_result(None)

    def _start(self) -> None:
        if self._link is None:
            if self._closed:
                self._fail_queue(BrokerClosed("the message was not sent: the coordinator is closed"))
            else:
                self.keeper.want()
            return
        self._busy = True
        pause = self.watch.pause()
        if pause and not self._closing:
            self._pausing = self._loop.call_later(pause, self._leave, self._link)
        elif self._turn_size <= 1:
            self._leave(self._link)
        else:
            self._loop.call_soon(self._leave, self._link)

    def _leave(self, link: Link) -> None:
        """Send what is queued, as much of it as makes a turn."""
        self._pausing = None
        if self._link is not link or not self._queue:
            return
        queue = self._queue
        self._turn_size = size = min(len(queue), _MOST)
        if size == 1:
            self._queue = []
            self._send(link, queue)
        else:
            turn = queue
            if len(queue) > size:
                turn = queue[:size]
            self._queue = queue[size:]
            self._to_send.extend(_runs(turn))
            self._send(link, self._to_send.popleft())
            if link.utf8 and link.named:
                while self._to_send:
                    self._send(link, self._to_send.popleft())
        self.watch.look(link)

    def _send(self, link: Link, run: list[_Message]) -> None:
        self._runs.append(run)
        if len(run) == 1:
            link.send(NOTIFY, run[0][:2], self._answered)
            return
        channels, payloads, _ = zip(*run, strict=True)
        if len(set(channels)) == 1:
            link.send(NOTIFY_MANY_ON_ONE, (channels[0], _text_array(payloads)), self._answered)
        else:
            link.send(NOTIFY_MANY, (_text_array(channels), _text_array(payloads)), self._answered)

    def _answered(self, rows: Rows, error: Exception | None) -> None:
        if isinstance(error, LinkLost):
            return  # ``link_down`` follows, and knows more
        run = self._runs.popleft()
        try:
            if error is None:
                for _, _, answer in run:
                    if not answer.done():
                        answer.set_result(True)
            elif len(run) > 1 and isinstance(error, StatementFailed) and error.sqlstate.startswith(_MESSAGE_AT_FAULT):
                self._to_send.extendleft([message] for message in reversed(run))
            else:
                self._refused(run, error)
        except Exception:
            self._runs.appendleft(run)  # the link dies of it
            raise
        finally:
            # what ends a program goes on its way, and the turn is passed on
            self._go_on()

    def _go_on(self) -> None:
        link = self._link
        if self._runs or link is None:
            return
        if self._to_send:
            self._send(link, self._to_send.popleft())
        elif self._queue:
            self._start()
        else:
            self._busy = False

    def _refused(self, run: list[_Message], error: Exception) -> None:
        state = error.sqlstate if isinstance(error, StatementFailed) else ""
        if state == _QUEUE_FULL and self._link is not None:
            self.watch.explain(self._link, error, lambda full: _fail(run, full))
        elif state == _LOCKED:
            _fail(run, Unavailable(f"the notification was not sent, because others hold up all notifying: {error}"))
        else:
            _fail(run, error)

    def _fail_queue(self, error: Exception) -> None:
        queue, self._queue = self._queue, []
        _fail(queue, error)


def _fail(messages: Sequence[_Message], error: Exception) -> None:
    for _, _, answer in messages:
        if not answer.done():
            answer.set_exception(error if len(messages) == 1 else _own(error))


def _own(error: Exception) -> Exception:
    """A copy: whoever raises it adds a traceback and notes, which are not for others."""
    own = copy(error)
    own.__cause__ = error.__cause__
    return own


def _runs(turn: list[_Message]) -> list[list[_Message]]:
    """Cut a turn so that no run has the same message twice, and none is too long for one statement."""
    channels, payloads, _ = zip(*turn, strict=True)
    count = len(turn)
    distinct = len(set(payloads)) == count or len(set(zip(channels, payloads, strict=True))) == count
    if distinct and sum(map(len, payloads)) <= _MOST_BYTES:
        return [turn]
    runs: list[list[_Message]] = []
    start = 0
    seen: set[tuple[bytes, bytes]] = set()
    room = _MOST_BYTES
    for place, (channel, payload, _) in enumerate(turn):
        key = (channel, payload)
        room -= len(payload)
        if key in seen or (room < 0 and place > start):
            runs.append(turn[start:place])
            start = place
            seen.clear()
            room = _MOST_BYTES - len(payload)
        seen.add(key)
    runs.append(turn[start:])
    return runs


def _text_array(values: Sequence[bytes]) -> bytes:
    # no text can have a NUL in it, so it may stand for the gap while the rest is quoted
    joined = b"\0".join(values).replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'{"' + joined.replace(b"\0", b'","') + b'"}'
