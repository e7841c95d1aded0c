-- Everything that the versions have made, but the schema itself.

drop table if exists pgconcert.task, pgconcert.task_finished, pgconcert.entry, pgconcert.waiting, pgconcert.term,
    pgconcert.session, pgconcert.epoch, pgconcert.message_claim, pgconcert.message_payload, pgconcert.version;

drop sequence if exists pgconcert.session_number;

drop function if exists pgconcert.incarnation();
