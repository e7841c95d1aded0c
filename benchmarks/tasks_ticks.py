"""What a tick costs beside much that has nothing to do with it: finished tasks, old sessions, tasks of no concern.

What may live here: places full of tasks, ticks at the port of the store, the scenario `ticks`.

Theory. A *tick* is one statement: a runner says what it has done, and takes up its share. Here it takes up ten of a
hundred tasks, and gives them back by another statement, which is not measured; and it takes up none, because it has ten
already. A *state* is what else is in the database, beside the same hundred tasks: finished ones, as a table of the
application has them for ever and a queue for a while; sessions that are over, each with its entry as a runner of the
same name; and many more outstanding tasks. Each state has a database of its own, all of them on one server and filled
and analysed before, and the ticks go from one to the next: so each is compared with one that was measured a moment ago
where nothing else is.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import psycopg
from psycopg import sql
from report import Table, Target
from running import BaseRun
from yardstick import Site

if TYPE_CHECKING:
    from pgconcert.taskstore import Place, Turned

TICKS = 50
OUTSTANDING = 100
SHARE = 10
FLAT = 2.0
QUEUE: Final = "ticks"
TABLE: Final = "ticked"


@dataclass(frozen=True)
class State:
    """What is in the database besides a hundred outstanding tasks."""

    title: str
    finished: int = 0
    sessions: int = 0
    outstanding: int = 0


STATES = (
    State("100,000 finished tasks", finished=100_000),
    State("1,000,000 finished tasks", finished=1_000_000),
    State("10,000 old sessions", sessions=10_000),
    State("100,000 more outstanding tasks", outstanding=100_000),
)
NOTHING = State("nothing else")
WARM = 5
"""Ticks that only prepare statements."""

MAKE = f"""
    create table if not exists {TABLE} (
        id bigint generated always as identity primary key, created timestamptz not null default clock_timestamp(),
        done_at timestamptz, note text not null default 'a row of the application', session_id bigint);
    create index if not exists {TABLE}_held on {TABLE} (session_id) where session_id is not null;
    create index if not exists {TABLE}_free on {TABLE} (created, id) where done_at is null and session_id is null;
"""
FINISHED = f"""
    insert into {TABLE} (done_at) select clock_timestamp() from generate_series(1, %(count)s);
    insert into pgconcert.task_finished (namespace, queue, run_at, id, session_id, attempt, attempts, created, finished,
                                         keep_until, payload)
    select '', '{QUEUE}', clock_timestamp(), -n, n, 1, 20, clock_timestamp(), clock_timestamp(),
           clock_timestamp() + interval '1 day', 'done'::bytea from generate_series(1, %(count)s) n;
"""
SESSIONS = """
    insert into pgconcert.session (id, uuid, ttl, expires, ended, incarnation, host, pid, application)
    select nextval('pgconcert.session_number'), gen_random_uuid()::text, interval '40 s', clock_timestamp(),
           clock_timestamp(), pgconcert.incarnation(), 'gone', n, 'old' from generate_series(1, %(count)s) n;
    insert into pgconcert.entry (kind, namespace, name, member, session_id, token, since)
    select 'runner', '', 'ticks', uuid, id, id, clock_timestamp() from pgconcert.session where ended is not null;
"""
OUTSTANDING_TASKS = f"""
    insert into {TABLE} (note) select 'to do' from generate_series(1, %(count)s);
    insert into pgconcert.task (namespace, queue, run_at, attempts, payload)
    select '', '{QUEUE}', clock_timestamp(), 20, 'to do'::bytea from generate_series(1, %(count)s);
"""


Ticked = dict[str, tuple[list[float], list[float]]]
"""By kind of place: the seconds of ticks that take up tasks, and of those that find their share full."""


def ticks(run: BaseRun) -> None:
    """Does a tick cost more with finished tasks, old sessions, or tasks that it does not take up?"""
    if not run.wanted([run.ours]):
        return
    scale, count = (100, 5) if run.arguments.smoke else (1, TICKS)
    found = asyncio.run(measure(run.site, scale, count))
    empty = found.pop(NOTHING)
    for kind, bases in empty.items():
        rows = []
        for state, ticked in found.items():
            medians = [statistics.median(sample) for sample in (*bases, *ticked[kind])]
            taking, full, its_taking, its_full = (f"{seconds * 1e3:.2f}" for seconds in medians)
            times = (medians[2] / medians[0], medians[3] / medians[1])
            rows.append((state.title, taking, its_taking, f"{times[0]:.2f}", full, its_full, f"{times[1]:.2f}"))
            text = f"a tick over {kind} beside {state.title}, times one beside nothing"
            run.target(Target(text, "<=", FLAT, max(times), f"median of {count}"))
        columns = ("beside", "nothing: ms", "it: ms", "times", "share full, nothing: ms", "it: ms", "times")
        run.report.show(Table(f"a tick over {kind}: {SHARE} of {OUTSTANDING} tasks taken up", columns, tuple(rows)))
    run.report.figures["ticks"] = {state.title: ticked for state, ticked in ((NOTHING, empty), *found.items())}


async def measure(site: Site, scale: int, count: int) -> dict[State, Ticked]:
    """All ticks of all states, each in its database."""
    found: dict[State, Ticked] = {}
    async with contextlib.AsyncExitStack() as stack:
        tickers: list[tuple[State, str, Ticker]] = []
        for number, state in enumerate((NOTHING, *STATES)):
            address = replace(site.address, dbname=f"{site.address.dbname}_{number}")
            name = sql.Identifier(address.dbname)
            site.outside.execute(sql.SQL("create database {}").format(name))
            stack.callback(site.outside.execute, sql.SQL("drop database {} with (force)").format(name))
            tickers += [(state, kind, ticker) for kind, ticker in await opened(stack, address.url, state, scale)]
            found[state] = {}
        for turn in range(count + WARM):
            shift = turn % len(tickers)
            for state, kind, ticker in tickers[shift:] + tickers[:shift]:
                taking, full = await ticker.tick()
                if turn >= WARM:
                    samples = found[state].setdefault(kind, ([], []))
                    samples[0].append(taking)
                    samples[1].append(full)
    return found


async def opened(stack: contextlib.AsyncExitStack, url: str, state: State, scale: int) -> list[tuple[str, Ticker]]:
    """A database in this state, and somebody who ticks at each of its places."""
    from pgconcert import AsyncCoordinator
    from pgconcert.taskstore import QueuePlace, TablePlace

    c = await stack.enter_async_context(AsyncCoordinator(url, migrate=True, network_timeout=600.0))
    with psycopg.connect(url, autocommit=True) as connection:
        fill(connection, state, scale)
    table = TablePlace(TABLE, "id", "t.done_at is null", "t.created", "done_at = clock_timestamp()")
    queue = Ticker(c.backend.store, QueuePlace("", QUEUE, 3600.0))
    others = Ticker(c.backend.store, table)
    await queue.begin()
    await others.begin()
    return [("a queue", queue), ("a table", others)]


def fill(connection: psycopg.Connection[Any], state: State, scale: int) -> None:
    """A hundred tasks, and what belongs to the state; all analysed."""
    connection.execute(MAKE)
    for statement, count in (
        (FINISHED, state.finished // scale),
        (SESSIONS, state.sessions // scale),
        (OUTSTANDING_TASKS, OUTSTANDING + state.outstanding // scale),
    ):
        for part in statement.split(";")[:-1]:
            connection.execute(part.encode(), {"count": count})
    for table in ("pgconcert.task", "pgconcert.task_finished", "pgconcert.session", "pgconcert.entry", TABLE):
        connection.execute(f"vacuum analyze {table}".encode())


class Ticker:
    """A runner at the port of a store, which does nothing by itself."""

    def __init__(self, store: Any, place: Place) -> None:
        self.store, self.place = store, place
        self.session = 0

    def ask(self, request: Any) -> Awaitable[Any]:
        answer = asyncio.get_running_loop().create_future()
        self.store.ask(request, answer)
        return answer

    async def begin(self) -> None:
        from pgconcert.store import StartSession, Subject, Take

        name = type(self.place).__name__
        self.runner = Subject("runner", "", "ticks", f"{name} {uuid4().hex}")
        who = StartSession(uuid=uuid4().hex, ttl=3600.0, host="here", pid=1, application="ticks")
        self.session = await self.ask(who)
        taken = await self.ask(Take(subject=self.runner, session=self.session))
        assert taken.token, taken

    async def turn(self, released: Sequence[str] = (), pick: bool = True) -> tuple[float, Turned]:
        from pgconcert.taskstore import Pick, Turn

        picked = Pick(most=SHARE, start=SHARE) if pick else None
        request = Turn(
            place=self.place, runner=self.runner, session=self.session, released=tuple(released), pick=picked
        )
        began = time.perf_counter()
        turned = await self.ask(request)
        return time.perf_counter() - began, turned

    async def tick(self) -> tuple[float, float]:
        """How long it takes to take up tasks, and to find that there are enough; all is given back."""
        taking, turned = await self.turn()
        full, _ = await self.turn()
        assert len(turned.started) == SHARE, turned
        await self.turn([task.id for task in turned.started], pick=False)
        return taking, full
