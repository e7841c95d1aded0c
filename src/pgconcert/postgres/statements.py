"""The SQL of links, locks and notifications, each statement with the name of what it does. No logic.

Everything is qualified or in ``pg_catalog``, because a link's ``search_path`` is empty. Batches answer with one text
value, ``{t,f,...}``, one letter a row: measured faster than rows and than ``string_agg``.
"""

from __future__ import annotations

from .link import statement

_MARK = "from unnest($1::int8[], $2::int4[], $3::int4[]) t(k, a, b)"

# What the server is. Nothing here changes anything: the connection may be somebody else's session behind a pooler.
PROBE = statement("""
    select pg_backend_pid(), pg_is_in_recovery(),
           current_setting('max_locks_per_transaction')::int8
             * (current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8),
           (select oid from pg_database where datname = current_database())
""")
INCARNATION = statement("""
    select system_identifier,
           case when pg_is_in_recovery() then null else pg_walfile_name(pg_current_wal_lsn()) end
      from pg_control_system()
""")
BACKEND_PID = statement("select pg_backend_pid()")
BEGIN = statement("begin")
ROLLBACK = statement("rollback")
SET = statement("select set_config($1, $2, false)")
PING = statement("select 1")

# t: granted, f: not
TRY = statement("select pg_try_advisory_lock($1)")
TRY_MANY = statement("select array_agg(pg_try_advisory_lock(k)) from unnest($1::int8[]) k")

# Mark interest, then try. t: marked and granted; f: marked; b: not marked, a releaser is looking at this instant.
MARK = statement("""
    select case when not pg_try_advisory_lock_shared($2, $3) then 'b'
                when pg_try_advisory_lock($1) then 't' else 'f' end
""")
MARK_MANY = statement(f"""
    select array_agg(case when not pg_try_advisory_lock_shared(a, b) then 'b'
                          when pg_try_advisory_lock(k) then 't' else 'f' end) {_MARK}
""")

# Unlock, *then* look whether another session has marked its interest. n: was not ours; q: nobody waits; w: wake them.
# CASE fixes the order; the look is held to the end of the transaction, so nobody can mark between look and unlock.
UNLOCK = statement("""
    select case when not pg_advisory_unlock($1) then 'n'
                when pg_try_advisory_xact_lock($2, $3) then 'q' else 'w' end
""")
UNLOCK_MANY = statement(f"""
    select array_agg(case when not pg_advisory_unlock(k) then 'n'
                          when pg_try_advisory_xact_lock(a, b) then 'q' else 'w' end) {_MARK}
""")

UNMARK = statement("select pg_advisory_unlock_shared($1, $2)")
UNMARK_MANY = statement("""
    select array_agg(pg_advisory_unlock_shared(a, b)) from unnest($1::int4[], $2::int4[]) t(a, b)
""")

# What this session really holds, after a statement failed half-way. It must work when the lock table is full, so it
# touches no shared catalogue, which could not be locked then.
HELD_BY_US = statement("""
    select classid::int8, objid::int8, objsubid from pg_locks
     where locktype = 'advisory' and granted and pid = pg_backend_pid()
""")
LOCKS_ON_SERVER = statement("select count(*) from pg_locks where locktype = 'advisory'")

HOLDER = statement("""
    select l.pid, a.application_name from pg_locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.database = $1::oid
       and l.classid = $2::oid and l.objid = $3::oid and l.objsubid = 1
     order by l.pid limit 1
""")
# Every advisory lock of this database: holders of keys and marks of interest, for the graph of who waits for whom.
ALL_LOCKS = statement("""
    select l.classid::int8, l.objid::int8, l.objsubid, l.pid, a.application_name
      from pg_locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.database = $1::oid limit 5000
""")

NOTIFY = statement("select pg_notify($1, $2)")
NOTIFY_MANY = statement("select count(pg_notify(c, p)) from unnest($1::text[], $2::text[]) t(c, p)")
