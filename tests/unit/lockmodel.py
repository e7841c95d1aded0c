"""A model of what a lock shard is to an owner, and of the server behind it, for ``test_keyowner.py``.

Here lives what is true of the world: what the server has granted, as it counts it, and what is under way. Whatever an
owner may never do is asserted at the place where it would do it.

Theory. To the server all that is ours is one session: its own locks never refuse it anything, and what it is granted
twice it must give back twice. So ``ServerKey`` keeps counts of what is ours, and refuses only because of others. It
follows the statements verb by verb, in the order in which they ask; ``tests/postgres/test_lockmodel.py`` holds it
against a server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pgconcert.backend import Claim
from pgconcert.errors import StatementFailed
from pgconcert.events import EventStream
from pgconcert.postgres.owner import Found, Owner
from pgconcert.postgres.verbs import VERBS

LOOK: Final = "look"
"""The question who agrees: no verb, because it is not asked for several owners at once."""


AND_THEN: Final = {"mark": "retry", "mark_at_gate": "try", "mark_shared": "try_shared", "mark_to_join": "join"}
"""The verbs that mark, and what they do then."""


class Answer:
    """A waiter that may be settled once. ``check`` is called at the instant of a good answer."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self.told: list[object] = []
        self._check = check

    def done(self) -> bool:
        return bool(self.told)

    def set_result(self, result: bool, /) -> None:
        self.told.append(result)
        self._check()

    def set_exception(self, exception: Exception, /) -> None:
        self.told.append(exception)


class Timer:
    """A call that comes when the machine says so."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.over = False

    def cancel(self) -> None:
        self.over = True


class Served(ABC):
    """What the server knows of one key or semaphore."""

    @abstractmethod
    def execute(self, verb: str, parameters: Sequence[bytes | None]) -> str:
        """Do what a statement does."""

    @abstractmethod
    def execute_partly(self, verb: str, parameters: Sequence[bytes | None]) -> None:
        """Do what it does before it fails somewhere in the middle."""

    @abstractmethod
    def found(self) -> Found:
        """What is ours."""

    @abstractmethod
    def forget_us(self) -> None:
        """Our session has ended."""

    @abstractmethod
    def others_leave(self) -> None:
        """All other sessions have ended."""


@dataclass
class ServerKey(Served):
    """A lock. ``exclusive``, ``shared``, ``marks`` and ``gates`` are counts of our session."""

    exclusive: int = 0
    shared: int = 0
    marks: int = 0
    gates: int = 0
    writer: bool = False
    """Another session has it exclusively."""
    readers: int = 0
    """So many other sessions have it shared."""
    other_mark: bool = False
    other_gate: bool = False
    passing: bool = False
    """A reader of another session passes the gate at this instant: nobody can close it."""
    looking: bool = False
    """Another session that releases looks at the mark at this instant: nobody can mark."""

    def execute(self, verb: str, parameters: Sequence[bytes | None] = ()) -> str:
        if verb in AND_THEN:
            if self.looking:
                return "b"
            self._mark()
            # the second answer of this one is a letter of its own
            answer = self.execute(AND_THEN[verb])
            return "g" if verb == "mark_to_join" and answer == "f" else answer
        if verb == "try":
            return self._letter(self._take())
        if verb == "retry":
            return "t" if self._take() else "f" if self.writer else "r" if self._close() else "g"
        if verb == "try_shared":
            return "g" if self.other_gate else self._letter(self._share())
        if verb == "join":
            assert self.shared, "joins nobody"
            return self._letter(not self.other_gate)
        if verb == "close":
            return self._letter(self._close())
        if verb == "unmark":
            assert self.marks, "unmarked what was not marked"
            self.marks -= 1
            return "t"
        counter = {"unlock": "exclusive", "unlock_shared": "shared", "open": "gates"}[verb]
        count = getattr(self, counter)
        if not count:
            return "n"
        setattr(self, counter, count - 1)
        return "w" if self.other_mark or self.looking else "q"

    def execute_partly(self, verb: str, parameters: Sequence[bytes | None] = ()) -> None:
        if verb in AND_THEN and not self.looking:
            self._mark()

    def found(self) -> Found:
        return Found(exclusive=self.exclusive > 0, shared=self.shared > 0, marked=self.marks > 0, gate=self.gates > 0)

    def forget_us(self) -> None:
        self.exclusive = self.shared = self.marks = self.gates = 0

    def others_leave(self) -> None:
        self.writer = self.other_mark = self.other_gate = self.passing = self.looking = False
        self.readers = 0

    def _mark(self) -> None:
        assert not self.marks, "marked twice"
        self.marks += 1

    def _take(self) -> bool:
        assert not self.exclusive, "locked twice"
        assert not self.shared, "the server would turn our own shared lock into both"
        granted = not self.writer and not self.readers
        self.exclusive += granted
        return granted

    def _share(self) -> bool:
        assert not self.shared, "locked twice"
        assert not self.exclusive, "the server would grant it shared to the one who has it exclusively"
        self.shared += not self.writer
        return not self.writer

    def _close(self) -> bool:
        granted = not self.other_gate and not self.passing
        assert not (granted and self.gates), "the gate is closed twice"
        self.gates += granted
        return granted

    @staticmethod
    def _letter(granted: bool) -> str:
        return "t" if granted else "f"


@dataclass
class Request:
    """A statement: asked, then on its way (with ``parameters``), then executed (with ``answer``) or failed."""

    owner: Owner
    verb: str
    parameters: Sequence[bytes | None] | None = None
    answer: str | None = None
    failure: StatementFailed | None = None
    tell: Callable[[Sequence[tuple[str, int]]], None] | None = None


def _with_a_reader(events: EventStream) -> EventStream:
    """Owners tell what they were granted only when somebody listens."""
    events.subscribe(lambda event: None)
    return events


@dataclass
class Shard:
    """The part of a shard and its locker that an owner sees."""

    server: dict[int, Any]
    owners: dict[int, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    watched: dict[Owner, None] = field(default_factory=dict)
    timers: list[Timer] = field(default_factory=list)
    grants: list[Claim] = field(default_factory=list)
    lost: list[Claim] = field(default_factory=list)
    strange: list[int] = field(default_factory=list)
    events: EventStream = field(default_factory=lambda: _with_a_reader(EventStream()))
    up: bool = False
    heard: bool = False

    def __post_init__(self) -> None:
        self.ask = {verb: partial(self.send, verb) for verb in VERBS}
        self.counts = self.events.tally.locks

    def send(self, verb: str, owner: Owner) -> None:
        assert self.up
        assert owner.busy
        assert self.owners.get(owner.value) is owner, f"{verb} by an owner that has retired"
        assert all(known.owner is not owner for known in self.requests), "two statements of one key under way"
        if verb.startswith("mark"):
            assert owner in self.watched
        self.sent.append(verb)
        self.requests.append(Request(owner, verb))

    def look_who_agrees(self, owner: Owner, tell: Callable[[Sequence[tuple[str, int]]], None]) -> None:
        self.send(LOOK, owner)
        self.requests[-1].tell = tell

    def can_mark(self, owner: Owner) -> bool:
        self.watched[owner] = None
        owner.watching = True
        return self.heard

    def watch(self, owner: Owner) -> None:
        self.watched[owner] = None

    def unwatch(self, owner: Owner) -> None:
        self.watched.pop(owner, None)
        owner.watching = False

    def retire(self, owner: Owner) -> None:
        if self.owners.get(owner.value) is not owner:
            return
        assert self.server[owner.value].found() == Found(), "retired with something left on the server"
        assert all(request.owner is not owner for request in self.requests), "retired with a statement under way"
        assert not any(timer.call == owner.rested for timer in self.running()), "retired while it rests"
        del self.owners[owner.value]
        self.unwatch(owner)

    def running(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.over]

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        self.timers.append(timer)
        return timer

    def wake_others(self, owner: Owner) -> None:
        if owner.rest is not None:
            owner.rest.cancel()
        owner.rest = self.later(0, owner.rested)

    def released(self, owner: Owner, wanted: bool) -> None:
        """Only told."""

    def not_ours(self, owner: Owner) -> None:
        self.strange.append(owner.value)

    def granted(self, claim: Claim) -> None:
        assert claim not in self.grants, "granted twice"
        self.grants.append(claim)

    def hold_lost(self, claim: Claim) -> None:
        self.lost.append(claim)
