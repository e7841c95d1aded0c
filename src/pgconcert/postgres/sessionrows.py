"""How rows about sessions become the answers to requests. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, get_args

from ..store import Entry, Kind, LookAtSessions, Owned, Refused, SessionInfo, Subject, Taken, Term
from .desk import Request, Row, paired
from .link import Rows

__all__ = [
    "renewals",
    "settle_found",
    "settle_owned",
    "settle_sessions",
    "settle_terms",
    "settle_told",
    "taken_or_refused",
]

_KINDS: Final[dict[str, Kind]] = {kind: kind for kind in get_args(Kind)}


def text(value: bytes | None) -> str:
    """A text; the empty one for none."""
    return (value or b"").decode(errors="replace")


def text_or_none(value: bytes | None) -> str | None:
    """A text, if there is one."""
    return None if value is None else value.decode(errors="replace")


def number(value: bytes | None) -> float | None:
    """A number, if there is one."""
    return None if value is None else float(value)


def session_of(row: Row) -> SessionInfo:
    """From the nine columns of a session."""
    return SessionInfo(
        id=int(row[0] or 0),
        uuid=text(row[1]),
        host=text(row[2]),
        pid=int(row[3] or 0),
        application=text(row[4]),
        data=text_or_none(row[5]),
        ttl=float(row[6] or 0),
        started=float(row[7] or 0),
        expires_in=float(row[8] or 0),
    )


def subject_of(row: Row) -> Subject:
    """From the four columns of a subject."""
    kind, namespace, name, member = (text(value) for value in row)
    return Subject(_KINDS[kind], namespace, name, member)


def taken_or_refused(row: Row) -> Taken | Refused:
    """From the columns of a take behind the first, which says whether the incarnation is known."""
    able, token, since, marked, retry_in = row[:5]
    if token is not None:
        return Taken(token=int(token), since=float(since or 0))
    if able != b"t":
        return Refused(over=True)
    holder = session_of(row[6:15]) if row[6] is not None else None
    return Refused(holder=holder, retry_in=number(retry_in), marked=marked == b"t")


def renewals(rows: Rows) -> dict[int, int | None]:
    """What became of sessions; one that was locked is not in it."""
    return {
        int(session or 0): None if revision is None else int(revision)
        for _, session, revision, alive in rows
        if revision is not None or alive == b"f"
    }


def owned_of(row: Row) -> Owned:
    """From subject, token and whether its release is wanted."""
    return Owned(subject_of(row[:4]), int(row[4] or 0), row[5] == b"t")


def entry_of(row: Row) -> Entry:
    """From the columns of an entry, which end with those of its session."""
    return Entry(
        subject=subject_of(row[:4]),
        session=session_of(row[10:19]) if row[10] is not None else None,
        token=int(row[4] or 0),
        since=number(row[5]),
        data=text_or_none(row[6]),
        given=row[7] == b"t",
        release_requested=row[8] == b"t",
        waiting=int(row[9] or 0),
    )


def term_of(row: Row) -> Term:
    """From the columns of a term: its token, the session, and how it went."""
    return Term(
        token=int(row[0] or 0),
        leader=session_of(row[1:10]),
        data=text_or_none(row[10]),
        since=float(row[11] or 0),
        until=number(row[12]),
        how=text_or_none(row[13]),
    )


def settle_told(batch: Sequence[Request[Any]], rows: Rows) -> None:
    """Rows of one truth value."""
    for request, (told,) in paired(batch, rows, 1):
        request.settle(told == b"t")


def settle_sessions(batch: Sequence[Request[LookAtSessions]], rows: Rows) -> None:
    """Rows of sessions, the same for all who asked."""
    alive = tuple(session_of(row) for row in rows)
    for request in batch:
        request.settle(alive)


def settle_each(batch: Sequence[Request[Any]], rows: Rows, read: Callable[[Row], object]) -> None:
    """Rows that begin with the place of their request, from 1."""
    answers: list[list[object]] = [[] for _ in batch]
    for row in rows:
        answers[int(row[0] or 0) - 1].append(read(row[1:]))
    for request, answer in zip(batch, answers, strict=True):
        request.settle(tuple(answer))


def settle_owned(batch: Sequence[Request[Any]], rows: Rows) -> None:
    """Rows of what hangs on a session."""
    settle_each(batch, rows, owned_of)


def settle_found(batch: Sequence[Request[Any]], rows: Rows) -> None:
    """Rows of entries."""
    settle_each(batch, rows, entry_of)


def settle_terms(batch: Sequence[Request[Any]], rows: Rows) -> None:
    """Rows of terms."""
    settle_each(batch, rows, term_of)
