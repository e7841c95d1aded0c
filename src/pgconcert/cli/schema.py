"""``pgconcert schema``: makes, prints, examines and removes the tables. What they are, and how that is safe, is said in
``postgres/schema.py`` and ``postgres/schemafiles.py``; here lives how it is asked and told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import click

from ..conninfo import AddressSource
from ..errors import ConfigurationError
from ..events import EventStream
from ..postgres import schema as tables
from ..postgres.keeper import Context
from ..postgres.link import Link
from ..postgres.schemafiles import DEFAULT, apply_command, checked, script, versions
from ..postgres.taskcheck import table_sql
from ..sessions.wakes import wake_channel, wake_mark
from ..tasks.sources import TableTasks
from ..taskstore import TablePlace, wake_subject
from .console import make_console, printable
from .target import reachable, url_option

__all__ = ["command", "visited"]

T = TypeVar("T")

_JSON_VERSION: Final = 1
_NEEDS_APPLY: Final = 3
_NEEDS_RIGHTS: Final = 4
_CONNECT_TIMEOUT: Final = 10.0
_NETWORK_TIMEOUT: Final = 60.0

_schema_option = click.option(
    "--schema", "name", default=DEFAULT, show_default=True, metavar="NAME", help="As schema= in programs."
)


@click.group(
    epilog="""\b
Examples:
  pgconcert schema apply --url postgresql://db/app
  pgconcert schema check || pgconcert schema apply
  pgconcert schema show --version 1 > migrations/0007_pgconcert.sql
  pgconcert schema show --table orders              for tasks in a table of yours
  pgconcert schema drop --yes
"""
)
def command() -> None:
    """Make, print, examine and remove the tables that some features need.

    Locks, semaphores and plain messages need none.
    """


@command.command(
    epilog="""\b
Examples:
  pgconcert schema apply                        what the environment names
  pgconcert schema apply --url postgresql://owner@db/app --schema concert

\b
Exit code: 0 if all versions are there, made now or before; 1 if not, and then
nothing has happened.
"""
)
@url_option
@_schema_option
def apply(url: str | None, name: str) -> None:
    """Make what is missing, in one transaction. Any number of processes may do so at once."""
    made = visited(url, name, lambda link: tables.apply(link, name))
    if made:
        _say(f"schema {name}: applied version {', '.join(map(str, made))}")
    else:
        _say(f"schema {name}: nothing was missing")


@command.command(
    epilog="""\b
Examples:
  pgconcert schema show | psql --single-transaction postgresql://db/app
  pgconcert schema show --version 1 --schema concert
  pgconcert schema show --table orders --where "t.state = 'paid'" --order-by t.paid_at

\b
Our tables: the text is to be run as one transaction, which migration tools do by
themselves. What a table of yours needs is to be run statement by statement,
because its indexes are made concurrently. No server is asked.

\b
Exit code: 0; 1 if there is no such version; 2 if the call is wrong.
"""
)
@_schema_option
@click.option("--version", type=int, metavar="N", help="Only this version; else all, in order.")
@click.option(
    "--table", metavar="NAME", help="What this table of yours needs, so that its rows can be shared as tasks."
)
@click.option("--id", metavar="COLUMN", help="With --table: what names a row.  [default: id]")
@click.option("--where", metavar="SQL", help="With --table: what is to be done now; the table is called t.")
@click.option("--order-by", metavar="SQL", help="With --table: which come first.")
@click.option("--finish", metavar="SQL", help="With --table: as for pgconcert worker; needs nothing of the table.")
@click.option("--session", metavar="COLUMN", help="With --table: the column to be added.  [default: session_id]")
@click.option("--wake", is_flag=True, help="With --table: a trigger, so that new rows wake runners that are idle.")
@click.option("--namespace", metavar="TEXT", help="With --wake: as namespace= in programs.  [default: none]")
def show(
    name: str,
    version: int | None,
    table: str | None,
    wake: bool,
    namespace: str | None,
    **of_table: str | None,
) -> None:
    """Print the SQL, for migration tools and for whoever wants to read it first."""
    given = {option: text for option, text in of_table.items() if text is not None}
    if table is None:
        if given or wake or namespace is not None:
            stray = [*given, *(["wake"] if wake else []), *(["namespace"] if namespace is not None else [])]
            raise click.UsageError(f"--{stray[0].replace('_', '-')} is for --table")
        click.echo(script(name, version), nl=False)
        return
    if version is not None:
        raise click.UsageError("--version is of our tables; leave it out with --table")
    if namespace is not None and not wake:
        raise click.UsageError("--namespace is for --wake")
    try:
        TableTasks(**cast("dict[str, Any]", {**given, "table": table, "finish": "delete"}))
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    place = TablePlace(**{"table": table, "id": "id", "where": "true", "order_by": "", "finish": "delete", **given})
    told = (wake_channel(namespace or ""), wake_mark(wake_subject(place, namespace or "")).decode()) if wake else None
    click.echo(table_sql(place, wake=told), nl=False)


@command.command(
    epilog="""\b
Examples:
  pgconcert schema check
  pgconcert schema check --json | jq -r .verdict

\b
Exit code: 0 if the tables are current, or newer than this library, which works
with them; 3 if they are missing or old: pgconcert schema apply; 4 if the role
lacks rights, which are then named; 1 if the server cannot be asked.
"""
)
@url_option
@_schema_option
@click.option("--json", "for_programs", is_flag=True, help="One JSON object; see the documentation.")
def check(url: str | None, name: str, for_programs: bool) -> None:
    """Tell whether the tables are current, missing, old, or newer than this library."""

    async def examine(link: Link) -> tuple[tables.Found, list[str]]:
        found = await tables.look(link, name)
        return found, [] if found.missing else await tables.lacking(link, name)

    found, lacking = visited(url, name, examine)
    known = max(versions())
    if for_programs:
        answer = {
            "version": _JSON_VERSION,
            "schema": name,
            "verdict": found.verdict,
            "applied": found.applied,
            "missing": found.missing,
            "known": known,
            "grants": lacking,
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _say(f"schema {name}: {_meaning(found, known)}")
        for grant in lacking:
            _say(f"this role lacks rights; the owner runs: {grant};")
    sys.exit(_NEEDS_APPLY if found.missing else _NEEDS_RIGHTS if lacking else 0)


@command.command(
    epilog="""\b
Examples:
  pgconcert schema drop --yes
  pgconcert schema drop --yes --schema concert --url postgresql://owner@db/app

\b
Exit code: 0 if the tables are gone now; 1 if not, and then all of them are
there; 2 without --yes.
"""
)
@url_option
@_schema_option
@click.option("--yes", is_flag=True, help="Really.")
def drop(url: str | None, name: str, yes: bool) -> None:
    """Remove our tables and what is in them, and the schema, if nothing else is in it and it is the role's own."""
    if not yes:
        raise click.UsageError(f"this removes every table of pgconcert in schema {name}, with its rows; add --yes")
    gone = visited(url, name, lambda link: tables.drop(link, name))
    _say(f"schema {name}: no table of ours is there" + (", and the schema is gone" if gone else ""))


def _meaning(found: tables.Found, known: int) -> str:
    there = f"version {max(found.applied, default=0)} is there"
    return {
        "missing": f"missing; make it with: {apply_command(found.schema)}",
        "old": f"old: {there}, and this library needs {known}; bring it up with: {apply_command(found.schema)}",
        "current": f"current: {there}",
        "newer": f"newer: {there}, and this library knows {known}, and works with it",
    }[found.verdict]


def visited(url: str | None, name: str, ask: Callable[[Link], Awaitable[T]]) -> T:
    """What a question to the server comes to, on a connection of its own."""
    checked(name)
    logging.getLogger("pgconcert").addHandler(logging.NullHandler())  # what happened is said here, once

    async def visit(address: str) -> T:
        context = Context(
            address=AddressSource(address),
            direct_address=None,
            name="pgconcert schema",
            network_timeout=_NETWORK_TIMEOUT,
            connect_timeout=_CONNECT_TIMEOUT,
            events=EventStream(),
            loop=asyncio.get_running_loop(),
        )
        async with tables.visit(context) as link:
            return await ask(link)

    with reachable(url) as address:
        return asyncio.run(visit(address))


def _say(sentence: str) -> None:
    make_console().print(printable(sentence), markup=False)
