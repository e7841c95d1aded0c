"""Clauses that the statements about sessions have in common. No logic, and no statement.

Every statement begins with ``PREFACE``: ``limits`` makes the transaction durable, and short where it must wait (nothing
else can say so behind a transaction pooler); ``age`` is one row, the incarnation of the server at this moment against
the one that the row of ``epoch`` knows. From it follows until when a session lives (``OVER_AT``): one that was last
renewed under another incarnation has one ttl of grace, from when this incarnation was first seen.

``age`` is asked as scalar subqueries, so a statement means the same when a row that it wants to lock has a newer
version than its snapshot. Names are looked up one by one (``lateral``), and ``PLANS`` lets the server plan a statement
once: so the plan is the same whether tables are empty or large. Anew each time, planning takes longer than the rest.
"""

from __future__ import annotations

from typing import Final

from .link import Statement, statement
from .schemafiles import in_schema

__all__ = [
    "ALIVE",
    "ENTRY",
    "OF_ENTRY",
    "OVER_AT",
    "PLANS",
    "PREFACE",
    "SESSION",
    "SUBJECT",
    "SUBJECT_OF_ENTRY",
    "seconds",
    "session_statement",
]

PREFACE: Final = """
    limits as materialized (
        select set_config('lock_timeout', '100ms', true), set_config('synchronous_commit',
            case when current_setting('synchronous_commit') in ('off', 'local') then 'on'
                 else current_setting('synchronous_commit') end, true)
    ), age as materialized (
        select h.incarnation, e.epoch, e.floor, coalesce(e.incarnation = h.incarnation, false) as known,
               case when e.incarnation = h.incarnation then e.seen_at else clock_timestamp() end as seen_at
          from (select pgconcert.incarnation() as incarnation from limits) h left join pgconcert.epoch e on true
    )
"""

PLANS: Final = statement("""
    select set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false),
           set_config('jit', 'off', false)
""")
"""What a session of our own is told before these statements."""

OVER_AT: Final = """
    case when s.incarnation = (select incarnation from age) then s.expires
         else greatest(s.expires, (select seen_at from age)) + s.ttl end
"""
"""When the time of the session ``s`` is over."""

ALIVE: Final = f"(s.ended is null and {OVER_AT} > clock_timestamp())"
"""Whether the session ``s`` is alive. Null if there is none."""

SUBJECT: Final = "a.kind, a.namespace, a.name, a.member"

OF_ENTRY: Final = "e.kind = a.kind and e.namespace = a.namespace and e.name = a.name and e.member = a.member"
"""The entry ``e`` is the one that ``a`` names."""

ENTRY: Final = f"lateral (select * from pgconcert.entry e where {OF_ENTRY} offset 0) e"
"""The entry ``e`` that ``a`` names, found by the index of names and by no other way."""

SUBJECT_OF_ENTRY: Final = "e.kind, e.namespace, e.name, e.member"


def seconds(time: str) -> str:
    """A time or an interval, as a number."""
    return f"cast(extract(epoch from {time}) as float8)"


SESSION: Final = f"""
    s.id, s.uuid, s.host, s.pid, s.application, s.data, {seconds("s.ttl")}, {seconds("s.started")},
    {seconds(f"{OVER_AT} - clock_timestamp()")}
"""
"""The columns that ``sessionrows.session_of`` reads."""


def session_statement(text: str, schema: str) -> Statement:
    """The statement for a schema: ``text`` follows the preface."""
    return in_schema(statement(f"with {PREFACE}, {text}"), schema)
