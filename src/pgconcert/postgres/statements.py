"""The SQL of links, locks and notifications, each statement with the name of what it does. No logic.

Everything is qualified or in ``pg_catalog``, because a link's ``search_path`` is empty. Batches answer with one text
value, ``{t,f,...}``, one letter a row: measured faster than rows and than ``string_agg``.
"""

from __future__ import annotations

from ..keys import AGREEMENT, GATE, INTEREST, SLOT
from .link import statement

_ONE = "from (select $1::int8 as k) t"
_MANY = "from unnest($1::int8[]) k"
_LOW_OF_K = "((k << 32) >> 32)::int4"
# The pairs that are the mark of interest in k, and its gate: ``keys.interest_pair`` and ``keys.gate_pair``.
_MARK_OF_K = f"({INTEREST << 28} | (((k >> 32) # ((k >> 60) & 15)) & 268435455))::int4, {_LOW_OF_K}"
_GATE_OF_K = f"({GATE << 28} | (((k >> 32) # ((k >> 60) & 15)) & 268435455))::int4, {_LOW_OF_K}"
# Slot s of semaphore k, and the agreement about n permits: ``keys.slot_pair`` and ``keys.agreement_pair``.
_SLOT_OF_K = f"({SLOT << 28} | (s << 18) | ((k >> 32) & 262143)::int4), {_LOW_OF_K}"
_AGREEMENT_OF_K = f"({AGREEMENT << 28} | (n << 18) | ((k >> 32) & 262143)::int4), {_LOW_OF_K}"

# What the server is. Nothing here changes anything: the connection may be somebody else's session behind a pooler.
PROBE = statement("""
    select pg_backend_pid(), pg_is_in_recovery(),
           current_setting('max_locks_per_transaction')::int8
             * (current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8),
           (select oid from pg_database where datname = current_database()),
           extract(epoch from pg_postmaster_start_time())
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

# A writer that was refused looks who refused it: if it could be a reader now, readers did, and it closes the gate.
# r: refused by readers, and the gate is closed by us; g: by readers, and the gate is somebody else's at this instant.
_TRY_OR_CLOSE_GATE = f"""
    case when pg_try_advisory_lock(k) then 't' when not pg_try_advisory_xact_lock_shared(k) then 'f'
         when pg_try_advisory_lock({_GATE_OF_K}) then 'r' else 'g' end
"""
RETRY = statement(f"select {_TRY_OR_CLOSE_GATE} {_ONE}")
RETRY_MANY = statement(f"select array_agg({_TRY_OR_CLOSE_GATE}) {_MANY}")

# Mark interest, then try. t: marked and granted; others: marked; b: not marked, a releaser is looking at this instant.
_MARK_AND_TRY = f"case when not pg_try_advisory_lock_shared({_MARK_OF_K}) then 'b' else {_TRY_OR_CLOSE_GATE} end"
MARK = statement(f"select {_MARK_AND_TRY} {_ONE}")
MARK_MANY = statement(f"select array_agg({_MARK_AND_TRY}) {_MANY}")

# The gate is ours already.
_MARK_AND_TRY_ONLY = f"""
    case when not pg_try_advisory_lock_shared({_MARK_OF_K}) then 'b' when pg_try_advisory_lock(k) then 't' else 'f' end
"""
MARK_AT_GATE = statement(f"select {_MARK_AND_TRY_ONLY} {_ONE}")
MARK_AT_GATE_MANY = statement(f"select array_agg({_MARK_AND_TRY_ONLY}) {_MANY}")

# Readers pass the gate first. t: granted, f: not, g: the gate is closed.
_TRY_SHARED = f"""
    case when not pg_try_advisory_xact_lock_shared({_GATE_OF_K}) then 'g'
         when pg_try_advisory_lock_shared(k) then 't' else 'f' end
"""
TRY_SHARED = statement(f"select {_TRY_SHARED} {_ONE}")
TRY_SHARED_MANY = statement(f"select array_agg({_TRY_SHARED}) {_MANY}")
_MARK_AND_TRY_SHARED = f"case when not pg_try_advisory_lock_shared({_MARK_OF_K}) then 'b' else {_TRY_SHARED} end"
MARK_SHARED = statement(f"select {_MARK_AND_TRY_SHARED} {_ONE}")
MARK_SHARED_MANY = statement(f"select array_agg({_MARK_AND_TRY_SHARED}) {_MANY}")
# The session is inside already: only the gate is asked.
JOIN = statement(f"select pg_try_advisory_xact_lock_shared({_GATE_OF_K}) {_ONE}")
JOIN_MANY = statement(f"select array_agg(pg_try_advisory_xact_lock_shared({_GATE_OF_K})) {_MANY}")
_MARK_AND_JOIN = f"""
    case when not pg_try_advisory_lock_shared({_MARK_OF_K}) then 'b'
         when pg_try_advisory_xact_lock_shared({_GATE_OF_K}) then 't' else 'g' end
"""
MARK_TO_JOIN = statement(f"select {_MARK_AND_JOIN} {_ONE}")
MARK_TO_JOIN_MANY = statement(f"select array_agg({_MARK_AND_JOIN}) {_MANY}")

# A writer waits behind readers of its own session.
CLOSE = statement(f"select pg_try_advisory_lock({_GATE_OF_K}) {_ONE}")
CLOSE_MANY = statement(f"select array_agg(pg_try_advisory_lock({_GATE_OF_K})) {_MANY}")

# Unlock, *then* look whether another session has marked its interest. n: was not ours; q: nobody waits; w: wake them.
# CASE fixes the order; the look is held to the end of the transaction, so nobody can mark between look and unlock.
_LOOK = f"when pg_try_advisory_xact_lock({_MARK_OF_K}) then 'q' else 'w' end"
_UNLOCK_AND_LOOK = f"case when not pg_advisory_unlock(k) then 'n' {_LOOK}"
UNLOCK = statement(f"select {_UNLOCK_AND_LOOK} {_ONE}")
UNLOCK_MANY = statement(f"select array_agg({_UNLOCK_AND_LOOK}) {_MANY}")
_UNLOCK_SHARED_AND_LOOK = f"case when not pg_advisory_unlock_shared(k) then 'n' {_LOOK}"
UNLOCK_SHARED = statement(f"select {_UNLOCK_SHARED_AND_LOOK} {_ONE}")
UNLOCK_SHARED_MANY = statement(f"select array_agg({_UNLOCK_SHARED_AND_LOOK}) {_MANY}")
_OPEN_AND_LOOK = f"case when not pg_advisory_unlock({_GATE_OF_K}) then 'n' {_LOOK}"
OPEN = statement(f"select {_OPEN_AND_LOOK} {_ONE}")
OPEN_MANY = statement(f"select array_agg({_OPEN_AND_LOOK}) {_MANY}")

UNMARK = statement(f"select pg_advisory_unlock_shared({_MARK_OF_K}) {_ONE}")
UNMARK_MANY = statement(f"select array_agg(pg_advisory_unlock_shared({_MARK_OF_K})) {_MANY}")

# Semaphores. k: which, n: permits, start: the slot to begin with, wanted: how many, ours: slots not to be asked again
# (the server would grant them twice to one session). The slots that were taken come as 3.7, none as -, and b as above.
_TAKE = f"""
    coalesce((select string_agg(s::text, '.') from (
        select s from (select (start + i) % n as s from generate_series(0, n - 1) i) c
         where case when s = any (ours::int4[]) then false else pg_try_advisory_lock({_SLOT_OF_K}) end
         limit wanted) taken), '-')
"""
_TAKES = "from unnest($1::int8[], $2::int4[], $3::int4[], $4::int4[], $5::text[]) q(k, n, start, wanted, ours)"
TAKE = statement(f"select array_agg({_TAKE}) {_TAKES}")
MARK_SLOTS = statement(
    f"select array_agg(case when not pg_try_advisory_lock_shared({_MARK_OF_K}) then 'b' else {_TAKE} end) {_TAKES}"
)
GIVE = statement(f"""
    select array_agg(case when not (select bool_and(pg_advisory_unlock({_SLOT_OF_K})) from unnest(slots::int4[]) s)
                          then 'n' {_LOOK})
      from unnest($1::int8[], $2::text[]) q(k, slots)
""")
_AGREEMENTS = "from unnest($1::int8[], $2::int4[]) q(k, n)"
# d: somebody has agreed to another number, and nothing was taken; t: taken.
AGREE = statement(f"""
    select array_agg(case when exists (
        select from pg_locks l
         where l.locktype = 'advisory' and l.granted and l.objsubid = 2
           and l.database = (select datid from pg_stat_get_activity(pg_backend_pid()))
           and l.classid::int8 >> 28 = {AGREEMENT} and l.classid::int8 & 262143 = (k >> 32) & 262143
           and l.objid::int8 = k & 4294967295 and (l.classid::int8 >> 18) & 1023 <> n
    ) then 'd' when pg_try_advisory_lock_shared({_AGREEMENT_OF_K}) then 't' end) {_AGREEMENTS}
""")
LEAVE = statement(f"select array_agg(pg_advisory_unlock_shared({_AGREEMENT_OF_K})) {_AGREEMENTS}")
# All who hold an agreement about a semaphore, given the fifty bits that its pairs have of the key.
AGREED = statement(f"""
    select l.classid::int8, l.objid::int8, l.objsubid, l.pid, a.application_name
      from pg_locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.database = $1::oid and l.objsubid = 2
       and l.classid::int8 >> 28 = {AGREEMENT} and l.classid::int8 & 262143 = $2::int8 and l.objid = $3::oid
     order by l.pid
""")

# What this session really holds, after a statement failed half-way. It must work when the lock table is full, so it
# touches no shared catalogue, which could not be locked then.
HELD_BY_US = statement("""
    select classid::int8, objid::int8, objsubid, pid, null, mode from pg_locks
     where locktype = 'advisory' and granted and pid = pg_backend_pid()
""")
LOCKS_ON_SERVER = statement("select count(*) from pg_locks where locktype = 'advisory'")

HOLDERS = statement("""
    select l.classid::int8, l.objid::int8, l.objsubid, l.pid, a.application_name, l.mode
      from pg_locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.database = $1::oid
       and l.classid = $2::oid and l.objid = $3::oid and l.objsubid = 1
     order by l.pid
""")
SLOT_HOLDERS = statement(f"""
    select l.classid::int8, l.objid::int8, l.objsubid, l.pid, a.application_name, l.mode
      from pg_locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.database = $1::oid and l.objsubid = 2
       and l.classid::int8 >> 28 = {SLOT} and l.classid::int8 & 262143 = $2::int8 and l.objid = $3::oid
     order by l.pid
""")
# Every advisory lock of this database: holders of keys and marks of interest, for the graph of who waits for whom.
ALL_LOCKS = statement("""
    select l.classid::int8, l.objid::int8, l.objsubid, l.pid, a.application_name, l.mode
      from pg_locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and l.granted and l.database = $1::oid limit 5000
""")

NOTIFY = statement("select pg_notify($1, $2)")
NOTIFY_MANY = statement("select count(pg_notify(c, p)) from unnest($1::text[], $2::text[]) t(c, p)")
NOTIFY_MANY_ON_ONE = statement("select count(pg_notify($1, p)) from unnest($2::text[]) p")

QUEUE_USAGE = statement("select pg_notification_queue_usage()")
# Who may hold up the queue: whoever listens reads it only between its transactions, and only while its client reads.
# $1 is who the server has named, if it has; else the best guess comes first. Of other roles' sessions a plain role sees
# no state, not even whether there is a transaction.
QUEUE_BLOCKER = statement("""
    select application_name, pid, state, wait_event,
           extract(epoch from clock_timestamp() - coalesce(xact_start, state_change))::int8,
           case when datname <> current_database() then datname end
      from pg_stat_activity
     where pid = $1::int4 or (
           backend_type = 'client backend' and pid <> pg_backend_pid()
           and (xact_start is not null or wait_event = 'ClientWrite'))
     order by pid is distinct from $1::int4, state not like 'idle in transaction%',
              wait_event is distinct from 'ClientWrite', xact_start
     limit 1
""")
