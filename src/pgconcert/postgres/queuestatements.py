"""The statements about queues alone: what goes in, what is looked at, what is dead. No logic.

What is dead and what is finished nobody works on, so nothing here meets those who work: rows of ``task_finished`` are
only inserted and deleted, and of the dead each is changed by whoever comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

from ..taskstore import TaskState
from .link import Statement, statement
from .schemafiles import in_schema
from .sessionclauses import PREFACE, seconds

__all__ = ["FINISHED_AT_ONCE", "QueueStatements", "enqueue_sql", "look_at_queues", "look_at_tasks", "queue_statements"]

FINISHED_AT_ONCE: Final = 1000
"""How many rows are purged by one statement."""

# Identities are given out in the order of the rows, and rows come back in the order in which they were put in.
_ENQUEUE: Final = f"""
    with {PREFACE}
    insert into pgconcert.task (namespace, queue, run_at, attempts, created, payload)
    select q.namespace, q.queue,
           case when q.run_at is not null then to_timestamp(q.run_at)
                else n.now + make_interval(secs => coalesce(q.run_in, 0)) end,
           q.attempts, n.now, decode(q.payload, 'base64')
      from unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::float8[], $6::int2[]) with ordinality
           q(namespace, queue, payload, run_at, run_in, attempts, n)
     cross join (select clock_timestamp() as now from limits) n
     order by q.n
    returning id
"""

_NOW: Final = "(select clock_timestamp())"
_FREE: Final = "t.session_id is null and not t.dead"
_STATES: Final[Mapping[TaskState | None, tuple[str, ...]]] = {
    "waiting": (f"{_FREE} and t.run_at <= {_NOW}",),
    "scheduled": (f"{_FREE} and t.run_at > {_NOW}",),
    "assigned": ("t.session_id < 0",),
    "started": ("t.session_id > 0",),
    "dead": ("t.dead",),
    None: (_FREE, "t.session_id is not null", "t.dead"),
}
"""Which rows of those that are not finished have a state: several, where each has an index of its own."""

_STATE: Final = f"""
    case when t.dead then 'dead' when t.session_id > 0 then 'started' when t.session_id < 0 then 'assigned'
         when t.run_at > {_NOW} then 'scheduled' else 'waiting' end
"""
_COLUMNS: Final = "t.attempt, t.attempts, t.created, t.run_at, abs(t.session_id) as session_id, t.error, t.payload"
_SOME: Final = "order by t.run_at, t.id limit $3::int8"
_IN_QUEUE: Final = "t.namespace = $1::text and t.queue = $2::text"
_LOOKED_AT: Final = f"""
    select id, state, encode(payload, 'base64'), attempt, attempts, {seconds("created")}, {seconds("run_at")},
           session_id, error, {seconds("finished")}
      from (FOUND) q order by run_at, id limit $3::int8
"""
_UNFINISHED: Final = f"""
    (select t.id, {_STATE} as state, {_COLUMNS}, cast(null as timestamptz) as finished
       from pgconcert.task t where {_IN_QUEUE} and WHICH {_SOME})
"""
_FINISHED: Final = f"""
    (select t.id, 'finished' as state, {_COLUMNS}, t.finished
       from pgconcert.task_finished t where {_IN_QUEUE} and t.keep_until > {_NOW} {_SOME})
"""

_QUEUES: Final = f"""
    select namespace, queue, count(*) filter (where free and run_at <= {_NOW}),
           count(*) filter (where free and run_at > {_NOW}), count(*) filter (where session_id < 0),
           count(*) filter (where session_id > 0), count(*) filter (where dead), count(*) filter (where finished),
           {seconds(f"{_NOW} - (min(run_at) filter (where free and run_at <= {_NOW}))")}
      from (select t.namespace, t.queue, t.run_at, t.session_id, t.dead, {_FREE} as free, false as finished
              from pgconcert.task t WHERE
             union all
            select t.namespace, t.queue, t.run_at, null, false, false, true
              from pgconcert.task_finished t WHERE and t.keep_until > {_NOW}) q
     group by namespace, queue order by namespace, queue
"""

# Of the dead those named, or all.
_WHICH: Final = "t.namespace = $1::text and t.queue = $2::text and t.dead"
_RETRY: Final = f"""
    with {PREFACE}, retried as (
        update pgconcert.task t set dead = false, attempt = 0, run_at = clock_timestamp()
         where {_WHICH} and (select count(*) from limits) > 0 returning 1
    )
    select count(*) from retried
"""
_DISCARD: Final = f"""
    with {PREFACE}, discarded as (
        delete from pgconcert.task t where {_WHICH} and (select count(*) from limits) > 0 returning 1
    )
    select count(*) from discarded
"""
_NAMED: Final = "t.dead and t.id = any ($3::int8[])"

# Arrays, because a subquery with a limit could be asked again for every row.
_PURGE: Final = f"""
    with gone as (
        delete from pgconcert.task_finished where ctid = any (array(
            select ctid from pgconcert.task_finished where keep_until < {_NOW}
             order by keep_until limit {FINISHED_AT_ONCE} for update skip locked)) returning 1
    )
    select count(*) >= {FINISHED_AT_ONCE} from gone
"""


# On a connection of the caller's, whose search path may be any: operators are named with their schema too.
_ENQUEUE_ONE: Final = """
    with put as (
        insert into pgconcert.task (namespace, queue, run_at, attempts, created, payload)
        select q.namespace, q.queue,
               case when q.run_at is not null then pg_catalog.to_timestamp(q.run_at)
                    else q.now operator(pg_catalog.+) pg_catalog.make_interval(secs => q.run_in) end,
               q.attempts, q.now, q.payload
          from (select cast($1 as pg_catalog.text) as namespace, cast($2 as pg_catalog.text) as queue,
                       cast($3 as pg_catalog.float8) as run_at, cast($4 as pg_catalog.float8) as run_in,
                       cast($5 as pg_catalog.int2) as attempts, cast($6 as pg_catalog.bytea) as payload,
                       pg_catalog.clock_timestamp() as now) q
        returning id
    )
    select id, pg_catalog.pg_notify(cast($7 as pg_catalog.text), cast($8 as pg_catalog.text)) from put
"""


class QueueStatements(NamedTuple):
    """The statements, but those that exist for every set of filters."""

    enqueue: Statement
    retry_all: Statement
    retry: Statement
    discard_all: Statement
    discard: Statement
    purge: Statement
    """Answers whether there may be more to purge."""


@cache
def queue_statements(schema: str) -> QueueStatements:
    """The statements for a schema. Raises ``ConfigurationError`` for what can be none."""
    texts = (_ENQUEUE, _RETRY, _RETRY.replace("t.dead", _NAMED), _DISCARD, _DISCARD.replace("t.dead", _NAMED), _PURGE)
    return QueueStatements(*(in_schema(statement(text), schema) for text in texts))


@cache
def enqueue_sql(schema: str) -> str:
    """The statement that puts one task into a queue and wakes its runners at the commit; its values are namespace,
    queue, run_at, run_in, attempts, payload, channel and mark. A row, which begins with the id.

    Raises ``ConfigurationError`` for what can be no schema."""
    return in_schema(statement(_ENQUEUE_ONE), schema).sql.decode()


@cache
def look_at_tasks(state: TaskState | None, schema: str) -> Statement:
    """Tasks of a queue in a state, or all: namespace, queue and how many are its parameters."""
    found = [_UNFINISHED.replace("WHICH", which) for which in _STATES.get(state, ())]
    if state in (None, "finished"):
        found.append(_FINISHED)
    return in_schema(statement(_LOOKED_AT.replace("FOUND", " union all ".join(found))), schema)


@cache
def look_at_queues(filters: tuple[str, ...], schema: str) -> Statement:
    """How many tasks of each state queues have, whose columns ``filters`` have the values that are given."""
    wanted = " and ".join(f"t.{column} = ${place}::text" for place, column in enumerate(filters, 1)) or "true"
    return in_schema(statement(_QUEUES.replace("WHERE", f"where {wanted}")), schema)
