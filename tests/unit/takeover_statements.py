"""The statements of the take-over protocol, as a server at read committed carries them out: for ``takeover_world.py``.

Here live the rows, ``Rules`` (each field is a way to be wrong) and one generator per statement. A statement yields what
it does to the world that all share, one *act* at a time, and is sent what it has seen. Between two acts anything may
happen: others' acts, others' commits, time.

What PostgreSQL does, and this says after it: a statement sees the rows as they were committed when it began
(``Snapshot``). It looks at conditions there. To lock a row (``Lock``) it goes to the newest version; if that is another
than the one of the snapshot, the condition is looked at again, with the clock read anew; if it is the same, it is not.
What a statement writes is seen by others when it is committed (``Commit``), and the row stays locked until then.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, Literal, NamedTuple

TTL: Final = 2
"""How long a session lives, in ticks of the clock."""


class Session(NamedTuple):
    """A row of a session. It is alive while it is not ended and ``expires`` is ahead."""

    expires: int
    ended: bool = False
    revision: int = 0


class Entry(NamedTuple):
    """A row of an entry: the session on which it hangs."""

    session: int | None
    token: int


class Rules(NamedTuple):
    """How it is done. Every default is right, and everything else is wrong."""

    take_ends: bool = True
    """A take-over ends the session that it takes from (or "looks expired" is free)."""
    locks_session: bool = True
    """It does so under the lock of its row (or at once, and the last to commit wins)."""
    looks_again: bool = True
    """A condition is looked at again in the newest version."""
    missing: Literal["same snapshot", "free", "taken"] = "same snapshot"
    """What an entry is whose session is not there."""
    takes_again: bool = True
    """What a session has already, it may take again."""
    own_alive: bool = True
    """A take needs a session that is alive."""
    renews_expired: bool = False
    renews_ended: bool = False
    ordered: bool = True
    """Several rows are locked, or put in, in the order of their keys."""
    inserts_first: bool = True
    """What is new is put in before what is there is changed."""
    skips: bool = True
    """What is locked is skipped (or waited for)."""
    token_kept: bool = True
    """The count of the token outlives its row."""
    token_grows: bool = True
    revokes_loudly: bool = True
    """A revocation raises the revision of the session."""
    revokes_unseen: bool = False
    """It also takes from a session that its snapshot does not see, and so cannot raise."""
    purge_looks_again: bool = True
    guard_locks: bool = True
    gives_by_session: bool = True
    """Only what hangs on the session is given back (or whatever has the name)."""
    trusts_from_send: bool = True
    """Trust begins when a heartbeat is sent (or when it is answered)."""
    marks_first: bool = True
    """A mark counts when it was there before the try (or when it is left by it)."""
    gives_first: bool = True
    """Who gives looks at the marks after the entry is free (or before)."""


RIGHT: Final = Rules()


class Snapshot(NamedTuple):
    """See what is committed now: ``Seen``."""


class Seen(NamedTuple):
    sessions: tuple[Session | None, ...]
    entries: tuple[Entry | None, ...]
    marks: frozenset[tuple[int, int]]


class Passed(NamedTuple):
    """Look at the server's clock: is this time over? (The answer and not the time is seen: that makes fewer states.)"""

    time: int


class Clock(NamedTuple):
    """Read the server's clock."""


class Lock(NamedTuple):
    """Lock a row. Seen: its newest version; ``None`` if it is gone, or locked by another and ``skip``."""

    table: Literal["session", "entry"]
    key: int
    skip: bool = True
    shared: bool = False


class Write(NamedTuple):
    """Change an entry that is locked, some time before the end: inserts of it wait from now on."""

    key: int


class Insert(NamedTuple):
    """Put in an entry of which there is none: waits for whoever is putting it in, or changes it.

    Seen: the count from which its token goes on, or ``None`` if it is there."""

    key: int


class Work(NamedTuple):
    """Something else, for any time."""


class Commit(NamedTuple):
    """The end: what is written, and what is answered."""

    answer: Any
    entries: tuple[tuple[int, Entry | None], ...] = ()
    sessions: tuple[tuple[int, Session | None], ...] = ()
    marked: tuple[tuple[int, int], ...] = ()
    unmarked: tuple[tuple[int, int], ...] = ()


Act = Snapshot | Passed | Clock | Lock | Write | Insert | Work | Commit
Statement = Generator[Act, Any, None]
Op = tuple[Any, ...]
"""A statement by its name, and its parameters."""
Wish = tuple[int, int]
"""An entry, and the session for which it is wanted."""


def start(rules: Rules, session: int) -> Statement:
    yield Snapshot()
    now = yield Clock()
    yield Commit(0, sessions=((session, Session(now + TTL)),))


def renew(rules: Rules, sessions: tuple[int, ...]) -> Statement:
    """The answer: of each session its revision, ``None`` if it is over, or nothing if it was locked."""
    seen: Seen = yield Snapshot()
    found: dict[int, Session | None] = {}
    for number in sorted(sessions) if rules.ordered else sessions:
        old = seen.sessions[number]
        if old is None or not _renewable(rules, old, (yield Passed(old.expires))):
            found[number] = None
            continue
        row: Session | None = yield Lock("session", number, rules.skips)
        if row is None:
            continue
        if row != old and rules.looks_again and not _renewable(rules, row, (yield Passed(row.expires))):
            row = None
        found[number] = row
    now = (yield Clock()) if any(found.values()) else 0
    written = tuple(
        (number, row._replace(expires=now + TTL, ended=row.ended and not rules.renews_ended))
        for number, row in found.items()
        if row
    )
    yield Commit(tuple((n, row and row.revision) for n, row in found.items()), sessions=written)


def _renewable(rules: Rules, row: Session, passed: bool) -> bool:
    return (not row.ended or rules.renews_ended) and (not passed or rules.renews_expired)


def end(rules: Rules, session: int) -> Statement:
    seen: Seen = yield Snapshot()
    old = seen.sessions[session]
    row = (yield Lock("session", session)) if old and not old.ended else None
    yield Commit(0, sessions=((session, row._replace(ended=True)),) if row and not row.ended else ())


def take(rules: Rules, wishes: tuple[Wish, ...], mark: bool) -> Statement:
    """The answer, of each wish: the token, or ``over``, or ``again`` (somebody was at it this instant), or ``marked``
    (it is refused, and our mark was there before), or ``refused``."""
    seen: Seen = yield Snapshot()
    answers: dict[Wish, int | str] = {}
    mine: dict[int, int] = {}
    for entry, session in sorted(wishes) if rules.ordered else wishes:
        me = seen.sessions[session]
        if me is not None and (not (me.ended or (yield Passed(me.expires))) or not rules.own_alive):
            mine[entry] = session
        else:
            answers[entry, session] = "over"
    rows: dict[int, Entry] = {}
    held: set[int] = set()
    for entry, session in mine.items():
        seen_row = seen.entries[entry]
        holder = None if seen_row is None or seen_row.session is None else seen.sessions[seen_row.session]
        own = seen_row is not None and seen_row.session == session
        if holder and not (own and rules.takes_again) and not (holder.ended or (yield Passed(holder.expires))):
            held.add(entry)
        elif seen_row is not None and (row := (yield Lock("entry", entry, rules.skips))):
            rows[entry] = row
    dead: dict[int, Session] = {}
    for number in sorted({row.session for entry, row in rows.items() if row.session not in (None, mine[entry])}):
        old = seen.sessions[number]
        if old is None or old.ended or not (yield Passed(old.expires)):
            continue
        newest = (yield Lock("session", number, rules.skips)) if rules.take_ends and rules.locks_session else old
        if newest is None:
            continue
        again = newest != old and rules.looks_again
        if again and (newest.ended or not (yield Passed(newest.expires))):
            continue
        dead[number] = newest
    new: dict[int, Entry] = {}
    for turn in ("insert", "change") if rules.inserts_first else ("change", "insert"):
        for entry, session in mine.items():
            old_entry = seen.entries[entry]
            if turn == "insert" and old_entry is None and (count := (yield Insert(entry))) is not None:
                new[entry] = Entry(session, (count if rules.token_kept else 0) + 1)
            elif turn == "change" and entry in rows and _free(rules, rows[entry], old_entry, session, seen, dead):
                new[entry] = Entry(session, rows[entry].token + rules.token_grows)
                if not rules.inserts_first:
                    yield Write(entry)
    marked: list[Wish] = []
    for wish in mine.items():
        entry = wish[0]
        if entry in new:
            answers[wish] = new[entry].token
        elif entry not in held:  # somebody was at it this instant
            answers[wish] = "again"
        else:
            answers[wish] = "marked" if mark and (wish in seen.marks or not rules.marks_first) else "refused"
            marked += [wish] if mark else []
    ends = tuple((number, row._replace(ended=True)) for number, row in dead.items()) if rules.take_ends else ()
    won = tuple(wish for wish in mine.items() if wish[0] in new)
    yield Commit(tuple(answers.items()), tuple(new.items()), ends, tuple(marked), won)


def _free(rules: Rules, row: Entry, old: Entry | None, session: int, seen: Seen, dead: dict[int, Session]) -> bool:
    """Rule 2 of ``pgconcert.store``: ``row`` is locked, ``old`` is its version in the snapshot."""
    if row.session is None or row.session in dead or (row.session == session and rules.takes_again):
        return True
    holder = seen.sessions[row.session]
    if holder is not None:
        return holder.ended
    if rules.missing == "same snapshot":
        return old is not None and old.session == row.session
    return rules.missing == "free"


def give(rules: Rules, wish: Wish) -> Statement:
    """The answer: ``again`` if it was locked; else whether others wait, or ``None`` if that is to be asked for."""
    entry, session = wish
    seen: Seen = yield Snapshot()
    old = seen.entries[entry]
    waited = None if rules.gives_first else any(marked == entry for marked, _ in seen.marks)
    if old is None or (old.session != session and rules.gives_by_session):
        yield Commit(waited)
        return
    row: Entry | None = yield Lock("entry", entry)
    if row is None:
        yield Commit("again")
    elif row.session == session or not rules.gives_by_session:
        yield Commit(waited, ((entry, row._replace(session=None)),))
    else:
        yield Commit(waited)


def look(rules: Rules, entry: int) -> Statement:
    """The second statement of a give: does anybody wait?"""
    seen: Seen = yield Snapshot()
    yield Commit(any(marked == entry for marked, _ in seen.marks))


def own(rules: Rules, session: int) -> Statement:
    """What hangs on the session."""
    seen: Seen = yield Snapshot()
    yield Commit(tuple((e, row.token) for e, row in enumerate(seen.entries) if row and row.session == session))


def revoke(rules: Rules, entry: int) -> Statement:
    """The answer: the session from which it was taken, ``None``, or ``again``."""
    seen: Seen = yield Snapshot()
    old = seen.entries[entry]
    if old is None or old.session is None:
        yield Commit(None)
        return
    row: Entry | None = yield Lock("entry", entry)
    if row is None or row.session is None:
        yield Commit("again" if row is None else None)
        return
    free = (entry, row._replace(session=None))
    unseen = seen.sessions[row.session] is None
    holder: Session | None = None if unseen else (yield Lock("session", row.session))
    if holder is not None:
        raised = holder._replace(revision=holder.revision + 1) if rules.revokes_loudly else holder
        yield Commit(row.session, (free,), ((row.session, raised),))
    elif unseen and rules.revokes_unseen:
        yield Commit(row.session, (free,))
    else:
        yield Commit("again")


def guard(rules: Rules, wish: Wish, token: int) -> Statement:
    """The guard of a transaction, and its commit. The answer: whether it was let through."""
    entry, session = wish
    seen: Seen = yield Snapshot()
    row = seen.entries[entry]
    owner = seen.sessions[session]
    passed = row == Entry(session, token) and owner is not None and not (owner.ended or (yield Passed(owner.expires)))
    if passed and rules.guard_locks:
        passed = (yield Lock("entry", entry, shared=True)) == row
    yield Work()
    yield Commit(passed)


def purge(rules: Rules, forgets: bool) -> Statement:
    """What is over is ended, what hangs on it is cleared (deleted, if ``forgets``), and what nobody needs is deleted.

    Sessions that have ended go at once, where the real purge waits for minutes.
    """
    seen: Seen = yield Snapshot()
    entries: list[tuple[int, Entry | None]] = []
    sessions: list[tuple[int, Session | None]] = []
    for key, old in enumerate(seen.entries):
        if old and old.session is not None and (holder := seen.sessions[old.session]) and holder.ended:
            row = yield Lock("entry", key)
            if row and (row.session == old.session or not rules.purge_looks_again):
                entries.append((key, None if forgets else Entry(None, row.token)))
    referred = {row.session for row in seen.entries if row}
    for number, session in enumerate(seen.sessions):
        if session is None or (session.ended and number in referred):
            continue
        if session.ended or (yield Passed(session.expires)):
            newest: Session | None = yield Lock("session", number)
            if newest is None:
                continue
            again = newest != session and rules.purge_looks_again
            if not again or (not newest.ended and (yield Passed(newest.expires))):
                sessions.append((number, None if session.ended else newest._replace(ended=True)))
    yield Commit(0, tuple(entries), tuple(sessions))


STATEMENTS: Final = {one.__name__: one for one in (start, renew, end, take, give, look, own, revoke, guard, purge)}
