"""``pgconcert lead``: a candidate for ever, with a command that runs while we lead; or an observer, who prints changes.
Here live the options and what they come to; the course of events stands in ``held_command.py``.

A leadership that is lost, or whose release is requested, ends the command, and we are a candidate again. One whose
command ends by itself is resigned, and that is the end, unless it is to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ..coordinator import AsyncCoordinator
from ..election import AsyncLeadership, candidate_key
from ..errors import AcquireTimeout, ConfigurationError
from ..hold import AsyncHold
from ..keys import KeySpace
from ..sessions.pace import Pace
from ..sessions.register import subject_of
from ..sessions.timing import DEFAULT_TTL, Timing, timing
from ..terms import LeaderChange
from . import messaging
from .console import printable
from .held_command import (
    Command,
    Outcome,
    Reporter,
    Signals,
    execute,
    found,
    in_rounds,
    one_round,
    processes_needed,
    say,
    seconds,
)
from .messaging import schema_option, write_all
from .on_session import environment_of, json_type, timing_options
from .run_child import find
from .target import direct_url_option, namespace_option, url_option

__all__ = ["as_json", "command", "line"]


class _Command(click.Command):
    """What follows ``--`` is the command's; before it our options and NAME stand in any order."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:at])
        if ctx.params.pop("stray"):
            raise click.UsageError("write -- before the command: lead NAME -- COMMAND", ctx)
        ctx.params["arguments"] = tuple(args[at + 1 :])
        return rest


@click.command(
    cls=_Command,
    epilog="""\b
Examples:
  pgconcert lead scheduler -- ./scheduler.sh        with PGCONCERT_TOKEN
  pgconcert lead scheduler --keep -- ./one-pass.sh  again and again, wherever we lead
  pgconcert lead scheduler --preferred -- ./scheduler.sh
  pgconcert lead web --data '"10.0.0.7:80"' -- ./serve.sh
  pgconcert lead scheduler --observe                who leads, and every change
  pgconcert lead scheduler --observe --json | jq -r .leader.host

\b
Exit code:
  the command's own, 128+n if signal n ended it; else
    2  the call is wrong
   69  the server could not be reached
   70  something failed that should not (the server refused a statement, say)
   74  the leadership was lost, after a signal had told us to end
   76  its release was requested, after a signal had told us to end
   78  the configuration is wrong (no address, no tables, ...)
  126  the command cannot be executed
  127  the command was not found
  141  nobody reads our output any more (--observe)
128+n  signal n came while we did not lead
""",
)
@click.option("--preferred", is_flag=True, help="Come before candidates that are not; ask such a leader to give way.")
@click.option("--keep", is_flag=True, help="When the command has ended by itself, be a candidate again after a pause.")
@click.option(
    "--grace",
    type=seconds,
    default=10.0,
    show_default=True,
    metavar="S",
    help="When we lead no more: seconds between SIGTERM and SIGKILL.",
)
@timing_options
@click.option("--data", type=json_type, metavar="JSON", help="Shown to all while we lead: an address, say.")
@click.option("--observe", is_flag=True, help="No candidate: print who leads, and every change, a line each.")
@click.option("--json", "for_programs", is_flag=True, help="With --observe: an object in each line.")
@url_option
@direct_url_option
@namespace_option
@schema_option
@click.option("--name", "called", metavar="TEXT", help="Who we are, for others.  [default: the command]")
@click.option("-v", "--verbose", is_flag=True, help="Say who leads while we do not, and when we do.")
@click.argument("name", metavar="NAME")
@click.argument("stray", metavar="[-- COMMAND [ARG]...]", nargs=-1, type=click.UNPROCESSED)
def command(
    preferred: bool,
    keep: bool,
    grace: float,
    times: Mapping[str, float],
    data: Any,
    observe: bool,
    for_programs: bool,
    url: str | None,
    direct_url: str | None,
    namespace: str,
    schema: str,
    called: str | None,
    verbose: bool,
    name: str,
    arguments: tuple[str, ...],
) -> None:
    """Run a command while we lead: be a candidate in election NAME, for ever.

    The command gets our standard streams, our environment, PGCONCERT_LOCK=NAME, PGCONCERT_SESSION, and PGCONCERT_TOKEN,
    which is larger than that of every leader before. Signals are passed on to it. When it ends by itself, the
    leadership is resigned, the next candidate leads at once, and we end with its code. If the leadership is lost, or
    its release is requested, the command gets SIGTERM, and SIGKILL after the grace, and we are a candidate again.
    """
    try:
        keys = KeySpace(namespace)
        pace = timing(**{"ttl": DEFAULT_TTL, **times})
        candidate_key(keys, subject_of("election", keys, name), pace, preferred, data)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if observe:
        if arguments or preferred or keep or data is not None:
            raise click.UsageError("--observe looks on; leave out the command, --preferred, --keep and --data")
        messaging.execute(
            lambda signals: _observe(
                messaging.Target(
                    url=url,
                    direct_url=direct_url,
                    namespace=namespace,
                    schema=schema,
                    name=called if called is not None else "pgconcert lead",
                ),
                name,
                pace,
                for_programs,
            )
        )
    if not arguments:
        raise click.UsageError("say what to run while we lead: lead NAME -- COMMAND; or look on: lead NAME --observe")
    if for_programs:
        raise click.UsageError("--json is for --observe")
    program = Command(path=found(arguments[0], find), arguments=arguments, grace=grace, verbose=verbose)

    async def work(signals: Signals) -> int:
        who = called if called is not None else Path(arguments[0]).name
        async with AsyncCoordinator(
            url, direct_url=direct_url, namespace=namespace, schema=schema, name=who
        ) as coordinator:
            processes_needed(coordinator, url, "lead")
            coordinator.events.subscribe(Reporter(verbose).report)
            return await _lead(name, pace, preferred, data, keep, program, coordinator, signals)

    execute(work)


async def _lead(
    name: str,
    times: Timing,
    preferred: bool,
    data: Any,
    keep: bool,
    program: Command,
    coordinator: AsyncCoordinator,
    signals: Signals,
) -> int:
    election = coordinator.election(
        name, ttl=times.ttl, interval=times.interval, check=times.check, timeout=times.timeout
    )
    candidacy = election.lead(preferred=preferred, data=data, on_lost="report")
    what = f"the leadership of {name!r}"

    async def acquire() -> AsyncLeadership:
        if program.verbose:
            try:
                return await candidacy.acquire(0)
            except AcquireTimeout as error:
                _, _, why = str(error).partition(" was not acquired within 0 s; ")
                say(f"waiting for {what}: {why}")
        return await candidacy.acquire()

    async def resign(hold: AsyncHold) -> None:
        assert isinstance(hold, AsyncLeadership)
        await hold.resign()

    async def each() -> Outcome:
        return await one_round(
            program,
            signals,
            acquire,
            lambda hold: environment_of(hold, name),
            what,
            give_back=resign,
        )

    return await in_rounds(each, signals, Pace(times), lambda outcome: keep or outcome.why != "ended")


async def _observe(target: messaging.Target, name: str, times: Timing, for_programs: bool) -> int:
    async with messaging.opened(target) as coordinator:
        messaging.reported(coordinator)
        election = coordinator.election(
            name, ttl=times.ttl, interval=times.interval, check=times.check, timeout=times.timeout
        )
        async with election.observe() as changes:
            async for change in changes:
                text = json.dumps(as_json(name, change)) if for_programs else line(change)
                await write_all(text.encode() + b"\n")
    return 0


def line(change: LeaderChange) -> str:
    """A change for people."""
    when = "-" if change.at is None else datetime.fromtimestamp(change.at).astimezone().isoformat(" ", "milliseconds")
    leader = change.leader
    if leader is None:
        how = f": token {change.token} was {change.how}" if change.token is not None else ""
        return f"{when}  nobody leads{how}"
    data = "" if leader.data is None else f"  {json.dumps(leader.data)}"
    return f"{when}  token {change.token}  {printable(str(leader))} leads{data}"


def as_json(name: str, change: LeaderChange) -> dict[str, Any]:
    """A change for programs. Tokens are texts, because many readers of JSON keep 53 bits of a number."""
    leader = change.leader
    return {
        "election": name,
        "time": None if change.at is None else datetime.fromtimestamp(change.at, UTC).isoformat(),
        "token": None if change.token is None else str(change.token),
        "how": change.how,
        "leader": None
        if leader is None
        else {
            "identity": leader.identity,
            "host": leader.host,
            "pid": leader.pid,
            "application": leader.application,
            "data": leader.data,
        },
    }
