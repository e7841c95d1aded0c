"""The SQL of links, locks and notifications, each statement with the name of what it does. No logic.

Everything is qualified or in ``pg_catalog``, because a link's ``search_path`` is empty. Batches answer with one text
value, ``{t,f,...}``, one letter a row: measured faster than rows and than ``string_agg``.
"""

from __future__ import annotations

from .link import statement

_ONE = "from (select $1::int8 as k) t"
_MANY = "from unnest($1::int8[]) k"
# The pair that marks interest in k, as ``keys.interest_pair`` computes it.
_MARK_OF_K = "(268435456 | (((k >> 32) # ((k >> 60) & 15)) & 268435455))::int4, ((k << 32) >> 32)::int4"

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
_MARK_AND_TRY = f"""
    case when not pg_try_advisory_lock_shared({_MARK_OF_K}) then 'b'
         when pg_try_advisory_lock(k) then 't' else 'f' end
"""
MARK = statement(f"select {_MARK_AND_TRY} {_ONE}")
MARK_MANY = statement(f"select array_agg({_MARK_AND_TRY}) {_MANY}")

# Unlock, *then* look whether another session has marked its interest. n: was not ours; q: nobody waits; w: wake them.
# CASE fixes the order; the look is held to the end of the transaction, so nobody can mark between look and unlock.
_UNLOCK_AND_LOOK = f"""
    case when not pg_advisory_unlock(k) then 'n'
         when pg_try_advisory_xact_lock({_MARK_OF_K}) then 'q' else 'w' end
"""
UNLOCK = statement(f"select {_UNLOCK_AND_LOOK} {_ONE}")
UNLOCK_MANY = statement(f"select array_agg({_UNLOCK_AND_LOOK}) {_MANY}")

UNMARK = statement(f"select pg_advisory_unlock_shared({_MARK_OF_K}) {_ONE}")
UNMARK_MANY = statement(f"select array_agg(pg_advisory_unlock_shared({_MARK_OF_K})) {_MANY}")

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
