"""The list of commands, and what all of them have in common: help, version, errors in one line.

A command is a file of this package with a click command called ``command`` in it, and a line in ``_COMMANDS``. It is
imported when it is run or when the list is shown. Whatever pgconcert raises becomes a sentence and exit code 1: these
errors already name the thing and the next step.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from .. import __version__
from ..errors import PgconcertError

__all__ = ["group"]

_COMMANDS = (
    "status", "watch", "doctor", "run", "lead", "release", "revoke",
    "publish", "listen", "request", "ping", "tasks", "worker", "schema", "demo", "completion",
)  # fmt: skip


class _Commands(click.Group):
    """Finds commands in their files."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"{__package__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PgconcertError as error:
            raise click.ClickException(str(error)) from error


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  pgconcert demo
  pgconcert demo --processes 8 --kills 5 --seconds 30
  pgconcert demo --url postgresql://localhost/test
  pgconcert status invoice:42
  pgconcert watch
  pgconcert doctor
  pgconcert run --lock backup -- backup.sh --full
  pgconcert run --job importer --keep -- ./import.sh
  pgconcert lead scheduler -- ./scheduler.sh
  pgconcert release importer
  pgconcert listen orders
  pgconcert publish orders 'order 42 is paid'
  pgconcert tasks enqueue mail '{"to": "ann@example.org"}'
  pgconcert worker mail:send --queue mail
""",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def group() -> None:
    """Locks, jobs, leaders, tasks and messages for processes of one application, through the PostgreSQL they share."""
