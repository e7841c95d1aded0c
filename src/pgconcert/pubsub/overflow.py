"""The queue of one subscriber: bounded, and honest about what it has lost. Pure: it is told, and it tells when asked.

States of an inbox::

    open --overflow "error", or fail()--> ending (what is queued can still be taken) --empty--> ended (raises)

Messages and gaps come out in the order in which they went in. A gap stands where the messages are missing: with
``drop_newest`` behind the queue as it was when it became full, with ``drop_oldest`` before its head. Gaps that meet
become one, so a subscriber that takes nothing costs its capacity and no more, whatever happens. Gaps count towards no
capacity. With ``gaps="count"`` they are only counted.

Whoever waits for an item sets ``wake``, which is called with each item, and at the end, until it is unset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, Generic, Literal, Protocol, TypeVar

from ..errors import ConfigurationError, ListenerOverflow, given
from ..events import EventStream, MessagesMissed
from .message import Gap, GapReason

__all__ = ["Gaps", "Inbox", "Item", "Overflow", "Sink", "SubscriptionStatistics", "check_policies"]

Overflow = Literal["drop_newest", "drop_oldest", "error"]
"""What a full queue does with another message: drop it, drop the oldest one for it, or end with an error."""

Gaps = Literal["count", "yield", "raise"]
"""How a gap is told to the subscriber: only in its statistics, as a ``Gap`` among the messages, or as an error."""

ENDED: Final = "this subscription was closed"

_MOST: Final = 10_000_000
_QUIET: Final = 1.0
"""Seconds between two events about one overflow."""


class Item(Protocol):
    """Something that can be queued; ``Message`` is one."""

    @property
    def channel(self) -> str: ...
    @property
    def received(self) -> float: ...


M = TypeVar("M", bound=Item)
M_contra = TypeVar("M_contra", bound=Item, contravariant=True)


class Sink(Protocol[M_contra]):
    """Where the messages of a channel go. Quick, and never raising."""

    def put(self, item: M_contra, /) -> None: ...
    def gap(self, gap: Gap, /) -> None: ...
    def fail(self, error: Exception, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatistics:
    """What a subscription has seen. ``received``: messages that were queued; ``queued``: how many of them wait;
    ``dropped``: lost by overflow; ``gaps``: how many gaps of each reason; ``last_gap``: the latest of them."""

    received: int
    queued: int
    dropped: int
    gaps: Mapping[GapReason, int]
    last_gap: Gap | None


def check_policies(capacity: object, overflow: object, gaps: object) -> None:
    """Raise ``ConfigurationError`` for what is no policy."""
    if type(capacity) is not int or not 1 <= capacity <= _MOST:
        raise ConfigurationError(f"capacity must be 1 to {_MOST} messages, a whole number, not {given(capacity)}")
    if overflow not in ("drop_newest", "drop_oldest", "error"):
        raise ConfigurationError(f"overflow must be 'drop_newest', 'drop_oldest' or 'error', not {given(overflow)}")
    if gaps not in ("count", "yield", "raise"):
        raise ConfigurationError(f"gaps must be 'count', 'yield' or 'raise', not {given(gaps)}")


class Inbox(Generic[M]):
    """The queue of one subscriber."""

    __slots__ = (
        "_behind",
        "_capacity",
        "_channels",
        "_dropped",
        "_error",
        "_events",
        "_keep_gaps",
        "_last_gap",
        "_overflow",
        "_reasons",
        "_received",
        "_reported_at",
        "_unreported",
        "before",
        "items",
        "queued",
        "wake",
    )

    def __init__(
        self, channels: tuple[str, ...], events: EventStream, capacity: int, overflow: Overflow, gaps: Gaps
    ) -> None:
        check_policies(capacity, overflow, gaps)
        self._channels = channels
        self._events = events
        self._capacity = capacity
        self._overflow = overflow
        self._keep_gaps = gaps != "count"
        self.items: Final[deque[M | Gap]] = deque()
        """What waits; the quickest of consumers take from here themselves, and then count ``queued`` down."""
        self.queued = 0
        """How many of them are messages."""
        self._received = 0
        self._dropped = 0
        self._reasons: dict[GapReason, int] = {}
        self._last_gap: Gap | None = None
        self.before: Gap | None = None
        """What was dropped before the head, which must be taken first."""
        self._behind: Gap | None = None
        """What drop_newest has dropped since the queue was full."""
        self._unreported: Gap | None = None
        self._reported_at = -_QUIET
        self._error: Exception | None = None
        self.wake: Callable[[], None] | None = None

    def put(self, item: M) -> None:
        """Queue a message, or lose one, by the policy."""
        if (self.queued >= self._capacity or self._behind is not None) and not self._make_room(item):
            return
        self.queued += 1
        self._received += 1
        self.items.append(item)
        wake = self.wake
        if wake is not None:
            wake()

    def gap(self, gap: Gap) -> None:
        """Note that messages are missing here, for another reason than overflow."""
        if self._error is not None:
            return
        self._end_overflow()
        self._note(gap)

    def fail(self, error: Exception) -> None:
        """The last thing that happens: once the queue is empty, ``error`` is raised."""
        if self._error is None:
            self._report()
            self._error = error
            self._capacity = 0
            wake = self.wake
            if wake is not None:
                wake()

    def take(self) -> M | Gap | None:
        """The next message or gap; ``None`` if there is none yet. Raises the error of ``fail`` at the end."""
        if self.before is not None:
            gap, self.before = self.before, None
            self._count(gap)
            if self._keep_gaps:
                return gap
        if self.items:
            item = self.items.popleft()
            if not isinstance(item, Gap):
                self.queued -= 1
            return item
        if self._behind is not None:
            gap, self._behind = self._behind, None
            self._count(gap)
            if self._keep_gaps:
                return gap
        if self._error is not None:
            raise self._error
        return None

    def clear(self) -> None:
        """Forget what is queued; nobody will take it."""
        self._report()
        self.items.clear()
        self.before = self._behind = None
        self.queued = 0

    def drop(self, channel: str) -> int:
        """Forget the queued messages of one channel: how many they were."""
        left = [item for item in self.items if isinstance(item, Gap) or item.channel != channel]
        dropped = len(self.items) - len(left)
        self.items.clear()
        self.items.extend(left)
        self.queued -= dropped
        return dropped

    @property
    def ended(self) -> bool:
        """Whether nothing more can come."""
        return self._error is not None

    @property
    def empty(self) -> bool:
        """Whether ``take`` would give ``None``."""
        return not self.items and self.before is None and self._behind is None and self._error is None

    def statistics(self) -> SubscriptionStatistics:
        """How it is now."""
        reasons = dict(self._reasons)
        last = self._last_gap
        for pending in (self.before, self._behind):
            if pending is not None:
                reasons["overflow"] = reasons.get("overflow", 0) + 1
                last = pending
        return SubscriptionStatistics(
            received=self._received, queued=self.queued, dropped=self._dropped, gaps=reasons, last_gap=last
        )

    # what a full queue does

    def _make_room(self, item: M) -> bool:
        if self._error is not None:
            return False
        if self.queued < self._capacity:
            self._end_overflow()
            return True
        self._dropped += 1
        self._events.tally.messages.dropped += 1
        if self._overflow == "error":
            self._tell(self._lost(item))
            self.fail(
                ListenerOverflow(
                    f"a subscriber of {', '.join(map(repr, self._channels[:3]))} was too slow: {self._capacity} "
                    "messages were queued when another came, and its overflow is 'error'; take them faster, give it "
                    "a larger capacity, or another policy"
                )
            )
            return False
        if self._overflow == "drop_newest":
            lost = self._lost(item)
            self._behind = lost if self._behind is None else self._behind.joined(lost)
            self._tell(lost)
            return False
        while True:
            oldest = self.items.popleft()
            if isinstance(oldest, Gap):
                lost = oldest
                self._uncount(oldest)
            else:
                lost = self._lost(oldest, item.received)
                self._tell(lost)
            self.before = lost if self.before is None else self.before.joined(lost)
            if not isinstance(oldest, Gap):
                self.queued -= 1
                return True

    def _lost(self, item: M, until: float | None = None) -> Gap:
        at = item.received
        return Gap(reason="overflow", count=1, since=at, until=max(at, until or at), channels=(item.channel,))

    def _end_overflow(self) -> None:
        gap, self._behind = self._behind, None
        if gap is not None:
            self._note(gap)

    def _note(self, gap: Gap) -> None:
        self._count(gap)
        if not self._keep_gaps:
            return
        if self.items and isinstance(last := self.items[-1], Gap):
            self.items[-1] = last.joined(gap)
        else:
            self.items.append(gap)
        wake = self.wake
        if wake is not None:
            wake()

    def _count(self, gap: Gap) -> None:
        self._reasons[gap.reason] = self._reasons.get(gap.reason, 0) + 1
        self._events.tally.messages.gaps[gap.reason] += 1
        self._last_gap = gap

    def _uncount(self, gap: Gap) -> None:
        """A gap that was counted is joined with another, and the two will be counted as one."""
        self._reasons[gap.reason] = self._reasons.get(gap.reason, 1) - 1

    # what people are told about an overflow: its beginning at once, then no more than one event in a while

    def _tell(self, lost: Gap) -> None:
        self._unreported = lost if self._unreported is None else self._unreported.joined(lost)
        now = monotonic()
        if now - self._reported_at >= _QUIET:
            self._reported_at = now
            self._report()

    def _report(self) -> None:
        gap, self._unreported = self._unreported, None
        if gap is not None:
            self._events.emit(
                MessagesMissed(channels=gap.channels, reason=gap.reason, count=gap.count, since=gap.since)
            )
