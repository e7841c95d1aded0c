"""The statement that takes entries for sessions. No logic.

Theory. It carries many takes, of which no two have the same subject, and reads once, under one snapshot, how each entry
stands (``seen``). Only what can be had is locked, in the order of names, and what is locked by others is skipped, so
losers write nothing and nobody waits. A locked row has its newest version, which may name another session than the
snapshot does; so it is judged anew:

* it hangs on no session and ``free_at`` is not ahead, or on the session that asks: free;
* on a session that is over but not ended (``stale``): the row of that session is locked, where the time is looked at
  again on its newest version; if it is over there too, it is ended, and what hung on it is free. A renewal that came
  first makes the take fail; a renewal that comes later finds an ended session;
* on a session that is ended in the snapshot: free, because what has ended stays so;
* on a session that is missing in the snapshot: free only if the snapshot of the entry names it too. Otherwise it was
  started after the snapshot.

An entry that was never there is inserted; whoever comes second gets nothing and asks again. An insert waits for those
who are inserting the name, and for those who have changed it and not committed. So all inserts come first, in the order
of names, and only then is what was locked changed: whoever waits has nothing that an insert waits for.

What is won loses its mark, unless that is to be kept. If the mark is locked (by an earlier statement of its session,
which nobody hears any more), the name is not won now. Nothing is granted to a session that is not alive, nor while the
incarnation of the server is unknown to the row of ``epoch``.
"""

from __future__ import annotations

from typing import Final

from .sessionclauses import ALIVE, ENTRY, OF_ENTRY, OVER_AT, SUBJECT, seconds

__all__ = ["TAKE"]

_OF_MARK: Final = "w.kind = a.kind and w.namespace = a.namespace and w.name = a.name and w.member = a.member"
_OF_SEEN: Final = _OF_MARK.replace("a.", "v.")
_NEW: Final = "(a.able and a.state = 'new' and a.preferred_until is null)"
_MARK_IS_OURS: Final = "(a.marked is null or a.keep or a.n in (select n from marks))"

TAKE: Final = f"""
    asked as materialized (
        select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::bool[], $7::bool[],
                             $8::bool[], $9::float8[], $10::text[])
                 with ordinality a(kind, namespace, name, member, session, mark, keep, wish, least, data, n)
    ), mine as materialized (
        select s.* from pgconcert.session s where s.id = any ($5::int8[]) and {ALIVE}
    ), seen as materialized (
        select a.*, me.id is not null and (select known from age) as able,
               e.session_id as holder, e.token as token_seen, e.release_requested, e.preferred as holder_preferred,
               w.preferred as marked, p.until as preferred_until, e.free_at,
               s.uuid, s.host, s.pid, s.application, s.data as session_data, s.ttl, s.started, o.over_at,
               least(s.ended, o.over_at) as ended_at,
               case when e.token is null then 'new'
                    when e.session_id is null and e.free_at > clock_timestamp() then 'resting'
                    when e.session_id is null then 'free'
                    when e.session_id = a.session then 'ours'
                    when s.id is null then 'missing'
                    when s.ended is not null then 'ended'
                    when o.over_at > clock_timestamp() then 'held'
                    else 'stale' end as state
          from asked a
          left join mine me on me.id = a.session
          left join {ENTRY} on true
          left join lateral (select * from pgconcert.session s where s.id = e.session_id offset 0) s
                 on true
          left join lateral (select {OVER_AT} as over_at where s.id is not null) o on true
          left join lateral (select w.preferred from pgconcert.waiting w
                              where {_OF_MARK} and w.session_id = a.session offset 0) w on true
          left join lateral (
              select max({OVER_AT}) as until
                from pgconcert.waiting w join pgconcert.session s on s.id = w.session_id
               where a.kind = 'election' and not a.wish and w.preferred and {_OF_MARK} and w.session_id <> a.session
                 and {ALIVE}) p on true
    ), locked as materialized (
        select a.n, a.session, a.holder, a.state, l.session_id, l.token, l.free_at
          from (select * from seen where able and (state = 'ours' or preferred_until is null
                                                   and state in ('free', 'missing', 'ended', 'stale'))
                 order by kind, namespace, name, member) a
         cross join lateral (select e.session_id, e.token, e.free_at from pgconcert.entry e where {OF_ENTRY}
                                for no key update skip locked) l
    ), stale as materialized (
        select s.id from pgconcert.session s
         where s.id = any (array(select session_id from locked where session_id <> session))
           and s.ended is null and {OVER_AT} <= clock_timestamp()
         order by s.id for no key update skip locked
    ), ended as (
        update pgconcert.session s set ended = clock_timestamp() where s.id = any (array(select id from stale))
        returning s.id
    ), free as materialized (
        select n from locked
         where session_id is null and (free_at is null or free_at <= clock_timestamp())
            or session_id = session
            or session_id in (select id from ended)
            or session_id = holder and state in ('missing', 'ended')
    ), marks as materialized (
        select a.n from (select * from seen a where marked is not null and not keep
                                                and (a.n in (select n from free) or {_NEW})) a
         cross join lateral (select from pgconcert.waiting w where {_OF_MARK} and w.session_id = a.session
                                for update skip locked) l
    ), inserted as (
        insert into pgconcert.entry as e
               (kind, namespace, name, member, session_id, token, since, free_at, data, preferred)
        select {SUBJECT}, a.session, (select greatest(floor, cast(epoch as int8) << 48) + 1 from age),
               clock_timestamp(), clock_timestamp() + make_interval(secs => nullif(a.least, 0)), a.data, a.wish
          from seen a where {_NEW} and {_MARK_IS_OURS} order by {SUBJECT}
        on conflict do nothing
        returning e.kind, e.namespace, e.name, e.member, e.token, e.since
    ), updated as (
        update pgconcert.entry e
           set session_id = a.session,
               token = greatest(e.token, (select floor from age), cast((select epoch from age) as int8) << 48) + 1,
               since = clock_timestamp(), free_at = clock_timestamp() + make_interval(secs => nullif(a.least, 0)),
               data = a.data, preferred = a.wish, given = false, given_at = null, release_requested = false
          from seen a where (select count(*) from inserted) >= 0
           and a.n in (select n from free) and {_MARK_IS_OURS} and {OF_ENTRY}
        returning a.n, e.token, e.since
    ), won as materialized (
        select a.n, e.token, e.since from seen a join inserted e on {OF_ENTRY}
         union all
        select * from updated
    ), marks_left as (
        insert into pgconcert.waiting (kind, namespace, name, member, session_id, preferred)
        select {SUBJECT}, a.session, a.wish from seen a
         where a.able and a.mark and a.marked is null and a.n not in (select n from won)
         order by {SUBJECT}
        on conflict do nothing
    ), marks_changed as (
        update pgconcert.waiting w set preferred = v.wish from seen v
         where v.able and v.mark and v.marked <> v.wish and v.n not in (select n from won)
           and {_OF_SEEN} and w.session_id = v.session
    ), marks_removed as (
        delete from pgconcert.waiting w using seen v
         where v.n in (select n from marks) and v.n in (select n from won) and {_OF_SEEN} and w.session_id = v.session
    ), terms_ended as (
        update pgconcert.term t
           set until = case when l.session_id = a.holder then coalesce(least(a.ended_at, clock_timestamp()),
                                                                       clock_timestamp())
                            else clock_timestamp() end,
               how = case when l.session_id = l.session then 'released' else 'lost' end
          from seen a join locked l on l.n = a.n
         where a.kind = 'election' and a.n in (select n from won) and t.namespace = a.namespace and t.name = a.name
           and t.token = l.token and t.until is null
    ), terms_begun as (
        insert into pgconcert.term (namespace, name, token, session_id, uuid, ttl, host, pid, application, session_data,
                                    started, data, since)
        select a.namespace, a.name, g.token, s.id, s.uuid, s.ttl, s.host, s.pid, s.application, s.data, s.started,
               a.data, g.since
          from won g join seen a on a.n = g.n join mine s on s.id = a.session where a.kind = 'election'
    )
    select (select known from age), a.able, g.token, {seconds("g.since")}, a.marked is not null,
           case when a.state = 'held' then greatest({seconds("a.over_at - clock_timestamp()")}, 0)
                when a.state = 'resting' then greatest({seconds("a.free_at - clock_timestamp()")}, 0)
                when a.preferred_until is not null
                then greatest({seconds("a.preferred_until - clock_timestamp()")}, 0)
                else 0 end,
           case when a.state = 'held' and a.wish and not a.holder_preferred and not a.release_requested
                     and a.kind = 'election'
                then a.token_seen end,
           case when a.state = 'held' then a.holder end, a.uuid, a.host, a.pid, a.application, a.session_data,
           {seconds("a.ttl")}, {seconds("a.started")}, {seconds("a.over_at - clock_timestamp()")}
      from seen a left join won g on g.n = a.n order by a.n
"""
