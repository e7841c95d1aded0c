"""How requests about sessions become the parameters of their statements. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar, cast

from ..store import Give, Renew, StartSession, Subject, Take, Terms, Update
from .desk import Request
from .storestatements import array, element

__all__ = [
    "any_number",
    "apart",
    "at_holder",
    "claim_asked",
    "claims",
    "first",
    "gives",
    "integers",
    "names",
    "renewals_asked",
    "session_asked",
    "sessions",
    "starts",
    "subject_asked",
    "takes",
    "terms",
    "texts",
    "updates",
]

R = TypeVar("R")
Batch = Sequence[Request[R]]

_MOST: Final = 500

# arrays


def texts(values: Sequence[str | None]) -> bytes:
    """An array of texts. What has no form on the wire becomes a question mark, because nothing may raise here."""
    return array([b"NULL" if value is None else element(value.encode(errors="replace")) for value in values])


def integers(values: Sequence[int | None]) -> bytes:
    """An array of whole numbers."""
    return array([b"NULL" if value is None else b"%d" % value for value in values])


def floats(values: Sequence[float]) -> bytes:
    """An array of numbers."""
    return array([repr(float(value)).encode() for value in values])


def booleans(values: Sequence[bool]) -> bytes:
    """An array of truth values."""
    return array([b"t" if value else b"f" for value in values])


def subjects(wanted: Sequence[Subject]) -> tuple[bytes, bytes, bytes, bytes]:
    """Four arrays, one for each part of a subject."""
    kinds, namespaces, names, members = zip(*wanted, strict=True)
    return texts(kinds), texts(namespaces), texts(names), texts(members)


def apart(of: Callable[[R], Hashable], most: int = _MOST) -> Callable[[Sequence[Request[R]]], int]:
    """How many requests may leave together, when no two in one statement may be about the same thing."""

    def fit(queue: Sequence[Request[R]]) -> int:
        met: set[Hashable] = set()
        for place, request in enumerate(queue[:most]):
            what = of(request.what)
            if what in met:
                return place
            met.add(what)
        return min(len(queue), most)

    return fit


# parameters


def any_number(queue: Sequence[Request[Any]]) -> int:
    """Up to as many as one statement may carry."""
    return min(len(queue), _MOST)


def first(what: tuple[Subject, int | None]) -> Subject:
    """The subject, of a subject with its token."""
    return what[0]


def subject_asked(what: Any) -> Subject:
    """What a request is about."""
    return cast(Subject, what.subject)


def session_asked(what: Any) -> int:
    """The session of a request."""
    return cast(int, what.session)


def claim_asked(what: Any) -> tuple[Subject, int]:
    """What a request is about, and for which session."""
    return what.subject, what.session


def names(batch: Sequence[Request[Any]]) -> tuple[bytes, ...]:
    """The four arrays of subjects."""
    return subjects([request.what.subject for request in batch])


def sessions(batch: Sequence[Request[Any]]) -> tuple[bytes, ...]:
    """One array of sessions."""
    return (integers([request.what.session for request in batch]),)


def claims(batch: Sequence[Request[Any]]) -> tuple[bytes, ...]:
    """Subjects and sessions."""
    return (*names(batch), *sessions(batch))


def at_holder(batch: Sequence[Request[tuple[Subject, int | None]]]) -> tuple[bytes, ...]:
    """Subjects, and the tokens with which they must be held."""
    return (*subjects([request.what[0] for request in batch]), integers([request.what[1] for request in batch]))


def starts(batch: Batch[StartSession]) -> tuple[bytes, ...]:
    """For starts of sessions."""
    wanted = [request.what for request in batch]
    return (
        texts([start.uuid for start in wanted]),
        floats([start.ttl for start in wanted]),
        texts([start.host for start in wanted]),
        integers([start.pid for start in wanted]),
        texts([start.application for start in wanted]),
        texts([start.data for start in wanted]),
    )


def renewals_asked(batch: Batch[Renew]) -> tuple[bytes, ...]:
    """For renewals. Sessions that several ask for stand there once, in the order of their numbers."""
    return (integers(sorted({session for request in batch for session in request.what.sessions})),)


def takes(batch: Batch[Take]) -> tuple[bytes, ...]:
    """For takes."""
    wanted = [request.what for request in batch]
    return (
        *claims(batch),
        booleans([take.mark for take in wanted]),
        booleans([take.keep_mark for take in wanted]),
        booleans([take.preferred for take in wanted]),
        floats([take.hold_at_least for take in wanted]),
        texts([take.data for take in wanted]),
    )


def gives(batch: Batch[Give]) -> tuple[bytes, ...]:
    """For releases."""
    wanted = [request.what for request in batch]
    return (*claims(batch), integers([give.token for give in wanted]), texts([give.how for give in wanted]))


def updates(batch: Batch[Update]) -> tuple[bytes, ...]:
    """For updates."""
    wanted = [request.what for request in batch]
    tokens = integers([update.token for update in wanted])
    return (*claims(batch), tokens, texts([update.data for update in wanted]))


def terms(batch: Batch[Terms]) -> tuple[bytes, ...]:
    """For looks at terms."""
    _, namespaces, elections, _ = names(batch)
    return namespaces, elections, integers([request.what.after for request in batch])
