"""A model of what a lock shard is to the owner of a key, and of the server behind it, for `test_keyowner.py`.

Here lives what is true of the world: the counts of session locks as the server keeps them, and what is under way.
Whatever an owner may never do is asserted at the place where it would do it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

from pgconcert.backend import Claim
from pgconcert.errors import StatementFailed
from pgconcert.events import EventStream
from pgconcert.postgres.keyowner import KeyOwner


class Answer:
    """A waiter that may be settled once."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def done(self) -> bool:
        return bool(self.told)

    def set_result(self, result: bool, /) -> None:
        self.told.append(result)

    def set_exception(self, exception: Exception, /) -> None:
        self.told.append(exception)


@dataclass
class ServerKey:
    """One key as the server sees it. ``ours`` and ``marks`` are counts of one session."""

    ours: int = 0
    marks: int = 0
    foreign: bool = False
    foreign_mark: bool = False
    looking: bool = False

    def lock(self) -> bool:
        if self.foreign:
            return False
        self.ours += 1
        return True

    def execute(self, verb: str) -> str:
        if verb == "try":
            return "t" if self.lock() else "f"
        if verb == "mark":
            if self.looking:
                return "b"
            self.marks += 1
            return "t" if self.lock() else "f"
        if verb == "unlock":
            if not self.ours:
                return "n"
            self.ours -= 1
            return "w" if self.foreign_mark else "q"
        assert verb == "unmark"
        assert self.marks, "unmarked what was not marked"
        self.marks -= 1
        return "t"


@dataclass
class Request:
    """A statement under way."""

    owner: KeyOwner
    verb: str
    answer: str | None = None
    failure: StatementFailed | None = None
    reconciling: bool = False


@dataclass
class Timer:
    """The end of a rest, which comes when the machine says so."""

    owner: KeyOwner
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


def _with_a_reader(events: EventStream) -> EventStream:
    """Owners tell what they were granted only when somebody listens."""
    events.subscribe(lambda event: None)
    return events


@dataclass
class Shard:
    """The part of a shard and its locker that an owner sees."""

    server: dict[int, ServerKey]
    owners: dict[int, KeyOwner] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    watched: dict[KeyOwner, None] = field(default_factory=dict)
    resting: list[Timer] = field(default_factory=list)
    grants: list[Claim] = field(default_factory=list)
    lost: list[Claim] = field(default_factory=list)
    strange: list[int] = field(default_factory=list)
    events: EventStream = field(default_factory=lambda: _with_a_reader(EventStream()))
    up: bool = False
    heard: bool = False

    def send(self, owner: KeyOwner, verb: str) -> None:
        assert self.up
        assert self.owners.get(owner.value) is owner, f"{verb} by an owner that has retired"
        assert all(known.owner is not owner for known in self.requests), "two statements of one key under way"
        self.requests.append(Request(owner, verb))

    def try_(self, owner: KeyOwner) -> None:
        self.send(owner, "try")

    def mark(self, owner: KeyOwner) -> None:
        assert owner in self.watched
        self.send(owner, "mark")

    def unlock(self, owner: KeyOwner) -> None:
        self.send(owner, "unlock")

    def unmark(self, owner: KeyOwner) -> None:
        self.send(owner, "unmark")

    def can_mark(self, owner: KeyOwner) -> bool:
        self.watched[owner] = None
        owner.watching = True
        return self.heard

    def watch(self, owner: KeyOwner) -> None:
        self.watched[owner] = None

    def unwatch(self, owner: KeyOwner) -> None:
        if owner.watching:
            owner.watching = False
            self.watched.pop(owner, None)

    def retire(self, owner: KeyOwner) -> None:
        if self.owners.get(owner.value) is not owner:
            return
        known = self.server[owner.value]
        assert (known.ours, known.marks) == (0, 0), "retired with something left on the server"
        assert all(request.owner is not owner for request in self.requests), "retired with a statement under way"
        del self.owners[owner.value]
        owner.watching = False
        self.watched.pop(owner, None)

    def released(self, owner: KeyOwner, wanted: bool) -> None:
        assert not owner.held

    def wake_others(self, owner: KeyOwner) -> None:
        assert owner.rest is None, "a rest within a rest"
        timer = Timer(owner)
        owner.rest = cast(asyncio.TimerHandle, timer)
        self.resting.append(timer)

    def not_ours(self, owner: KeyOwner) -> None:
        self.strange.append(owner.value)

    def granted(self, claim: Claim) -> None:
        assert claim not in self.grants, "granted twice"
        self.grants.append(claim)

    def hold_lost(self, claim: Claim) -> None:
        self.lost.append(claim)
