-- Version 2. Sessions, rows with a time to live, and what hangs on them.

-- Nothing refers to anything by a foreign key, because its checks would lock the hottest rows. When a session is over is
-- not indexed, because every heartbeat moves it; and a row whose indexed columns stay gets its new version on its own
-- page, for which half of it is left free. Vacuum comes early, because the rows are few and change often.
create table pgconcert.session (
    id bigint primary key,
    uuid text not null,
    ttl interval not null,
    expires timestamptz not null,
    ended timestamptz,
    revision bigint not null default 0,
    incarnation text not null,
    host text not null,
    pid integer not null,
    application text not null,
    data text,
    started timestamptz not null default clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

create sequence pgconcert.session_number;

-- A row that has given a token stays for ever, but those of members, which are forgotten a while after they have left.
create table pgconcert.entry (
    kind text collate "C" not null,
    namespace text collate "C" not null,
    name text collate "C" not null,
    member text collate "C" not null default '',
    session_id bigint,
    token bigint not null default 0,
    since timestamptz,
    free_at timestamptz,
    data text,
    preferred boolean not null default false,
    given boolean not null default false,
    given_at timestamptz,
    release_requested boolean not null default false,
    primary key (kind, namespace, name, member)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

create index entry_session on pgconcert.entry (session_id) where session_id is not null;

create table pgconcert.waiting (
    kind text collate "C" not null,
    namespace text collate "C" not null,
    name text collate "C" not null,
    member text collate "C" not null default '',
    session_id bigint not null,
    preferred boolean not null default false,
    since timestamptz not null default clock_timestamp(),
    primary key (kind, namespace, name, member, session_id)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- Who led, with the session as it was then.
create table pgconcert.term (
    namespace text collate "C" not null,
    name text collate "C" not null,
    token bigint not null,
    session_id bigint not null,
    uuid text not null,
    ttl interval not null,
    host text not null,
    pid integer not null,
    application text not null,
    session_data text,
    started timestamptz not null,
    data text,
    since timestamptz not null,
    until timestamptz,
    how text,
    primary key (namespace, name, token)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- One row. The incarnation of the server that was seen last, what the high bits of its tokens are, and the largest token
-- of the members that were forgotten, above which those of new names begin.
create table pgconcert.epoch (
    one boolean primary key default true check (one),
    incarnation text not null,
    base integer not null,
    epoch integer not null constraint epoch_fits check (epoch between 0 and 32767),
    seen_at timestamptz not null default clock_timestamp(),
    floor bigint not null default 0
) with (fillfactor = 50);

insert into pgconcert.epoch (incarnation, base, epoch) values ('', 0, 0);

-- Which data this is, and its timeline. A dump that was restored, an upgrade, a copied database and a promoted standby
-- differ from what they were. The timeline is that of the log being written, as the control file knows a new one late.
-- Where not even the owner may ask for the system identifier, the rest must do. It runs as the owner, because others may
-- be forbidden to ask.
create function pgconcert.incarnation() returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $pgc$
declare
    cluster text;
begin
    begin
        select cast(s.system_identifier as text) into cluster from pg_control_system() s;
    exception when insufficient_privilege then
        cluster = '0';
    end;
    return concat_ws('.', cluster,
        (select d.oid from pg_database d where d.datname = current_database()),
        cast(cast($pgct$pgconcert.entry$pgct$ as regclass) as oid),
        cast(cast('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as bit(32)) as integer));
end
$pgc$;

insert into pgconcert.version (version) values (2);
