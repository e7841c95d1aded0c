"""``pgconcert status``: one look at who holds locks and who waits. What it sees is said in ``postgres/lockview.py``."""

from __future__ import annotations

import json
import sys

import click

from ..postgres.lockview import Names
from ..postgres.operator import Operator
from .console import make_console
from .lock_table import as_json, print_locks
from .target import namespace_option, reachable, url_option

__all__ = ["command"]


@click.command(
    epilog="""\b
Examples:
  pgconcert status                              every advisory lock of this database
  pgconcert status invoice:42 report            these two: text, number, or semaphore
  pgconcert status report >/dev/null && echo busy
  pgconcert status --json | jq -r '.locks[] | select(.role == "held") | .key'

\b
Keys are numbers on the server; a lock shows its name when you give the name.
A permit's slot is counted from 0, as in hold.permit. A "-" is what the server
does not tell this role, or at all.

\b
Exit code: 0; with NAMEs, 0 if at least one of them is held and 3 if none is;
1 if the server cannot be asked.
"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@url_option
@namespace_option
@click.option("--all-databases", is_flag=True, help="The locks of every database of the server.")
@click.option("--json", "for_programs", is_flag=True, help="One JSON object, all of it; see the documentation.")
def command(names: tuple[str, ...], url: str | None, namespace: str, all_databases: bool, for_programs: bool) -> None:
    """Show who holds locks and who waits for them; with NAMEs, only these.

    Locks of other programs are shown as well: they are in the same list of the server.
    """
    wanted = Names(names, namespace)
    with reachable(url) as address, Operator(address, name="pgconcert status") as operator:
        view = operator.look(wanted, all_databases=all_databases)
    if for_programs:
        click.echo(json.dumps(as_json(view, namespace), indent=2))
    else:
        print_locks(make_console(), view, wanted, all_databases=all_databases)
    if names and not any(lock.role == "held" for lock in view.locks):
        sys.exit(3)
