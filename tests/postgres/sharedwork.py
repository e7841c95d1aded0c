"""A schema with functions of the shape that go-session-lock asks for, and somebody who uses them by plain SQL.

Here live no assertions. Theory: the functions are written as its users write them, so nothing in them is qualified,
times are those of Greenwich without a zone, and an ended session expires at `-infinity`. The other runner does what
such a service does: a session, a loop of `get_work` and `finish_tasks`, each a transaction of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from pgconcert.clock import RealClock
from pgconcert.events import EventStream
from pgconcert.postgres.functiontasks import FunctionOwner
from pgconcert.store import Request
from pgconcert.tasks import sourceshift
from pgconcert.tasks.functions import FunctionSource
from pgconcert.tasks.sources import FunctionTasks
from pgconcert.tasks.sourceshift import SourceShift
from pgconcert.taskstore import FunctionPlace
from tests.postgres.scenes import context, until_idle

T = TypeVar("T")

_TABLES = """
    create table session (
        id bigserial constraint session_pk1 primary key, created timestamp not null, expires timestamp not null
    );
    create table work_lock (id bigserial constraint work_lock_pk1 primary key, created timestamp not null);
    insert into work_lock (created) values (now() at time zone 'utc');
    create table errand (
        id bigserial primary key, note text, due timestamptz, price numeric, tags text[], on_day date,
        done boolean not null default false, session_id bigint
    );
    create type session_task as (id bigint, note text, due timestamptz, price numeric, tags text[], on_day date);
"""
_FUNCTIONS = """
    create function throw_session_not_found() returns void language plpgsql as $$
    begin
        raise exception using message = 'Session not found.', errcode = 'SL001';
    end $$;

    create function start_session() returns bigint language sql as $$
        insert into session (created, expires)
        values (now() at time zone 'utc', now() at time zone 'utc' + interval '2 minutes') returning id
    $$;

    create function bump_session(in_session_id bigint) returns void language plpgsql as $$
    begin
        update session set expires = now() at time zone 'utc' + interval '2 minutes'
         where id = in_session_id and expires >= now() at time zone 'utc';
        if not found then
            perform throw_session_not_found();
        end if;
    end $$;

    create function end_session(in_session_id bigint) returns void language sql as $$
        update session set expires = '-infinity' where id = in_session_id
    $$;

    create function get_task_count() returns int language sql stable as $$
        select count(*)::int from errand where not done
    $$;

    create function get_task_count_for_session(in_session_id bigint) returns int language sql stable as $$
        select count(*)::int from errand where not done and session_id = in_session_id
    $$;

    create function pickup_tasks_for_session(in_session_id bigint, in_ideal_pickup int) returns void
    language sql as $$
        update errand set session_id = in_session_id
         where id in (
            select e.id from errand e left join session s on s.id = e.session_id
             where not e.done and (e.session_id is null or s.expires < now() at time zone 'utc')
             order by e.id limit in_ideal_pickup)
    $$;

    create function get_tasks_for_session(in_session_id bigint) returns setof session_task language sql stable as $$
        select id, note, due, price, tags, on_day from errand
         where not done and session_id = in_session_id order by id
    $$;

    create function finish_tasks(in_task_ids bigint[]) returns void language sql as $$
        update errand set done = true where id = any (in_task_ids)
    $$;

    create function get_work(in_session_id bigint, in_tasks_per_session_count int) returns setof session_task
    language plpgsql as $$
    declare
        share int;
        own int;
    begin
        perform 1 from work_lock where id = 1 for update;
        perform bump_session(in_session_id);
        share := ceil(get_task_count()::numeric / (
            select count(*) from session where expires >= now() at time zone 'utc'));
        share := least(share, in_tasks_per_session_count);
        own := get_task_count_for_session(in_session_id);
        if own < share then
            perform pickup_tasks_for_session(in_session_id, share - own);
        end if;
        return query select * from get_tasks_for_session(in_session_id);
    end $$;
"""


class SharedWork:
    """A schema of that shape, seen by a connection of its own."""

    def __init__(self, connection: psycopg.Connection[Any], url: str, schema: str) -> None:
        self._connection = connection
        self.url = url
        self.schema = schema

    def execute(self, text: str, *params: object) -> list[tuple[Any, ...]]:
        """A statement in the schema."""
        cursor = self._connection.execute(text.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def add(self, count: int) -> None:
        """More errands."""
        self.execute("insert into errand (note) select 'errand ' || n from generate_series(1, %s) n", count)

    def owners(self) -> dict[int | None, int]:
        """How many outstanding errands each session has."""
        rows = self.execute("select session_id, count(*)::int from errand where not done group by 1")
        return dict(rows)

    def done(self) -> list[int]:
        """The errands that are finished."""
        return [number for (number,) in self.execute("select id from errand where done order by id")]

    def living(self) -> list[int]:
        """The sessions that live."""
        return [
            number
            for (number,) in self.execute(
                "select id from session where expires >= now() at time zone 'utc' order by id"
            )
        ]

    def expire(self, session: int) -> None:
        """Let the time of a session be over."""
        self.execute("update session set expires = now() at time zone 'utc' - interval '1 s' where id = %s", session)


@contextmanager
def shared_work(url: str, schema: str) -> Iterator[SharedWork]:
    """A fresh schema with tables and functions, removed at the end."""
    name = sql.Identifier(schema)
    with psycopg.connect(url, autocommit=True, application_name="somebody else") as connection:
        connection.execute(sql.SQL("drop schema if exists {} cascade").format(name))
        connection.execute(sql.SQL("create schema {}").format(name))
        connection.execute(sql.SQL("set search_path to {}").format(name))
        connection.execute(_TABLES.encode())
        connection.execute(_FUNCTIONS.encode())
        try:
            yield SharedWork(connection, url, schema)
        finally:
            until_idle(connection)
            connection.execute(sql.SQL("drop schema {} cascade").format(name))


class _Port:
    """As much of a coordinator as a source needs: its loop, and the way to the owner of the place."""

    def __init__(self, owner: FunctionOwner) -> None:
        self.loop = asyncio.get_running_loop()
        self.register = self.sessions = self
        self.ask = owner.ask

    def here(self) -> None:
        """It is."""


def source_of(owner: FunctionOwner, **tasks: Any) -> FunctionSource:
    """A source over an owner, without a coordinator."""
    port: Any = _Port(owner)
    return FunctionSource(port, FunctionTasks(**tasks))


@asynccontextmanager
async def owner_of(
    work: SharedWork, url: str | None = None, place: FunctionPlace | None = None, network_timeout: float = 60.0
) -> AsyncIterator[FunctionOwner]:
    """The owner of the place, on a link of its own."""
    owner = FunctionOwner(context(url or work.url, network_timeout=network_timeout), place or place_of(work))
    try:
        yield owner
    finally:
        await owner.close()


async def ask(owner: FunctionOwner, request: Request[T]) -> T:
    """Ask it, and wait."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    owner.ask(request, answer)
    return await answer


async def begin(source: FunctionSource, most: int | None = None) -> SourceShift:
    """A shift over a source."""

    async def find() -> FunctionSource:
        return source

    return await sourceshift.begin(find, runner="r", most=most, clock=RealClock(), events=EventStream())


def place_of(work: SharedWork) -> FunctionPlace:
    """The place, as requests have it."""
    return FunctionPlace(work.schema)


class PlainRunner:
    """A service that uses the functions by plain SQL, from a thread."""

    def __init__(self, work: SharedWork, cap: int | None = None) -> None:
        self._connection = psycopg.connect(work.url, autocommit=True, application_name="a service")
        self._connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(work.schema)))
        self._cap = cap
        self.session: int = self._value("select start_session()")

    def get_work(self) -> list[int]:
        """All that it has."""
        rows = self._connection.execute("select id from get_work(%s, %s::int)", (self.session, self._cap)).fetchall()
        return [number for (number,) in rows]

    def get_work_of(self, work: SharedWork, session: int) -> list[int]:
        """The same, when the time of another session is over: nobody else comes in between."""
        with self._connection.transaction():
            self._connection.execute("select from work_lock where id = 1 for update")
            work.expire(session)
            return self.get_work()

    def finish(self, ids: list[int]) -> None:
        """These are done, whoever has them."""
        self._connection.execute("select finish_tasks(%s::bigint[])", (ids,))

    def run(self, work: Callable[[list[int], int], None]) -> None:
        """Work until nothing is left."""
        while self._value("select get_task_count()"):
            if ids := self.get_work():
                work(ids, self.session)
                self.finish(ids)

    def close(self) -> None:
        """End the session."""
        self._value("select end_session(%s)", self.session)
        self._connection.close()

    def _value(self, text: str, *params: object) -> Any:
        (row,) = self._connection.execute(text.encode(), params).fetchall()
        return row[0]
