"""The other statements about sessions and entries, each with arrays of what is asked. No logic.

All of them skip rows that others have locked, and lock an entry before its session, several in the order of their names
or numbers. Where a row was skipped, the answer says ``busy``: nothing was done, so it can be asked again. Marks are an
exception where a session ends, since nobody looks at those of one that is over: the purge takes what was skipped.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from .link import Statement
from .sessionclauses import (
    ALIVE,
    ENTRY,
    OF_ENTRY,
    OVER_AT,
    SESSION,
    SUBJECT,
    SUBJECT_OF_ENTRY,
    seconds,
    session_statement,
)
from .takestatement import TAKE

__all__ = ["SESSIONS_AT_ONCE", "SessionStatements", "session_statements"]

SESSIONS_AT_ONCE: Final = 500
"""How many rows of a kind are purged by one statement."""

_NAMES: Final = "unnest($1::text[], $2::text[], $3::text[], $4::text[]"
_OF_MARK: Final = "w.kind = a.kind and w.namespace = a.namespace and w.name = a.name and w.member = a.member"

# Numbers of sessions are never used again, also when a promoted standby did not hear of the last ones: the low 15 bits
# are the epoch.
_START: Final = """
    started as (
        insert into pgconcert.session (id, uuid, ttl, expires, incarnation, host, pid, application, data)
        select nextval($pgct$ pgconcert.session_number$pgct$) * 32768 + a.epoch, a.uuid, make_interval(secs => a.ttl),
               clock_timestamp() + make_interval(secs => a.ttl), a.incarnation, a.host, a.pid, a.application, a.data
          from (select q.*, age.* from unnest($1::text[], $2::float8[], $3::text[], $4::int4[], $5::text[], $6::text[])
                       with ordinality q(uuid, ttl, host, pid, application, data, n), age where age.known order by n) a
        returning id
    )
    select (select known from age), (select array_agg(id order by id) from started)
"""

# What was last renewed under another incarnation may have lost on the way what it holds, so its revision is raised.
_RENEW: Final = f"""
    alive as materialized (
        select s.id from pgconcert.session s
         where s.id = any ($1::int8[]) and (select known from age) and {ALIVE} order by s.id
           for no key update skip locked
    ), renewed as (
        update pgconcert.session s
           set expires = clock_timestamp() + s.ttl, incarnation = (select incarnation from age),
               revision = s.revision + cast(s.incarnation <> (select incarnation from age) as int4)
         where s.id = any (array(select id from alive))
        returning s.id, s.revision
    )
    select (select known from age), a.id, r.revision, coalesce({ALIVE}, false)
      from unnest($1::int8[]) a(id) left join pgconcert.session s on s.id = a.id left join renewed r on r.id = a.id
"""

_END: Final = f"""
    here as materialized (
        select s.id from pgconcert.session s where s.id = any ($1::int8[]) and s.ended is null order by s.id
           for no key update skip locked
    ), ended as (
        update pgconcert.session s set ended = clock_timestamp() where s.id = any (array(select id from here))
        returning s.id, {ALIVE.replace("s.ended is null and ", "")} as alive
    ), marks as materialized (
        select w.* from pgconcert.waiting w where w.session_id = any (array(select id from here))
           for update skip locked
    ), marks_removed as (
        delete from pgconcert.waiting w using marks a where {_OF_MARK} and w.session_id = a.session_id
    )
    select e.id is null and s.id is not null and s.ended is null, coalesce(e.alive, false)
      from unnest($1::int8[]) with ordinality a(id, n) left join pgconcert.session s on s.id = a.id
      left join ended e on e.id = a.id
     where (select known from age) is not null order by n
"""

# What is given stays as it is until free_at, if that is ahead; the term ends in the same statement.
_GIVE: Final = f"""
    asked as materialized (
        select * from {_NAMES}, $5::int8[], $6::int8[], $7::text[]) with ordinality
                 a(kind, namespace, name, member, session, token, how, n)
    ), ours as materialized (
        select a.* from asked a join pgconcert.session s on s.id = a.session
         cross join {ENTRY}
         where {ALIVE} and e.session_id = a.session and (a.token is null or e.token = a.token)
         order by {SUBJECT}
    ), locked as materialized (
        select a.*, l.held from ours a cross join lateral (
            select e.token as held from pgconcert.entry e
             where {OF_ENTRY} and e.session_id = a.session and (a.token is null or e.token = a.token)
               for no key update skip locked) l
    ), given as (
        update pgconcert.entry e
           set session_id = null, given = true, given_at = clock_timestamp(), release_requested = false,
               free_at = case when e.free_at > clock_timestamp() then e.free_at end
          from locked a where {OF_ENTRY} and e.token = a.held returning a.n
    ), terms_ended as (
        update pgconcert.term t set until = clock_timestamp(), how = a.how from locked a
         where a.kind = 'election' and t.namespace = a.namespace and t.name = a.name and t.token = a.held
           and t.until is null
    )
    select o.n is not null and g.n is null, g.n is not null
      from asked a left join ours o on o.n = a.n left join given g on g.n = a.n order by a.n
"""

_WAITED: Final = f"""
    asked as materialized (
        select * from {_NAMES}, $5::int8[]) with ordinality a(kind, namespace, name, member, session, n)
    )
    select exists (select from pgconcert.waiting w join pgconcert.session s on s.id = w.session_id
                    where {_OF_MARK} and w.session_id <> a.session and {ALIVE})
      from asked a order by n
"""

_UNMARK: Final = f"""
    asked as materialized (
        select * from {_NAMES}, $5::int8[]) with ordinality a(kind, namespace, name, member, session, n)
    ), ours as materialized (
        select a.* from asked a cross join lateral (
            select from pgconcert.waiting w where {_OF_MARK} and w.session_id = a.session offset 0) w
         where (select known from age) is not null order by {SUBJECT}
    ), locked as materialized (
        select a.* from ours a cross join lateral (
            select from pgconcert.waiting w where {_OF_MARK} and w.session_id = a.session for update skip locked) l
    ), removed as (
        delete from pgconcert.waiting w using locked a where {_OF_MARK} and w.session_id = a.session returning a.n
    )
    select o.n is not null and r.n is null, r.n is not null
      from asked a left join ours o on o.n = a.n left join removed r on r.n = a.n order by a.n
"""

_OWN: Final = f"""
    asked as materialized (select * from unnest($1::int8[]) with ordinality a(session, n))
    select a.n, {SUBJECT_OF_ENTRY}, e.token, e.release_requested
      from asked a join pgconcert.session s on s.id = a.session and {ALIVE}
      join pgconcert.entry e on e.session_id = s.id
     order by a.n, {SUBJECT_OF_ENTRY}
"""

_UPDATE: Final = f"""
    asked as materialized (
        select * from {_NAMES}, $5::int8[], $6::int8[], $7::text[]) with ordinality
                 a(kind, namespace, name, member, session, token, data, n)
    ), ours as materialized (
        select a.* from asked a join pgconcert.session s on s.id = a.session
         cross join {ENTRY}
         where {ALIVE} and e.session_id = a.session and e.token = a.token order by {SUBJECT}
    ), locked as materialized (
        select a.* from ours a cross join lateral (
            select from pgconcert.entry e where {OF_ENTRY} and e.session_id = a.session and e.token = a.token
               for no key update skip locked) l
    ), changed as (
        update pgconcert.entry e set data = a.data from locked a where {OF_ENTRY} returning a.n
    )
    select o.n is not null and c.n is null, c.n is not null
      from asked a left join ours o on o.n = a.n left join changed c on c.n = a.n order by a.n
"""

# The row of the session that has it is locked too, so that its revision is raised in the same transaction or nothing
# happens. ``token``: only from who has it with this token.
_FROM_HOLDER: Final = f"""
    asked as materialized (
        select * from {_NAMES}, $5::int8[]) with ordinality a(kind, namespace, name, member, token, n)
    ), held as materialized (
        select a.*, e.session_id, coalesce({ALIVE}, false) as alive, e.free_at
          from asked a cross join {ENTRY}
          left join pgconcert.session s on s.id = e.session_id
         where (a.token is null or e.token = a.token) and (select known from age) is not null
         order by {SUBJECT}
    ), locked as materialized (
        select a.*, l.had from held a cross join lateral (
            select e.token as had from pgconcert.entry e
             where {OF_ENTRY} and e.session_id = a.session_id and (a.token is null or e.token = a.token)
               for no key update skip locked) l
         where a.alive
    ), holders as materialized (
        select s.id from pgconcert.session s
         where s.id = any (array(select session_id from locked)) and s.ended is null order by s.id
           for no key update skip locked
    ), revised as (
        update pgconcert.session s set revision = s.revision + 1
         where s.id = any (array(select id from holders)) returning s.id
    ), changed as (
        CHANGE
    ) EXTRA
    select coalesce(h.alive, false) and c.n is null, c.n is not null
      from asked a left join held h on h.n = a.n left join changed c on c.n = a.n order by a.n
"""
_REQUEST_RELEASE: Final = _FROM_HOLDER.replace("EXTRA", "").replace(
    "CHANGE",
    f"""
        update pgconcert.entry e set release_requested = true from locked a
         where a.session_id in (select id from revised) and {OF_ENTRY} and e.token = a.had returning a.n
    """,
)
# Also what nobody has, but is not free yet, is free then.
_REVOKE: Final = _FROM_HOLDER.replace(
    "CHANGE",
    f"""
        update pgconcert.entry e
           set session_id = null, free_at = null, given = false, given_at = clock_timestamp(), release_requested = false
          from locked a
         where a.session_id in (select id from revised) and {OF_ENTRY} and e.token = a.had returning a.n, a.had
    """,
).replace(
    "EXTRA",
    f"""
    , terms_ended as (
        update pgconcert.term t set until = clock_timestamp(), how = 'revoked' from asked a join changed c on c.n = a.n
         where a.kind = 'election' and t.namespace = a.namespace and t.name = a.name and t.token = c.had
           and t.until is null
    ), freed as (
        update pgconcert.entry e set free_at = null
          from (select h.*, l.had from held h cross join lateral (
                    select e.token as had from pgconcert.entry e
                     where {OF_ENTRY.replace("a.", "h.")} and e.session_id is null
                       for no key update skip locked) l
                 where h.session_id is null and h.free_at > clock_timestamp()) a
         where {OF_ENTRY} and e.token = a.had
    )
    """,
)

_CREATE_GROUP: Final = f"""
    asked as materialized (select * from {_NAMES}) with ordinality a(kind, namespace, name, member, n)),
    made as (
        insert into pgconcert.entry as e (kind, namespace, name, member, since)
        select {SUBJECT}, clock_timestamp() from asked a
         where (select known from age) is not null
           and not exists (select from pgconcert.entry e where {OF_ENTRY})
         order by {SUBJECT} on conflict do nothing
        returning {SUBJECT_OF_ENTRY}
    )
    select e.name is not null from asked a left join made e on {OF_ENTRY} order by a.n
"""

_DELETE_GROUP: Final = f"""
    asked as materialized (select * from {_NAMES}) with ordinality a(kind, namespace, name, member, n)),
    found as materialized (
        select a.*, exists (select from pgconcert.entry e join pgconcert.session s on s.id = e.session_id
                             where e.kind = 'member' and e.namespace = a.namespace and e.name = a.name and {ALIVE})
                    as peopled
          from asked a cross join lateral (select from pgconcert.entry e where {OF_ENTRY}) l order by {SUBJECT}
    ), locked as materialized (
        select a.* from found a cross join lateral (
            select from pgconcert.entry e where {OF_ENTRY} for update skip locked) l where not a.peopled
    ), deleted as (
        delete from pgconcert.entry e using locked a where {OF_ENTRY} returning a.n
    )
    select f.n is not null and not f.peopled and d.n is null, f.peopled, d.n is not null
      from asked a left join found f on f.n = a.n left join deleted d on d.n = a.n order by a.n
"""

_LOOK_AT_SESSIONS: Final = f"""
    here as (select 1)
    select {SESSION} from pgconcert.session s where {ALIVE} order by s.id
"""

# Over, but nobody has noticed: the term has ended all the same.
_TERM: Final = f"""
    select a.n, t.token, t.session_id, t.uuid, t.host, t.pid, t.application, t.session_data, {seconds("t.ttl")},
           {seconds("t.started")}, case when t.until is null and {ALIVE}
                                        then {seconds(f"{OVER_AT} - clock_timestamp()")} else 0 end,
           t.data, {seconds("t.since")},
           case when t.until is not null then {seconds("t.until")} when {ALIVE} then null
                else {seconds(f"coalesce(least(s.ended, {OVER_AT}), clock_timestamp())")} end,
           case when t.until is null and ({ALIVE}) is not true then 'lost' else t.how end
"""
_TERMS: Final = f"""
    asked as materialized (
        select * from unnest($1::text[], $2::text[], $3::int8[]) with ordinality a(namespace, name, after, n)
    )
    {_TERM} from asked a
     cross join lateral (
         (select * from pgconcert.term t where t.namespace = a.namespace and t.name = a.name and a.after is null
           order by t.token desc limit 1)
         union all
         (select * from pgconcert.term t where t.namespace = a.namespace and t.name = a.name and t.token > a.after)) t
      left join pgconcert.session s on s.id = t.session_id
     order by a.n, t.token
"""

# What expired long ago is ended, what has been over for long is forgotten with all that only it needed.
_PURGE: Final = f"""
    overdue as materialized (
        select s.id from pgconcert.session s
         where (select known from age) and s.ended is null and {OVER_AT} < clock_timestamp() - make_interval(mins => 1)
         order by s.id limit {SESSIONS_AT_ONCE} for no key update skip locked
    ), ended as (
        update pgconcert.session s set ended = clock_timestamp() where s.id = any (array(select id from overdue))
    ), dead as materialized (
        select s.id, s.ended from pgconcert.session s where s.ended < clock_timestamp() - make_interval(mins => 10)
         limit {SESSIONS_AT_ONCE}
    ), members as (
        delete from pgconcert.entry where ctid = any (array(
            select e.ctid from pgconcert.entry e
             where e.kind in ('member', 'runner')
               and (e.session_id = any (array(select id from dead)) or e.session_id is null
                   and e.given_at < clock_timestamp() - make_interval(mins => 10))
             order by {SUBJECT_OF_ENTRY} limit {SESSIONS_AT_ONCE} for update skip locked)) returning token
    ), floored as (
        update pgconcert.epoch set floor = m.most from (select max(token) as most from members) m where floor < m.most
    ), entries as (
        update pgconcert.entry set session_id = null, free_at = null, release_requested = false where ctid = any (array(
            select e.ctid from pgconcert.entry e
             where e.kind not in ('member', 'runner') and e.session_id = any (array(select id from dead))
             order by {SUBJECT_OF_ENTRY} limit {SESSIONS_AT_ONCE} for no key update skip locked)) returning 1
    ), marks as (
        delete from pgconcert.waiting where ctid = any (array(
            select w.ctid from pgconcert.waiting w left join pgconcert.session s on s.id = w.session_id
             where s.id is null or s.ended is not null limit {SESSIONS_AT_ONCE}
               for update of w skip locked)) returning 1
    ), terms_lost as (
        update pgconcert.term u set until = d.ended, how = 'lost'
          from (select t.ctid, dead.ended from pgconcert.term t join dead on dead.id = t.session_id
                 where t.until is null for no key update of t skip locked) d
         where u.ctid = d.ctid
    ), terms as (
        delete from pgconcert.term where ctid = any (array(
            select t.ctid from pgconcert.term t
             where t.until < clock_timestamp() - make_interval(hours => 1)
               and exists (select from pgconcert.term l
                            where l.namespace = t.namespace and l.name = t.name and l.token > t.token)
             limit {SESSIONS_AT_ONCE} for update of t skip locked)) returning 1
    ), sessions as (
        delete from pgconcert.session where id = any (array(
            select s.id from pgconcert.session s join dead on dead.id = s.id
             where not exists (select from pgconcert.entry e where e.session_id = s.id)
               and not exists (select from pgconcert.term t where t.session_id = s.id and t.until is null)
             order by s.id for update of s skip locked)) returning 1
    )
    select greatest((select count(*) from members), (select count(*) from entries), (select count(*) from marks),
                    (select count(*) from terms), (select count(*) from sessions)) >= {SESSIONS_AT_ONCE}
"""

_EPOCH: Final = """
    moved as (
        insert into pgconcert.epoch as e (incarnation, base, epoch)
        select incarnation, 0, cast(substring(incarnation from '[0-9]+$') as int4) from age where not known
        on conflict (one) do update set incarnation = excluded.incarnation, seen_at = clock_timestamp(),
            base = case when GROWN then e.base else e.epoch end,
            epoch = excluded.epoch + case when GROWN then e.base else e.epoch end,
            floor = case when e.incarnation = '' then e.floor
                         else (cast(excluded.epoch + case when GROWN then e.base else e.epoch end as int8) << 48)
                              + cast(extract(epoch from clock_timestamp()) * 1000 as int8) end
         where e.incarnation <> excluded.incarnation
        returning epoch
    )
    select epoch from moved
""".replace(
    "GROWN",
    """substring(e.incarnation from '^(.*)[.]') = substring(excluded.incarnation from '^(.*)[.]')
       and cast(substring(e.incarnation from '[0-9]+$') as int4) < excluded.epoch""",
)


class SessionStatements(NamedTuple):
    """The statements, but those that look at entries, of which there is one for every set of filters."""

    start: Statement
    renew: Statement
    end: Statement
    take: Statement
    give: Statement
    waited: Statement
    unmark: Statement
    own: Statement
    update: Statement
    request_release: Statement
    revoke: Statement
    create_group: Statement
    delete_group: Statement
    look_at_sessions: Statement
    terms: Statement
    purge: Statement
    """Answers whether there may be more to purge."""
    epoch: Statement
    """Write down the incarnation of the server, if it is another than the row says."""


@cache
def session_statements(schema: str) -> SessionStatements:
    """The statements for a schema. Raises ``ConfigurationError`` for what can be none."""
    texts = (
        *(_START, _RENEW, _END, TAKE, _GIVE, _WAITED, _UNMARK, _OWN, _UPDATE, _REQUEST_RELEASE, _REVOKE),
        *(_CREATE_GROUP, _DELETE_GROUP, _LOOK_AT_SESSIONS, _TERMS, _PURGE, _EPOCH),
    )
    return SessionStatements(*(session_statement(text, schema) for text in texts))
