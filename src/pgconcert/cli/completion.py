"""``pgconcert completion``: prints what a shell needs to complete commands and options. The scripts are click's own."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command(
    epilog="""\b
Where it goes:
  bash  this line in ~/.bashrc (bash 4.4 or newer):
          eval "$(pgconcert completion bash)"
  zsh   this line in ~/.zshrc, after compinit:
          eval "$(pgconcert completion zsh)"
  fish  run this once:
          pgconcert completion fish > ~/.config/fish/completions/pgconcert.fish

\b
A shell that is open already learns of it when it is started anew.
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(ctx.find_root().command, {}, "pgconcert", "_PGCONCERT_COMPLETE").source())
