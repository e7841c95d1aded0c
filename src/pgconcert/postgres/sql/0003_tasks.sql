-- Version 3. Queues of tasks, and who runs them.

-- What is finished leaves, so a queue is as large as what is still to be done. Where session_id is null, nobody has the
-- task; where it is -s, it is assigned to the session s; where it is s, that has started it. What is dead waits for
-- people, and no index for work contains it.
create table pgconcert.task (
    id bigint generated always as identity primary key,
    namespace text collate "C" not null,
    queue text collate "C" not null,
    session_id bigint,
    run_at timestamptz not null,
    attempt smallint not null default 0,
    attempts smallint not null,
    dead boolean not null default false,
    created timestamptz not null default clock_timestamp(),
    payload bytea not null,
    error text
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 5000,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000
);

create index task_free on pgconcert.task (namespace, queue, run_at, id) where session_id is null and not dead;

create index task_held on pgconcert.task (namespace, queue, session_id) where session_id is not null;

create index task_dead on pgconcert.task (namespace, queue, run_at, id) where dead;

-- What is finished and shall still be looked at for a while.
create table pgconcert.task_finished (
    namespace text collate "C" not null,
    queue text collate "C" not null,
    run_at timestamptz not null,
    id bigint not null,
    session_id bigint not null,
    attempt smallint not null,
    attempts smallint not null,
    created timestamptz not null,
    finished timestamptz not null,
    keep_until timestamptz not null,
    payload bytea not null,
    error text,
    primary key (namespace, queue, run_at, id)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 20000,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 20000
);

create index task_finished_keep_until on pgconcert.task_finished (keep_until);

-- Those that live are counted at every pick-up, however many are over and not yet forgotten.
create index entry_runner on pgconcert.entry (namespace, name, session_id)
    where kind = 'runner' and session_id is not null;

insert into pgconcert.version (version) values (3);
