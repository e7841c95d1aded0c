"""``pgconcert status``: one look at who holds locks and who waits, and at all that hangs on sessions. What it sees of
locks is said in ``postgres/lockview.py``, of the rest in ``session_look.py``.
"""

from __future__ import annotations

import json
import sys

import click

from ..postgres.lockview import Names
from ..postgres.operator import Operator
from . import lock_table, session_table
from .console import make_console
from .messaging import schema_option
from .session_look import Looker
from .target import namespace_option, reachable, url_option

__all__ = ["command"]


@click.command(
    epilog="""\b
Examples:
  pgconcert status                              all that is held in this database
  pgconcert status invoice:42 report            these two, whatever they are
  pgconcert status report >/dev/null && echo busy
  pgconcert status --json | jq -r '.locks[] | select(.role == "held") | .key'
  pgconcert status --json | jq -r '.job_locks[] | [.name, .session.host, .token] | @tsv'

\b
Keys of locks are numbers on the server; a lock shows its name when you give the
name. A permit's slot is counted from 0, as in hold.permit. A "-" is what the
server does not tell this role, or at all.

\b
Exit code: 0; with NAMEs, 0 if at least one of them is held and 3 if none is;
1 if the server cannot be asked.
"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@url_option
@namespace_option
@schema_option
@click.option("--all-databases", is_flag=True, help="The locks of every database of the server.")
@click.option("--json", "for_programs", is_flag=True, help="One JSON object, all of it; see the documentation.")
def command(
    names: tuple[str, ...], url: str | None, namespace: str, schema: str, all_databases: bool, for_programs: bool
) -> None:
    """Show who holds locks and who waits for them, and all that hangs on sessions; with NAMEs, only these.

    Locks of other programs are shown as well: they are in the same list of the server. What hangs on sessions (job
    locks, leaders, members of groups, runners that share tasks) is shown in whatever namespace it is, unless one is
    given. What the runners share: pgconcert tasks stats.
    """
    wanted = Names(names, namespace)
    with reachable(url) as address:
        with Operator(address, name="pgconcert status") as operator:
            view = operator.look(wanted, all_databases=all_databases)
        with Looker(address or None, schema, "pgconcert status", names, namespace) as looker:
            holding = looker.look()
    if for_programs:
        answer = lock_table.as_json(view, namespace) | session_table.as_json(holding)
        click.echo(json.dumps(answer, indent=2))
    else:
        console = make_console()
        lock_table.print_locks(console, view, wanted, holding, all_databases=all_databases)
        session_table.print_holding(console, holding, first=not (view.locks or names))
    if names and not holding.held and not any(lock.role == "held" for lock in view.locks):
        sys.exit(3)
