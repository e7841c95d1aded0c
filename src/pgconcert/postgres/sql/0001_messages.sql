-- Version 1. What messages need beyond notifications. Large payloads, and who handles what.

create schema if not exists pgconcert;

create table pgconcert.version (
    version integer primary key,
    applied timestamptz not null default clock_timestamp()
);

-- Rows live for about an hour and go in small batches, so vacuum comes after a fixed number of them, not after a share.
create table pgconcert.message_payload (
    id bigint generated always as identity primary key,
    payload bytea not null,
    expires timestamptz not null
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 20000
);

-- What is large is mostly compressed by its sender, so the server need not try again.
alter table pgconcert.message_payload alter column payload set storage external;

create index message_payload_expires on pgconcert.message_payload (expires);

create table pgconcert.message_claim (
    scope text not null,
    id text not null,
    claimed timestamptz not null default clock_timestamp(),
    primary key (scope, id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

create index message_claim_claimed on pgconcert.message_claim (claimed);

insert into pgconcert.version (version) values (1);
