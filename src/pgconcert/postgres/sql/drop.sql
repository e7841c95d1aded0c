-- Everything that the versions have made, but the schema itself.

drop table if exists pgconcert.message_claim, pgconcert.message_payload, pgconcert.version;
