"""What became of sessions and entries, written down by the server, and what follows from it.

Here live the triggers that write, the reader and the judge. Now and then a trigger also sleeps, for about as long as a
session lives: then what a statement has decided is not committed yet, and its rows stay locked.

Theory: a trigger writes every version of every row of sessions and entries, in the transaction that made it. Versions
of one row come one after the other, because each is made under the lock of the row, so their numbers (``seq``) tell
their order exactly. Nothing here depends on when something was committed or seen; times are those that stand in the
rows, all by the server's clock.

What a version says is judged against the versions before it:

* a session that has ended stays as it is; one that was over when the statement began is not renewed;
* whoever takes from a session that has not given back has ended it, in the same transaction or before; and who is ended
  so had expired. Hence no two unexpired holders;
* a living session loses what it has only by a revocation, which raises its revision in the same transaction;
* nothing is taken for a session that was over when the statement began;
* tokens of one entry grow, also when its row was deleted in between.

Clients add their *beliefs*: from when until when they trusted, by the clock of this machine, which is the server's too.
While somebody trusts, nobody else takes; unless it was revoked, which the next heartbeat tells.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import psycopg

__all__ = ["TRIGGERS", "Belief", "EntryRow", "SessionRow", "Told", "Verdict", "Version", "judge", "told", "versions"]

TRIGGERS: Final = """
    create table pgconcert.audit (
        seq bigserial primary key, xid xid8 not null default pg_current_xact_id(),
        began timestamptz not null default statement_timestamp(), at timestamptz not null default clock_timestamp(),
        relation text not null, old jsonb, new jsonb);
    create function pgconcert.audit() returns trigger language plpgsql as $$ begin
        insert into pgconcert.audit (relation, old, new)
        values (tg_table_name, case when tg_op <> 'INSERT' then to_jsonb(old) end,
                               case when tg_op <> 'DELETE' then to_jsonb(new) end);
        if random() < 0.1 then
            perform pg_sleep(random() * 0.1);
        end if;
        return null;
    end $$;
    create trigger audit after insert or update or delete on pgconcert.session
        for each row execute function pgconcert.audit();
    create trigger audit after insert or update or delete on pgconcert.entry
        for each row execute function pgconcert.audit();
"""
"""Run them in a database that has our tables."""
_ROW: Final = """
    case when {0} is null then null when relation = 'session' then
        jsonb_build_array(({0}->>'id')::int8, extract(epoch from ({0}->>'expires')::timestamptz),
                          extract(epoch from ({0}->>'ended')::timestamptz), ({0}->>'revision')::int8)
    else jsonb_build_array(concat_ws(' ', {0}->>'kind', {0}->>'name', {0}->>'member'), ({0}->>'session_id')::int8,
                           ({0}->>'token')::int8, ({0}->>'given')::bool) end
"""
_READ: Final = f"""
    select seq, xid::text::int8, extract(epoch from began)::float8, extract(epoch from at)::float8, relation,
           {_ROW.format("old")}, {_ROW.format("new")}
      from pgconcert.audit order by seq
"""


class SessionRow(NamedTuple):
    """Seconds since 1970."""

    id: int
    expires: float
    ended: float | None
    revision: int


class EntryRow(NamedTuple):
    subject: str
    session: int | None
    token: int
    given: bool


class Version(NamedTuple):
    """``began``: when the statement arrived. ``at``: when the trigger wrote this, after the change."""

    seq: int
    xid: int
    began: float
    at: float
    old: SessionRow | EntryRow | None
    new: SessionRow | EntryRow | None


class Belief(NamedTuple):
    """A client trusted to have it ``since`` the answer came ``until`` it gave up, at its deadline at the latest.
    ``confirmed``: when it sent the last heartbeat whose answer gave no reason to doubt."""

    subject: str
    session: int
    token: int
    since: float
    until: float
    confirmed: float


class Told(NamedTuple):
    """What clients say. ``revoked``: when those who revoked had their answers, by subject, in order."""

    beliefs: Sequence[Belief] = ()
    revoked: Mapping[str, Sequence[float]] = MappingProxyType({})


NOBODY: Final = Told()


def versions(url: str) -> list[Version]:
    """The history, in order."""

    def row(kind: str, values: list[Any] | None) -> SessionRow | EntryRow | None:
        return None if values is None else SessionRow(*values) if kind == "session" else EntryRow(*values)

    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(_READ.encode()).fetchall()
    return [
        Version(seq, xid, began, at, row(kind, old), row(kind, new)) for seq, xid, began, at, kind, old, new in found
    ]


def told(folder: Path) -> Told:
    """What all clients have written."""
    found: list[Belief] = []
    revoked: dict[str, list[float]] = defaultdict(list)
    for path in folder.glob("*.json"):
        written = json.loads(path.read_text())
        found += [Belief(*one) for one in written["beliefs"]]
        for subject, at in written["revoked"]:
            revoked[subject].append(at)
    return Told(found, {subject: sorted(times) for subject, times in revoked.items()})


@dataclass(slots=True)
class Verdict:
    """``wrong`` must be empty; ``counts`` show that the run was worth something."""

    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Ending(NamedTuple):
    """By which version and transaction a session was ended, and whether its time was over."""

    seq: int
    xid: int
    expired: bool


def judge(history: Sequence[Version], clients: Told = NOBODY) -> Verdict:
    """Read a finished history."""
    verdict = Verdict()
    # a transaction writes its versions of sessions and entries in any order, so all sessions come first
    endings: dict[int, Ending] = {}
    revisions: set[tuple[int, int]] = set()
    for one in history:
        if isinstance(one.new or one.old, SessionRow):
            _session(one, endings, revisions, verdict)
    tokens: dict[str, int] = defaultdict(int)
    changes: dict[str, list[Version]] = defaultdict(list)
    lives = _lives(history)
    for one in history:
        row = one.new or one.old
        if isinstance(row, EntryRow):
            changes[row.subject].append(one)
            _entry(one, endings, revisions, lives, tokens, verdict)
    for belief in clients.beliefs:
        _belief(belief, changes[belief.subject], revisions, clients.revoked.get(belief.subject, ()), verdict)
    return verdict


def _session(
    one: Version,
    endings: dict[int, Ending],
    revisions: set[tuple[int, int]],
    verdict: Verdict,
) -> None:
    old, new = one.old, one.new
    assert not isinstance(old, EntryRow)
    assert not isinstance(new, EntryRow)
    if new is None:
        assert old
        if old.ended is None:
            verdict.wrong.append(f"a session was deleted that had not ended: {one}")
        verdict.counts["purged"] += 1
        return
    if old is None:
        verdict.counts["started"] += 1
        return
    if old.ended is not None:
        verdict.wrong.append(f"a session changed after its end: {one}")
    elif new.ended is not None:
        endings[new.id] = Ending(one.seq, one.xid, new.ended >= old.expires)
        verdict.counts["ended"] += 1
    if new.revision > old.revision:
        revisions.add((new.id, one.xid))
    if new.expires != old.expires:
        verdict.counts["renewed"] += 1
        verdict.counts["renewed late"] += old.expires <= one.at
        if old.expires <= one.began:
            verdict.wrong.append(f"a session was renewed that was over when the statement began: {one}")


def _lives(history: Sequence[Version]) -> dict[int, list[tuple[int, float]]]:
    """Of each session, the versions with the time at which it expires."""
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for one in history:
        if isinstance(one.new, SessionRow):
            found[one.new.id].append((one.seq, one.new.expires))
    return found


def _entry(
    one: Version,
    endings: dict[int, Ending],
    revisions: set[tuple[int, int]],
    lives: dict[int, list[tuple[int, float]]],
    tokens: dict[str, int],
    verdict: Verdict,
) -> None:
    old, new = one.old, one.new
    assert not isinstance(old, SessionRow)
    assert not isinstance(new, SessionRow)
    before = old.session if old else None
    after = new.session if new else None
    took = new is not None and after is not None and (old is None or new.token != old.token or before != after)
    if new and took:
        if new.token <= tokens[new.subject]:
            verdict.wrong.append(f"a token does not grow: {one}")
        tokens[new.subject] = max(tokens[new.subject], new.token)
        verdict.counts["taken"] += 1
        assert after is not None
        if not any(seq < one.seq and expires > one.began for seq, expires in lives[after]):
            verdict.wrong.append(f"taken for a session that was over when the statement began: {one}")
    if before is None or before == after:
        return
    ended = endings.get(before)
    if ended is not None and (ended.seq < one.seq or ended.xid == one.xid):
        verdict.counts["taken over"] += took
        if took and ended.xid == one.xid and not ended.expired:
            verdict.wrong.append(f"taken from a session that was ended before its time: {one}")
    elif took:
        verdict.wrong.append(f"taken from a session that had not ended: {one}")
    elif new and new.given:
        verdict.counts["given"] += 1
    elif (before, one.xid) in revisions:
        verdict.counts["revoked"] += 1
    else:
        verdict.wrong.append(f"taken away from a session that had not ended, and was not told: {one}")


def _belief(
    belief: Belief,
    changes: Sequence[Version],
    revisions: set[tuple[int, int]],
    revoked: Sequence[float],
    verdict: Verdict,
) -> None:
    """Nobody else takes while somebody trusts; a revocation is known to whoever sent a heartbeat after it."""
    verdict.counts["trusted"] += 1
    for one in changes:
        old, new = one.old, one.new
        assert not isinstance(new, SessionRow)
        if not isinstance(old, EntryRow) or (old.session, old.token) != (belief.session, belief.token):
            continue
        if new and new.session == belief.session:
            continue
        if (belief.session, one.xid) in revisions:
            # it was committed when somebody had the answer; if that was lost, a later one must do
            committed = next((at for at in revoked if at > one.at), belief.confirmed)
            if belief.confirmed > committed:
                verdict.wrong.append(f"trusts after a heartbeat that tells of the revocation: {belief}, {one}")
        elif one.at < belief.until:
            verdict.wrong.append(f"taken {belief.until - one.at:.4f} s before the trust was over: {belief}, {one}")
