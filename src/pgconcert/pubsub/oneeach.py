"""Every process listens, and each message is handled by one of them, at most.

Messages carry an id; whoever writes it down first handles the message (``Messenger.claim``). Order is kept, so a
message waits for the claim of the one before it. When it cannot be known whose it is, nobody handles it, and a gap says
so. Messages without an id are handled by everybody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

from ..errors import Unavailable
from ..events import MessagesMissed, MessageUnclaimed
from .broker import Broker
from .delivery import Deliverer
from .message import Gap, Message
from .overflow import Inbox

__all__ = ["OneEach"]

_MOST_UNCLAIMED: Final = 10_000


class OneEach(Deliverer):
    """One line of claims for each channel."""

    def __init__(self, broker: Broker, channels: tuple[str, ...], inbox: Inbox[Message]) -> None:
        self._broker = broker
        self._lines = {name: _Line(broker, name, inbox) for name in channels}
        self.sinks = self._lines

    @property
    def active(self) -> bool:
        return True

    @property
    def pending(self) -> int:
        return sum(line.length for line in self._lines.values())

    async def begin(self, timeout: float | None) -> None:
        # what would go wrong with the first message goes wrong here
        answer: asyncio.Future[bool] = self._broker.loop.create_future()
        self._broker.messenger.claim(_scope(self._broker, ""), self._broker.sender, answer)
        try:
            async with asyncio.timeout(timeout):
                await answer
        except TimeoutError:
            raise Unavailable(f"a claim was not answered within {timeout:g} s") from None

    async def end(self) -> None:
        pass


class _Line:
    """The messages of one channel, in line for their claims."""

    def __init__(self, broker: Broker, channel: str, inbox: Inbox[Message]) -> None:
        self._broker = broker
        self._scope = _scope(broker, channel)
        self._inbox = inbox
        self._line: deque[_Claimed] = deque()
        self._complained = False
        self.fail = inbox.fail

    @property
    def length(self) -> int:
        """How many stand in it."""
        return len(self._line)

    def put(self, message: Message) -> None:
        """Queue it when it is ours, and those before it are known."""
        if len(self._line) >= _MOST_UNCLAIMED:
            self.gap(_unclaimed(message))
        elif message.id is None:
            if not self._complained:
                self._complained = True
                self._broker.events.emit(MessageUnclaimed(channel=message.channel))
            self._stand(_Claimed(self, message))
        else:
            claimed = _Claimed(self, None, message)
            self._line.append(claimed)
            self._broker.messenger.claim(self._scope, message.id, claimed)

    def gap(self, gap: Gap) -> None:
        """Messages were missed here."""
        if self._line and isinstance(last := self._line[-1].outcome, Gap):
            self._line[-1].outcome = last.joined(gap)
        else:
            self._stand(_Claimed(self, gap))

    def lost(self, message: Message, error: Exception) -> Gap:
        """It cannot be known who handles a message, so nobody does."""
        gap = _unclaimed(message)
        self._broker.events.emit(
            MessagesMissed(channels=gap.channels, reason="claim", count=1, since=gap.since, why=str(error))
        )
        return gap

    def _stand(self, known: _Claimed) -> None:
        self._line.append(known)
        self.move()

    def move(self) -> None:
        """Hand on what is known, in its order."""
        line = self._line
        while line and line[0].known:
            outcome = line.popleft().outcome
            if isinstance(outcome, Gap):
                self._inbox.gap(outcome)
            elif outcome is not None:
                self._inbox.put(outcome)
        if not line and self._inbox.wake is not None:
            self._inbox.wake()  # whoever ends waits for the last in line


class _Claimed:
    """One in the line: a message whose claim is under way, or something that is known."""

    __slots__ = ("_line", "_message", "known", "outcome")

    def __init__(self, line: _Line, outcome: Message | Gap | None, message: Message | None = None) -> None:
        self._line = line
        self._message = message
        self.outcome = outcome
        self.known = outcome is not None

    def done(self) -> bool:
        return self.known

    def set_result(self, result: bool, /) -> None:
        self._settle(self._message if result else None)

    def set_exception(self, exception: Exception, /) -> None:
        assert self._message is not None
        self._settle(self._line.lost(self._message, exception))

    def _settle(self, outcome: Message | Gap | None) -> None:
        self.known = True
        self.outcome = outcome
        self._line.move()


def _unclaimed(message: Message) -> Gap:
    since = message.received
    return Gap(reason="claim", count=1, since=since, until=max(since, time.time()), channels=(message.channel,))


def _scope(broker: Broker, channel: str) -> str:
    """Within which an id is one message. Neither part has a NUL, so no two run into each other."""
    return f"{broker.keys.namespace}\0{channel}"
