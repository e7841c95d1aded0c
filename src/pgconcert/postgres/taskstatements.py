"""The statements about tasks, for queues and for tables alike (``taskclauses.py``). No logic.

Theory. A turn is one statement, made of the parts that are needed (``PARTS``), under one snapshot:

* ``me``: our session, if it is alive. Everything else does nothing without it. It is enough that it has not ended and
  that its time, as it stands in its row, is ahead: who has not been renewed since the server changed asks others for
  nothing, though they would leave it a grace.
* *Reports* change rows that are started by ``me``, and no others; their newest versions count. Nobody else touches such
  a row while we live. Whoever does because we are over holds its lock for a moment: then the report waits, and finds
  that the row is not ours.
* *Pick-up*. The snapshot is what is counted: ``runners`` that live, what is held, and what is free and due, the latter
  two as far as the bound; what the reports have taken away in this statement is subtracted. Who has something is found
  by jumping from one number to the next through the index of sessions (``holders``), so it costs as much as there are
  holders. Those among them that are missing in this snapshot, or ended, are dead; those whose time is over are ended
  first, under the lock of their row, where the time is looked at again on its newest version.
* What is taken (``orphans`` of the dead first, then ``fresh``) is locked, and what others have locked is skipped. A
  locked row has its newest version, for which the server asks all conditions again: whose session is dead is a list by
  then, which does not change, and holds only those that never come back.

No row is changed by two parts of one statement, which the server would not refuse, and not do: reports are about rows
that are started by ``me``, starts about those assigned to ``me``, and what is picked up is free or of the dead.

Plans must not depend on how large the tables were when the server made them, so it is left no choice. Lists of ids
stand as arrays (``any (array(...))``), which are asked once, also where a condition is asked again; beside them the
session stands in a form that no index has (``coalesce``), so that only the index of ids can be used. What belongs to
somebody is found owner by owner (``lateral``), each by the index of sessions; nothing else has the order in which it is
then wanted (``t.SESSION + 0``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

from .sessionclauses import OVER_AT
from .taskclauses import Rows

__all__ = ["MOVE", "PARTS", "RECALL", "RELEASE", "SHARES", "Part", "turn_text"]

Part = Literal["finished", "kept", "failed", "released", "start", "pick"]
PARTS: Final[tuple[Part, ...]] = ("finished", "kept", "failed", "released", "start", "pick")

_SWEPT_AT_ONCE: Final = 500
_LEFT_BEHIND: Final = "its session was over before the last attempt had ended"

_LIVES: Final = f"(s.ended is null and (s.expires > clock_timestamp() or {OVER_AT} > clock_timestamp()))"
"""As ``ALIVE``, but nobody asks which incarnation it is while the time in the row is ahead."""

_ME: Final = """
    me as materialized (
        select s.id, l.now from (select clock_timestamp() as now from SETTINGS) l cross join lateral (
            select s.id from pgconcert.session s
             where s.id = $session and s.ended is null and s.expires > l.now offset 0) s
    )
"""
_OURS: Final = "SCOPE and coalesce(t.SESSION, 0) = (select id from me)"

_BOTH_OF_ME: Final = "unnest(array(select id from me union all select -id from me)) w(owner)"

_DELETED: Final = f", finished as (delete from TASKS where t.ID = any ($finished) and {_OURS} returning RETURNED)"
_KEPT: Final = """
    , kept as (
        insert into pgconcert.task_finished (namespace, queue, run_at, id, session_id, attempt, attempts, created,
                                             finished, keep_until, payload, error)
        select f.namespace, f.queue, f.run_at, f.id, f.session_id, f.attempt, f.attempts, f.created, n.now,
               n.now + make_interval(secs => $retention), f.payload, f.error
          from finished f cross join (select clock_timestamp() as now) n
    )
"""
_UPDATED: Final = f"""
    , finished as (
        update TASKS set FINISH, SESSION = null where t.ID = any ($finished) and {_OURS} returning t.ID as id
    )
"""
_FAILED: Final = f"""
    , failed as (
        update TASKS set session_id = null, dead = t.attempt >= t.attempts, error = f.error,
               run_at = clock_timestamp() + make_interval(secs => f.retry_in)
          from unnest($failed, $errors, $retries) f(id, error, retry_in)
         where t.id = any ($failed) and t.id = f.id and {_OURS} returning t.id, t.dead
    )
"""
_FAILED_ROWS: Final = f"""
    , failed as (
        update TASKS set SESSION = (select -id from me) where t.ID = any ($failed) and {_OURS} returning t.ID as id
    )
"""
_RELEASED: Final = f"""
    , released as (
        update TASKS set SESSION = null UNCOUNTED where t.ID = any ($released) and {_OURS} returning t.ID as id
    )
"""
_START: Final = """
    , begun as (
        update TASKS set SESSION = (select id from me) COUNTED
         where t.ID = any ($start) and SCOPE and coalesce(t.SESSION, 0) = (select -id from me) and OPEN
        returning t.ID::text as id, 0::int8 as n, ATTEMPT as attempt COLUMNS
    )
"""

_RUNNERS: Final = f"""
    select e.session_id as id, s.id is null or s.ended is not null as gone, {_LIVES} as alive
      from pgconcert.entry e
      left join lateral (select * from pgconcert.session s where s.id = e.session_id offset 0) s on true
     where e.kind = 'runner' and e.namespace = $runner_namespace and e.name = $runner and e.session_id is not null
"""
_PICK: Final = f"""
    , runners as materialized (
        {_RUNNERS} and (select id from me) is not null
    ), forgotten as (
        update pgconcert.entry
           set session_id = null, free_at = null, release_requested = false, given_at = clock_timestamp()
         where ctid = any (array(
             select e.ctid from pgconcert.entry e
              where e.kind = 'runner' and e.namespace = $runner_namespace and e.name = $runner
                and e.session_id = any (array(select id from runners where gone limit {_SWEPT_AT_ONCE}))
              order by e.member for no key update skip locked))
    ), holder(session) as (
        (select t.SESSION from TASKS where SCOPE and t.SESSION is not null and (select id from me) is not null
          order by t.SESSION limit 1)
         union all
        select (select t.SESSION from TASKS where SCOPE and t.SESSION > h.session order by t.SESSION limit 1)
          from holder h where h.session is not null
    ), holders as materialized (
        select h.id, s.id is null or s.ended is not null as gone, {_LIVES} as alive
          from (select distinct abs(session) as id from holder where session is not null) h
          left join lateral (select * from pgconcert.session s where s.id = h.id offset 0) s on true
    ), stale as materialized (
        select s.id from pgconcert.session s
         where s.id = any (array(select id from holders where not gone and not alive))
           and s.ended is null and {OVER_AT} <= clock_timestamp()
         order by s.id for no key update skip locked
    ), ended as (
        update pgconcert.session s set ended = clock_timestamp() where s.id = any (array(select id from stale))
        returning s.id
    ), dead as materialized (
        select id from holders where gone union all select id from ended
    ), bounds as materialized (
        select count(distinct id) filter (where alive) as sessions,
               greatest(count(distinct id) filter (where alive), 1) as parts,
               greatest(count(distinct id) filter (where alive), 1) * nullif($most, -1) as bound
          from runners
    ), counted as materialized (
        select sessions, parts, greatest(mine - GONE, 0) as mine, least(held - GONE + free, bound) as outstanding
          from (select b.*,
                       (select count(*) from (
                           select from {_BOTH_OF_ME} cross join lateral (
                               select from TASKS where SCOPE and t.SESSION = w.owner and OPEN offset 0) o
                            limit (select bound from bounds) + $resting + GONE) q) as mine,
                       (select count(*) from (
                           select from TASKS where SCOPE and t.SESSION is not null and OPEN
                            order by t.SESSION limit (select bound from bounds) + GONE) q) as held,
                       (select count(*) from (
                           select from TASKS where SCOPE and FREE and DUE limit (select bound from bounds)) q) as free
                  from bounds b) c
    ), shares as materialized (
        select c.sessions, c.outstanding, p.share,
               case when (select id from me) is null then 0
                    else greatest(p.share - greatest(c.mine - $resting, 0), 0) end as need
          from counted c cross join lateral (select (c.outstanding + c.parts - 1) / c.parts as share) p
    ), orphans as materialized (
        select o.id, o.worn
          from (select id, id as owner from dead union all select id, -id from dead order by 1, 2 desc) w
         cross join lateral (
             select t.ID as id, WORN as worn from TASKS where SCOPE and t.SESSION = w.owner and OPEN
              order by t.SESSION + 0, ORDER for no key update of t skip locked) o
         limit coalesce((select need from shares), 0)
    ), fresh as materialized (
        select t.ID as id from TASKS where SCOPE and FREE and DUE
         order by ORDER limit coalesce((select need from shares), 0) - (select count(*) from orphans where not worn)
           for no key update of t skip locked
    ), picked as materialized (
        select q.id, row_number() over () as n
          from (select id from orphans where not worn union all select id from fresh) q
    ), handed as (
        update TASKS set SESSION = (select id from me) COUNTED
         where t.ID = any (array(select id from picked where n <= $begin))
        returning t.ID as id, ATTEMPT as attempt COLUMNS
    ), assigned as (
        update TASKS set SESSION = (select -id from me) where t.ID = any (array(select id from picked where n > $begin))
        returning t.ID as id
    )
"""
# What has had all its attempts is given to nobody any more.
_WORN: Final = f"""
    , worn as (
        update TASKS set session_id = null, dead = true, error = '{_LEFT_BEHIND}'
         where t.id = any (array(select id from orphans where worn)) returning t.id
    )
"""
# What the application itself has done meanwhile is nobody's; else the dead would be looked at for ever.
_SWEPT: Final = f"""
    , swept as (
        update TASKS set SESSION = null where t.ID = any (array(
            select o.id from (select id as owner from dead union all select -id from dead) w cross join lateral (
                select t.ID as id from TASKS where t.SESSION = w.owner and (OPEN) is not true
                   for no key update of t skip locked) o
             limit {_SWEPT_AT_ONCE}))
    )
"""
_NEXT_IN: Final = """
    (select extract(epoch from t.run_at - (select now from me)) from TASKS
      where SCOPE and FREE and t.run_at > (select now from me) order by t.run_at limit 1)
"""

RECALL: Final = f"""
    {_ME}, ours as materialized (
        select t.ID as id from TASKS
         where t.ID = any (array(
             select o.id from {_BOTH_OF_ME} cross join lateral (
                 select t.ID as id from TASKS
                  where SCOPE and t.SESSION = w.owner and OPEN and t.ID <> all ($keep) offset 0) o))
           and coalesce(t.SESSION, 0) = any (array(select owner from {_BOTH_OF_ME}))
         order by ORDER for no key update of t
    ), recalled as (
        update TASKS set SESSION = (select -id from me) UNCOUNTED where t.ID = any (array(select id from ours))
    )
    select id::text from ours
"""
"""All that is ours but ``keep``, assigned again. An id in a row, in order."""

MOVE: Final = f"""
    {_ME}, asked as materialized (
        select * from unnest($givers, $counts) a(giver, most)
         where giver <> (select id from me) and giver > 0 and most > 0 order by giver
    ), moving as materialized (
        select m.id from asked a cross join lateral (
            select o.id
              from (select t.ID as id, row_number() over (order by t.SESSION + 0, ORDER) as n from TASKS
                     where SCOPE and t.SESSION = -a.giver and OPEN) o
             order by o.n desc limit a.most) m
    ), locked as materialized (
        select t.ID as id from TASKS
         where t.ID = any (array(select id from moving)) and SCOPE and OPEN
           and coalesce(t.SESSION, 0) = any (array(select -giver from asked))
         order by ORDER for no key update of t skip locked
    ), moved as (
        update TASKS set SESSION = (select -id from me) where t.ID = any (array(select id from locked))
        returning t.ID as id
    )
    select id::text from locked
"""
"""Assigned tasks of others, the last first, are ours. An id in a row, in order."""

RELEASE: Final = """
    ours as materialized (
        select o.id from unnest(array[$session, -$session]) w(owner) cross join lateral (
            select t.ID as id from TASKS where SCOPE and t.SESSION = w.owner for no key update of t) o
         where (select count(*) from limits) > 0
    ), released as (
        update TASKS set SESSION = null UNCOUNTED where t.ID = any (array(select id from ours)) returning 1
    )
    select count(*) from released
"""
"""Everything that a session has is free. How many."""

SHARES: Final = f"""
    runners as materialized ({_RUNNERS})
    select r.id,
           (select count(*) from TASKS where SCOPE and t.SESSION = -r.id and OPEN),
           (select count(*) from TASKS where SCOPE and t.SESSION = r.id and OPEN)
      from (select distinct id from runners where alive) r order by r.id
"""
"""Of each living runner what is assigned to it, and what it has started."""


def turn_text(parts: Collection[Part], rows: Rows) -> str:
    """A turn with these parts. Its rows: a letter, an id, a place, the attempt, and what was read of the task.

    *b*: begun, of those in ``start``; *h*: picked up and handed out; *a*: assigned; *r*: refused; *d*: dead now; one
    *s*: whether the session is alive, and, after a pick-up how many sessions, outstanding, share, and next_in."""
    queue = rows.counts
    kept = queue and "kept" in parts
    text = [_ME]
    answers: list[str] = []
    gone: list[str] = []
    read = "".join(f", q.c{place}" for place in range(1, len(rows.columns) + 1))
    if "start" in parts:
        text.append(_START)
        answers.append(f"select 'b' as k, q.id, q.n, q.attempt {read} from begun q")
    if "pick" in parts:
        answers.append(f"select 'h', q.id::text, p.n, q.attempt {read} from handed q join picked p on p.id = q.id")
        answers.append("select 'a', q.id::text, p.n, 0 NOTHING from assigned q join picked p on p.id = q.id")
    if "finished" in parts:
        deleted = _DELETED.replace("RETURNED", "t.*" if kept else "t.ID as id")
        text.append(deleted if queue or rows.words["FINISH"].strip().lower() == "delete" else _UPDATED)
        gone.append("finished")
    if kept:
        text.append(_KEPT)
    if "failed" in parts:
        text.append(_FAILED if queue else _FAILED_ROWS)
        if queue:
            gone.append("failed")
            answers.append("select 'd', q.id::text, 0, 0 NOTHING from failed q where q.dead")
    if "released" in parts:
        text.append(_RELEASED)
        gone.append("released")
    answers += [
        f"select 'r', q.id::text, 0, 0 NOTHING from unnest(${part}) q(id) where q.id not in (select id from {part})"
        for part in ("finished", "failed", "released")
        if part in parts
    ]
    summary = "case when exists (select from me) then 't' else 'f' end"
    if "pick" in parts:
        counts = " + ".join(f"(select count(*) from {part})" for part in gone) or "0"
        text.append(_PICK.replace("GONE", f"({counts})"))
        text.append(_WORN if queue else _SWEPT)
        if queue:
            answers.append("select 'd', q.id::text, 0, 0 NOTHING from worn q")
        next_in = _NEXT_IN if queue else "null"
        summary = f"concat_ws(',', {summary}, c.sessions, c.outstanding, c.share, {next_in})"
    answers.append(f"select 's', {summary}, 0, 0 NOTHING {'from shares c' if 'pick' in parts else ''}")
    return f"{''.join(text)} {' union all '.join(answers)}"
