"""What became of tasks and sessions, written down by the server and by those who did the work, and what follows.

Here live the triggers that write, the readers and the judge. Theory: a trigger writes every version of every row of
tasks and of sessions, in the transaction that made it, with the process that did (the links say it in their
application name). Versions of one row come one after the other, because each is made under the lock of the row, so
their numbers (``seq``) tell their order exactly. Nothing depends on when something was committed or seen.

What a version says is judged against those before it:

* started is a task for a session that was not over when the statement began; where attempts are counted, that is one;
* what belongs to a session leaves it for another only after that session was *ended*, in the same transaction or
  before, and who is ended so had expired; or, if it was only assigned, by a *move*. So no task is ever with two
  sessions that live;
* finished is a task once, from being started, by its session, which was not over when the statement began;
* what is not finished in the end is forgotten.

The processes *say* what they did, line by line, in files that survive their death: which session began a task and until
when it trusted to have it, what it completed (before that is reported), what it was told to be refused. So: whoever
worked had started it; while somebody trusts, nobody takes; whoever finished had completed it; whoever completed and did
not finish was told, or was killed. All clocks are one: that of this machine.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import psycopg

__all__ = [
    "Diary",
    "Over",
    "Said",
    "SessionRow",
    "TaskRow",
    "Verdict",
    "Version",
    "judge",
    "said",
    "triggers",
    "versions",
]

T = TypeVar("T", bound="SessionRow | TaskRow")

Over = Literal["", "done", "dead"]
What = Literal["session", "begun", "done", "left", "refused", "odd", "ended"]

_HISTORY: Final = """
    create table public.history (
        seq bigserial primary key, xid xid8 not null default pg_catalog.pg_current_xact_id(),
        began timestamptz not null default pg_catalog.statement_timestamp(),
        at timestamptz not null default pg_catalog.clock_timestamp(),
        actor int not null default coalesce(cast(substring(
            pg_catalog.current_setting('application_name') from ':([0-9]+) pgconcert') as int), 0),
        relation text not null, old jsonb, new jsonb);
"""
_TRIGGER: Final = """
    create function public.history_of_{relation}() returns trigger language plpgsql as $$ begin
        insert into public.history (relation, old, new) values ('{relation}',
            case when tg_op <> 'INSERT' then pg_catalog.jsonb_build_array({old}) end,
            case when tg_op <> 'DELETE' then pg_catalog.jsonb_build_array({new}) end);
        if pg_catalog.random() < {naps} then
            perform pg_catalog.pg_sleep(pg_catalog.random() * 0.1);
        end if;
        return null;
    end $$;
    create trigger history after insert or update or delete on {table}
        for each row execute function public.history_of_{relation}();
"""
_SESSION: Final = (
    "{r}.id, extract(epoch from {r}.expires), extract(epoch from {r}.ended)",
    "pgconcert.session",
)


def triggers(table: str, row: str, naps: float = 0.0) -> str:
    """SQL that makes a database write its history. ``row``: the values of a ``TaskRow``, over the row ``{r}``.

    ``naps``: how likely the server sleeps for up to 0.1 s after a version, with all that it has locked."""

    def one(relation: str, row: str, table: str) -> str:
        return _TRIGGER.format(
            relation=relation, old=row.format(r="old"), new=row.format(r="new"), table=table, naps=naps
        )

    return _HISTORY + one("session", *_SESSION) + one("task", row, table)


class SessionRow(NamedTuple):
    """Seconds since 1970."""

    id: int
    expires: float
    ended: float | None


class TaskRow(NamedTuple):
    """``session``: below zero where it is only assigned. ``attempt``: ``None`` where nobody counts."""

    id: str
    session: int | None
    over: Over = ""
    attempt: int | None = None


class Version(NamedTuple):
    """``began``: when the statement arrived. ``at``: when the trigger wrote this, after the change. ``actor``: the
    process that did it; 0: not one of ours."""

    seq: int
    xid: int
    began: float
    at: float
    actor: int
    old: SessionRow | TaskRow | None
    new: SessionRow | TaskRow | None


class Said(NamedTuple):
    """A line of a process. *session*: it has that session from now on. *begun*: the work on tasks began. *left*: it was
    over, and the process trusted to have them until ``at``. *done*: they are completed, which will be reported from now
    on. *refused*: it was told that these, which were completed, are not its own; or it does not know. *odd*: what must
    not happen. *ended*: nothing was left to say."""

    what: What
    at: float
    session: int = 0
    tasks: tuple[str, ...] = ()
    process: int = 0


class Diary:
    """Where a process writes what it says. What was written survives its death, and stops with it."""

    def __init__(self, folder: Path, process: int) -> None:
        self._file = Path(folder, f"{process}.said").open("ab", buffering=0)  # noqa: SIM115  it lives with the process

    def write(self, what: What, at: float, session: int = 0, tasks: Iterable[str] = ()) -> None:
        """One line, at once; nothing about no tasks."""
        if (found := [*tasks]) or what in ("session", "ended"):
            self._file.write(json.dumps([what, at, session, found]).encode() + b"\n")


def said(folder: Path) -> list[Said]:
    """What all processes have written, each in its order."""
    found: list[Said] = []
    for path in folder.glob("*.said"):
        for line in path.read_text().splitlines():
            what, at, session, tasks = json.loads(line)
            found.append(Said(what, at, session, tuple(tasks), int(path.stem)))
    return found


def versions(url: str) -> list[Version]:
    """The history, in order."""

    def row(relation: str, values: list[Any] | None) -> SessionRow | TaskRow | None:
        if values is None:
            return None
        return SessionRow(*values) if relation == "session" else TaskRow(str(values[0]), *values[1:])

    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "select seq, xid::text::int8, extract(epoch from began)::float8, extract(epoch from at)::float8,"
            " actor, relation, old, new from public.history order by seq"
        ).fetchall()
    return [
        Version(seq, xid, began, at, actor, row(relation, old), row(relation, new))
        for seq, xid, began, at, actor, relation, old, new in found
    ]


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


def judge(history: Sequence[Version], lines: Sequence[Said] = ()) -> Verdict:
    """Read a finished history: all who worked have ended, and nothing should be left to do."""
    judging = _Judge(lines)
    # a transaction writes its versions of sessions and tasks in any order, so all sessions come first
    for one in history:
        if isinstance(one.new or one.old, SessionRow):
            judging.session(one)
    for one in history:
        if isinstance(one.new or one.old, TaskRow):
            judging.task(one)
    judging.end(lines)
    return judging.verdict


class _Judge:
    def __init__(self, lines: Sequence[Said]) -> None:
        self.verdict = Verdict()
        self._endings: dict[int, Ending] = {}
        self._lives: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self._owners = {line.session: line.process for line in lines if line.what == "session"}
        self._changes: dict[str, list[Version]] = defaultdict(list)
        self._finished: dict[str, Version] = {}
        self._unfinished: dict[str, TaskRow] = {}

    def session(self, one: Version) -> None:
        """A version of a session."""
        old, new = _rows(one, SessionRow)
        if new is None:
            assert old
            if old.ended is None:
                self._wrong("a session was deleted that had not ended", one)
            return
        self._lives[new.id].append((one.seq, new.expires))
        if old is None:
            self._count("sessions")
        elif old.ended is not None:
            self._wrong("a session changed after its end", one)
        elif new.ended is not None:
            self._endings[new.id] = Ending(one.seq, one.xid, new.ended >= old.expires)
            self._count("expired" if new.ended >= old.expires else "ended")
        elif old.expires <= one.began:
            self._wrong("a session was renewed that was over when the statement began", one)

    def task(self, one: Version) -> None:
        """A version of a task."""
        old, new = _rows(one, TaskRow)
        row = new or old
        assert row
        self._changes[row.id].append(one)
        if old is None:
            self._unfinished[row.id] = row
            self._count("enqueued")
            if row.session is not None:
                self._wrong("a new task belongs to somebody", one)
            return
        if old.over == "done":
            if new and (new.session, new.over) != (None, "done"):
                self._wrong("a finished task is touched", one)
            return
        if new is None or new.over == "done":
            self._finish(one, old)
        else:
            self._unfinished[new.id] = new
            self._change(one, old, new)

    def _finish(self, one: Version, old: TaskRow) -> None:
        self._unfinished.pop(old.id, None)
        self._count("finished")
        if old.id in self._finished:
            self._wrong("a task was finished twice", one)
        self._finished[old.id] = one
        if old.session is None or old.session <= 0:
            self._wrong("a task was finished that was not started", one)
        else:
            self._by_living_owner("finished", one, old.session)

    def _change(self, one: Version, old: TaskRow, new: TaskRow) -> None:
        before, after = old.session, new.session
        started = after is not None and after > 0 and after != before
        if started:
            assert after
            self._count("started")
            self._by_living_owner("started", one, after)
            if old.attempt is not None and new.attempt != old.attempt + 1:
                self._wrong("starting does not count as one attempt", one)
        if before is not None and (after is None or abs(after) != abs(before)):
            self._leave(one, abs(before), only_assigned=before < 0, after=after)
        elif after is not None and after < 0:
            assert before is None or abs(before) == -after
            if before != after:
                self._count("put back" if before else "assigned")
                self._by_living_owner("assigned", one, -after)

    def _leave(self, one: Version, session: int, *, only_assigned: bool, after: int | None) -> None:
        """A task leaves a session."""
        ended = self._endings.get(session)
        if ended and (ended.seq < one.seq or ended.xid == one.xid):
            self._count("taken over" if after else "freed after the end")
            if ended.xid == one.xid and not ended.expired and self._stranger(one, session):
                self._wrong("taken from a session that was ended before its time", one)
        elif after is None:
            self._count("given back")
            if self._stranger(one, session):
                self._wrong("given back by a stranger, from a session that had not ended", one)
        elif only_assigned and after < 0:
            self._count("moved")
            self._by_living_owner("moved", one, -after)
        else:
            self._wrong("taken from a session that had not ended", one)

    def _by_living_owner(self, what: str, one: Version, session: int) -> None:
        if self._stranger(one, session):
            self._wrong(f"{what} by a stranger", one)
        if not any(seq < one.seq and expires > one.began for seq, expires in self._lives[session]):
            self._wrong(f"{what} by a session that was over when the statement began", one)

    def _stranger(self, one: Version, session: int) -> bool:
        owner = self._owners.get(session)
        return bool(one.actor and owner and one.actor != owner)

    def end(self, lines: Sequence[Said]) -> None:
        """What is left, and what was said."""
        for row in self._unfinished.values():
            if row.over == "dead":
                self._count("dead")
            else:
                self._wrong("forgotten", row)
        begun: dict[tuple[int, str], float] = {}
        done: dict[tuple[int, str], Said] = {}
        refused: set[tuple[int, str]] = set()
        in_order = {line.process for line in lines if line.what == "ended"}
        last = {line.process: line.session for line in lines if line.what == "session"}
        for line in lines:
            self._count(f"said {line.what}")
            if line.what == "odd":
                self._wrong("odd", line)
            for task in line.tasks:
                key = line.session, task
                if line.what == "begun":
                    begun[key] = line.at
                elif line.what == "left":
                    self._belief(line, task, begun[key])
                elif line.what == "done":
                    done.setdefault(key, line)
                elif line.what == "refused":
                    refused.add(key)
        for (session, task), line in done.items():
            finish = self._finished.get(task)
            if finish and _session_of(finish) == session:
                self.verdict.counts["finished, and told to be refused"] += (session, task) in refused
            elif (session, task) in refused:
                self._count("refused")
            elif line.process in in_order or last[line.process] != session:
                self._wrong(f"task {task} was completed and not finished, and nobody was told", line)
        for task, one in self._finished.items():
            completed = done.get((_session_of(one), task))
            if lines and (completed is None or completed.at > one.at):
                self._wrong("finished before it was completed", one)

    def _belief(self, line: Said, task: str, since: float) -> None:
        """Somebody worked on a task and trusted to have it until ``line.at``."""
        changes = self._changes[task]
        starts = [n for n, one in enumerate(changes) if one.at <= since and _starts(one, line.session)]
        if not starts:
            self._wrong(f"task {task} was handed to a session that had not started it", line)
            return
        leaves = next((one for one in changes[starts[-1] + 1 :] if not _has(one.new, line.session)), None)
        if leaves and leaves.at < line.at:
            self._wrong(f"task {task} was taken {line.at - leaves.at:.4f} s before the trust was over", (line, leaves))

    def _wrong(self, what: str, about: object) -> None:
        self.verdict.wrong.append(f"{what}: {about}")

    def _count(self, what: str) -> None:
        self.verdict.counts[what] += 1


def _rows(one: Version, kind: type[T]) -> tuple[T | None, T | None]:
    assert one.old is None or isinstance(one.old, kind)
    assert one.new is None or isinstance(one.new, kind)
    return one.old, one.new


def _has(row: SessionRow | TaskRow | None, session: int) -> bool:
    return isinstance(row, TaskRow) and row.session == session


def _starts(one: Version, session: int) -> bool:
    return _has(one.new, session) and not _has(one.old, session)


def _session_of(one: Version) -> int:
    assert isinstance(one.old, TaskRow)
    return one.old.session or 0
