"""The table of spans: what OpenTelemetry is told took its time. Data, also for the page of the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "DOING_WORK",
    "END_SESSION",
    "OUTAGE",
    "PROCESS",
    "PUBLISH",
    "RUN_TASKS",
    "SPANS",
    "START_SESSION",
    "WAIT_FOR_LOCK",
    "WAIT_FOR_NAME",
    "SpanRow",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRow:
    """One kind of span. ``name``: in braces stands what differs; ``attributes``: those that it may have besides
    ``pgconcert.coordinator``."""

    name: str
    kind: Literal["internal", "client", "producer", "consumer"]
    when: str
    made_by: str
    attributes: tuple[str, ...]


START_SESSION: Final = SpanRow(
    name="runner start session",
    kind="internal",
    when="a runner gets a session",
    made_by="RunnerSessionStarted",
    attributes=("pgconcert.runner", "pgconcert.session"),
)
END_SESSION: Final = SpanRow(
    name="runner end session",
    kind="internal",
    when="a runner releases its tasks and ends its session",
    made_by="RunnerSessionEnded",
    attributes=("pgconcert.runner", "pgconcert.session"),
)
DOING_WORK: Final = SpanRow(
    name="doing work",
    kind="internal",
    when="tasks are with the tasker; an error if it raised",
    made_by="TasksDone",
    attributes=(
        "pgconcert.runner",
        "pgconcert.session",
        "pgconcert.work",
        "pgconcert.tasks",
        "pgconcert.completed",
        "error.type",
    ),
)
OUTAGE: Final = SpanRow(
    name="connection outage",
    kind="client",
    when="a connection is down, from its loss, or the first attempt, until it is there; always an error, and each "
    "attempt that fails is an event of it",
    made_by="LinkLost, ConnectFailed, LinkOpened",
    attributes=("db.system.name", "db.client.connection.pool.name", "error.type"),
)
WAIT_FOR_LOCK: Final = SpanRow(
    name="wait for lock",
    kind="client",
    when="a lock or permit was waited for, with waits=",
    made_by="LockAcquired",
    attributes=("db.system.name", "pgconcert.key"),
)
WAIT_FOR_NAME: Final = SpanRow(
    name="wait for {kind}",
    kind="client",
    when="a job lock, leadership or membership was waited for, with waits=",
    made_by="NameTaken",
    attributes=("db.system.name", "pgconcert.name", "pgconcert.token"),
)
PUBLISH: Final = SpanRow(
    name="publish {channel}",
    kind="producer",
    when="the block of publishing() runs",
    made_by="publishing()",
    attributes=(
        "messaging.system",
        "messaging.destination.name",
        "messaging.operation.name",
        "messaging.operation.type",
        "error.type",
    ),
)
PROCESS: Final = SpanRow(
    name="process {channel}",
    kind="consumer",
    when="a message is handled; its parent, or a link, is where it was sent",
    made_by="processing(), traced()",
    attributes=(
        "messaging.system",
        "messaging.destination.name",
        "messaging.operation.name",
        "messaging.operation.type",
        "messaging.message.id",
        "messaging.message.body.size",
        "error.type",
    ),
)
RUN_TASKS: Final = SpanRow(
    name="run tasks",
    kind="consumer",
    when="tasks are done; the parent of one, and links of several, are where they were enqueued",
    made_by="working(), traced()",
    attributes=(
        "pgconcert.task.id",
        "pgconcert.task.attempt",
        "pgconcert.tasks",
        "pgconcert.session",
        "pgconcert.work",
        "error.type",
    ),
)

SPANS: Final = (
    START_SESSION,
    END_SESSION,
    DOING_WORK,
    OUTAGE,
    WAIT_FOR_LOCK,
    WAIT_FOR_NAME,
    PUBLISH,
    PROCESS,
    RUN_TASKS,
)
"""All of them, in the order in which they are shown."""
