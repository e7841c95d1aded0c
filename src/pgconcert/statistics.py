"""What a coordinator has counted: mutable counts for the machinery, frozen statistics for whoever asks.

Here live numbers only. The stream of events of a coordinator carries one ``Tally``, so whoever can emit an event can
count; the hot path adds one to an attribute, and nothing is made for it. All that is counted only grows, except what
says that it is of now.

Counting takes no mutex: an addition to an attribute, or to a value of a dict whose keys are texts, is not interrupted
by other threads on CPython with its global lock, and elsewhere a rare count may be lost; a statistic may be read in the
middle of a change, so its numbers are each true and not all of one instant. What is waited for, held or connected *now*
is not counted here: ``health()`` says that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

__all__ = [
    "HoldCounts",
    "HoldStatistics",
    "MessageCounts",
    "MessageStatistics",
    "RecoveryCounts",
    "RecoveryStatistics",
    "RunnerStatistics",
    "Statistics",
    "Tally",
]

S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldStatistics:
    """What became of one kind of hold: of locks and permits, or of what hangs on sessions (job locks, leaderships,
    memberships).

    ``acquired``: granted to a caller, of which ``released`` were given back and ``lost`` were lost; the rest is held.
    ``waited``: those of ``acquired`` that had to wait because somebody else was in the way, ``seconds_waited`` in all.
    ``timed_out``: how often a wait has ended with ``AcquireTimeout``.
    """

    acquired: int
    released: int
    lost: int
    waited: int
    seconds_waited: float
    timed_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStatistics:
    """What became of messages. ``published``: sent by this coordinator and confirmed, requests and replies too;
    ``failed``: those whose sender got an error. ``received``: what came on the channels that somebody here listens to,
    once however many listen. ``dropped``: lost by overflow, counted for each subscriber. ``gaps``: how often a
    subscriber was told that something is missing, by the reason of the ``Gap``."""

    published: int
    failed: int
    received: int
    dropped: int
    gaps: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStatistics:
    """What polling has found on a channel whose fan-outs have ``enable_recovery``: ``saved`` items in all; ``streak``,
    of now: how many polls in a row found something, with no message by the wire between them."""

    channel: str
    saved: int
    streak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatistics:
    """What a runner has done since it was started.

    ``session_id``: its session now, if it has one. ``sessions``: how many runners share, and ``share``: how many tasks
    each may have, as the last tick found it; 0 where the source does not say. ``running``: tasks that are with the
    tasker now. ``turns``: how often the source was asked. ``handed``: tasks that were handed to the tasker, of which
    ``completed`` and ``failed`` are those of which it is known; what was cancelled or given up counts as neither.
    ``refused``: completed, but not ours to finish any more. ``moved``: taken over from others that had not begun them.
    ``lost_sessions``: how many sessions it has lost."""

    name: str
    session_id: int | None
    sessions: int
    share: int
    running: int
    turns: int
    handed: int
    completed: int
    failed: int
    refused: int
    moved: int
    lost_sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a coordinator has counted since it was made.

    ``events``: how often each kind of event was emitted, by the name of its class; kinds that are made only for readers
    (those with level 0, like ``LockAcquired``) are not among them. ``statements``: sent on all its links, also on those
    that are gone. ``locks``: locks and permits; ``names``: job locks, leaderships and memberships. ``recoveries``: by
    channel. ``runners``: those that somebody still refers to, by name.

    A backend that is not the library's own counts what it wants to; the rest is 0.
    """

    events: Mapping[str, int]
    statements: int
    locks: HoldStatistics
    names: HoldStatistics
    messages: MessageStatistics
    recoveries: tuple[RecoveryStatistics, ...]
    runners: tuple[RunnerStatistics, ...]


class HoldCounts:
    """The counts behind ``HoldStatistics``."""

    __slots__ = ("acquired", "lost", "released", "seconds_waited", "timed_out", "waited")

    def __init__(self) -> None:
        self.acquired = self.released = self.lost = self.waited = self.timed_out = 0
        self.seconds_waited = 0.0


class MessageCounts:
    """The counts behind ``MessageStatistics``."""

    __slots__ = ("dropped", "failed", "gaps", "published", "received")

    def __init__(self) -> None:
        self.published = self.failed = self.received = self.dropped = 0
        self.gaps: defaultdict[str, int] = defaultdict(int)


class RecoveryCounts:
    """The counts of one channel. Fan-outs of one channel count together; the streak is that of the last to change."""

    __slots__ = ("saved", "streak")

    def __init__(self) -> None:
        self.saved = self.streak = 0


class Tally:
    """The counts of one coordinator. ``statements``: those of links of which ``health()`` knows no more."""

    __slots__ = ("events", "locks", "messages", "names", "recoveries", "statements")

    def __init__(self) -> None:
        self.events: defaultdict[str, int] = defaultdict(int)
        self.statements = 0
        self.locks = HoldCounts()
        self.names = HoldCounts()
        self.messages = MessageCounts()
        self.recoveries: defaultdict[str, RecoveryCounts] = defaultdict(RecoveryCounts)

    def statistics(self, statements: int, runners: tuple[RunnerStatistics, ...]) -> Statistics:
        """All of it, as it is now, with what is counted elsewhere."""
        return Statistics(
            events=dict(self.events),
            statements=statements,
            locks=_frozen(HoldStatistics, self.locks),
            names=_frozen(HoldStatistics, self.names),
            messages=_frozen(MessageStatistics, self.messages),
            recoveries=tuple(
                RecoveryStatistics(channel=channel, saved=counts.saved, streak=counts.streak)
                for channel, counts in sorted(self.recoveries.copy().items())
            ),
            runners=tuple(sorted(runners, key=lambda runner: runner.name)),
        )


def _frozen(kind: type[S], counts: object) -> S:
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = getattr(counts, field.name)
        values[field.name] = dict(value) if isinstance(value, dict) else value
    return kind(**values)
