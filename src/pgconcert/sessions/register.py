"""What the primitives on top of sessions share: the way to wait, the engine, the names of this namespace."""

from __future__ import annotations

import json
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..backend import Locker
from ..clock import Clock
from ..errors import ConfigurationError, KeyInvalid, given
from ..events import EventStream
from ..keys import MAX_TEXT_BYTES, KeySpace
from ..messenger import Answer
from ..store import Kind, Request, Subject

__all__ = ["MAX_MEMBER_BYTES", "SessionPort", "SessionRegister", "as_json", "from_json", "subject_of"]

R = TypeVar("R")
T = TypeVar("T")

MAX_MEMBER_BYTES = 200
"""The longest id of a member, in encoded bytes."""


class SessionPort(Locker, Protocol):
    """The engine of sessions, on its own loop, or as another loop sees it."""

    @property
    def identity(self) -> str:
        """Who we are: a uuid and the host."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock by which sessions are kept."""
        ...

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Ask the store. What changes something for others wakes those who watch it."""
        ...

    def watch(self, subject: Subject, told: Any) -> object:
        """Call ``told()`` whenever something about a subject may have changed. Returns what ``unwatch`` takes."""
        ...

    def unwatch(self, handle: object) -> None:
        """Call it no more."""
        ...


class SessionRegister(NamedTuple, Generic[R]):
    """``R`` is the register of the world that it is for: what ``acquiring`` or ``blocking.acquiring`` has."""

    register: R
    sessions: SessionPort
    keys: KeySpace
    events: EventStream


def subject_of(kind: Kind, keys: KeySpace, name: object, member: object = "") -> Subject:
    """Check names. Raises ``KeyInvalid``."""
    checked = _text(name, f"the name of {_NOUN[kind]}", MAX_TEXT_BYTES)
    of = "" if member == "" and kind != "member" else _text(member, "the id of a member", MAX_MEMBER_BYTES)
    return Subject(kind, keys.namespace, checked, of)


_NOUN: dict[Kind, str] = {
    "job": "a job lock",
    "election": "an election",
    "group": "a group",
    "member": "a group",
    "runner": "a runner",
    "queue": "a queue",
}


def _text(text: object, what: str, most: int) -> str:
    if not isinstance(text, str):
        raise KeyInvalid(f"{what} is a text, not {type(text).__name__}: {given(text)}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as bad:
        raise KeyInvalid(
            f"{what}, {text!r:.60}, has a lone surrogate at position {bad.start}; it is not text"
        ) from None
    if not 0 < size <= most or "\0" in text:
        raise KeyInvalid(f"{what} has 1 to {most} encoded bytes without NUL, and {text!r:.60} has {size}")
    return str.__str__(text)


def as_json(value: object, what: str) -> str | None:
    """What a caller gave, as the store keeps it; ``None`` stays ``None``. Raises ``ConfigurationError``."""
    if value is None:
        return None
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ConfigurationError(f"{what} is nested too deep to have a JSON form") from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{what} must have a JSON form, and {given(value)} has none: {error}") from error
    if len(text) > _MOST_JSON:
        raise ConfigurationError(f"{what} has a JSON form of {len(text):,} bytes; at most {_MOST_JSON:,} are allowed")
    return text


_MOST_JSON = 65_536


def from_json(text: str | None) -> Any:
    """What a caller gave. What others have written by hand and is no JSON comes as the text that it is."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
