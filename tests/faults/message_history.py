"""What publishers and subscribers in several processes did, as lines in one file, and what follows from them.

The judging is pure; `Log` writes and `Tail` reads. A line is one fact. A publisher writes *begin* before it hands in a
number and *fate* when it knows what became of it: `sent`, `uncertain` (`PublishUncertain`) or `refused` (`Unavailable`:
never sent). A subscriber writes *entered* when its entry has returned, then *got* and *gap* in the order in which it is
given things, and *finished* when the last word came. Times are those of the monotonic clock, which all processes share.

The rule: after its entry a subscriber gets every number that was sent, of each publisher in order and once; or a gap
stands at exactly that place, names the channel, and is large enough. What is uncertain may come or not, what was
refused must not. A subscriber that did not finish is judged up to its last line.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Fate", "Log", "Tail", "Verdict", "handled", "judge", "lines_of"]

Fate = Literal["sent", "uncertain", "refused"]


class Log:
    """Appends lines to a file that all processes share; the kernel keeps small appends whole."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, *words: object) -> None:
        """One fact."""
        os.write(self._file, " ".join(map(str, words)).encode() + b"\n")

    def begin(self, publisher: str, channel: str, number: int) -> None:
        """A number is about to be handed in."""
        self.write("begin", publisher, channel, number, time.monotonic_ns())

    def fate(self, publisher: str, number: int, fate: Fate) -> None:
        """What became of it."""
        self.write("fate", publisher, number, fate)

    def entered(self, subscriber: str, channels: Iterable[str]) -> None:
        """Everything that begins from now on must come."""
        self.write("entered", subscriber, ",".join(channels), time.monotonic_ns())

    def got(self, subscriber: str, publisher: str, number: int) -> None:
        """A message came."""
        self.write("got", subscriber, publisher, number)

    def gap(self, subscriber: str, reason: str, count: int | None, channels: Iterable[str]) -> None:
        """A gap came."""
        self.write("gap", subscriber, reason, "?" if count is None else count, ",".join(channels))

    def finished(self, subscriber: str) -> None:
        """The last word came."""
        self.write("finished", subscriber)

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


def lines_of(path: Path) -> list[list[str]]:
    """All whole lines so far, as words."""
    return Tail(path).lines()


class Tail:
    """Follows a history that grows."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._at = 0
        self._lines: list[list[str]] = []
        self._given: Counter[str] = Counter()

    def lines(self) -> list[list[str]]:
        """All whole lines so far, as words."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                new, newline, _ = file.read().rpartition(b"\n")
            self._at += len(new + newline)
            words = [line.split() for line in new.decode().split("\n") if line]
            self._lines += words
            self._given.update(line[1] for line in words if line[0] == "got")
        return self._lines

    def given(self) -> Counter[str]:
        """How many messages each subscriber was given so far."""
        self.lines()
        return self._given


@dataclass
class _Publisher:
    channel: str
    begun: dict[int, int] = field(default_factory=dict)
    fates: dict[int, Fate] = field(default_factory=dict)

    def lost(self, first: int, end: int) -> list[int]:
        """Of these numbers, those that were sent for certain."""
        return [number for number in range(first, end) if self.fates.get(number) == "sent"]

    def first_after(self, at: int) -> int:
        """The first number that was begun after an instant."""
        return min((number for number, when in self.begun.items() if when > at), default=len(self.begun) + 1)


@dataclass
class _Subscriber:
    channels: list[str]
    entered: int
    told: list[tuple[str, ...]] = field(default_factory=list)
    finished: bool = False


@dataclass
class Verdict:
    """What was found. `wrong` must be empty; the numbers show that the run was worth something."""

    wrong: list[str] = field(default_factory=list)
    received: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Numbers that were sent and lie in a gap, over all subscribers."""


def judge(lines: Iterable[list[str]]) -> Verdict:
    """Read a history to its end."""
    verdict = Verdict()
    publishers: dict[str, _Publisher] = {}
    subscribers: dict[str, _Subscriber] = {}
    for line in lines:
        match line:
            case ["begin", name, channel, number, at]:
                publishers.setdefault(name, _Publisher(channel)).begun[int(number)] = int(at)
            case ["fate", name, number, "sent" | "uncertain" | "refused" as fate]:
                publishers[name].fates[int(number)] = fate
                verdict.fates[fate] += 1
            case ["entered", name, channels, at]:
                subscribers[name] = _Subscriber(channels.split(","), int(at))
            case ["got", name, publisher, number]:
                subscribers[name].told.append(("got", publisher, number))
                verdict.received += 1
            case ["gap", name, reason, count, channels]:
                subscribers[name].told.append(("gap", reason, count, channels))
                verdict.gaps[reason] += 1
            case ["finished", name]:
                subscribers[name].finished = True
            case _:
                verdict.wrong.append(f"a line that makes no sense: {line}")
    for name, subscriber in subscribers.items():
        _judge_one(name, subscriber, publishers, verdict)
    return verdict


def _judge_one(name: str, subscriber: _Subscriber, publishers: dict[str, _Publisher], verdict: Verdict) -> None:
    known = {who: one for who, one in publishers.items() if one.channel in subscriber.channels}
    expected = {who: publisher.first_after(subscriber.entered) for who, publisher in known.items()}
    unbounded: dict[str, bool] = defaultdict(bool)
    room = 0
    counted = 0

    def missing(who: str, end: int, where: str) -> None:
        nonlocal counted
        lost = known[who].lost(expected[who], end)
        if not lost:
            return
        if unbounded[who]:
            verdict.missed += len(lost)
        elif bounded[who]:
            verdict.missed += len(lost)
            counted += len(lost)
        else:
            verdict.wrong.append(f"{name} did not get {lost[:5]} ({len(lost)}) of {who} and was not told, {where}")

    bounded: dict[str, bool] = defaultdict(bool)
    last: dict[str, int] = {}
    for what in subscriber.told:
        if what[0] == "gap":
            _, _, count, channels = what
            room += 0 if count == "?" else int(count)
            for who, publisher in known.items():
                if publisher.channel in channels.split(","):
                    (unbounded if count == "?" else bounded)[who] = True
            continue
        _, who, text = what
        number = int(text)
        if who not in known or number not in known[who].begun:
            verdict.wrong.append(f"{name} got {number} of {who}, which nobody sent there")
            continue
        if known[who].fates.get(number) == "refused":
            verdict.wrong.append(f"{name} got {number} of {who}, which was said not to be sent")
        if number <= last.get(who, 0):
            verdict.wrong.append(f"{name} got {number} of {who} after {last[who]}: again, or in another order")
            continue
        missing(who, number, f"before {number}")
        last[who] = number
        expected[who] = max(expected[who], number + 1)
        unbounded[who] = bounded[who] = False
    if subscriber.finished:
        for who, publisher in known.items():
            missing(who, max(publisher.begun) + 1, "at the end")
    if counted > room:
        verdict.wrong.append(f"{name} missed {counted} messages in gaps that admit to {room}")


def handled(lines: Iterable[list[str]]) -> dict[str, list[str]]:
    """Of a history in which one subscriber handles each message: who got it, by publisher and number."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line[0] == "got":
            _, subscriber, publisher, number = line
            found[f"{publisher} {number}"].append(subscriber)
    return found
