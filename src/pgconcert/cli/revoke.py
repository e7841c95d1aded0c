"""``pgconcert revoke``: takes a job lock or a leadership away. Here lives what it says; the rest: ``release.py``."""

from __future__ import annotations

from typing import Any

import click

from .messaging import Target
from .release import CODES, Kind, common_options, tell_holder

__all__ = ["command"]


@click.command(
    epilog=f"""\b
Examples:
  pgconcert revoke importer
  pgconcert revoke scheduler --kind election
  pgconcert revoke importer --namespace billing

{CODES}"""
)
@common_options
def command(name: str, kind: Kind | None, **where: Any) -> None:
    """Take job lock NAME, or the leadership of election NAME, away from whoever has it.

    It is free at once, and whoever waits gets it. The one that had it learns so at its next heartbeat at the latest,
    and may work on until then: what must not be written twice is guarded by the token. Better ask first: release.
    """
    tell_holder(
        name,
        kind,
        Target(name="pgconcert revoke", **where),
        lambda thing: thing.revoke(),
        lambda whose: [
            f"revoked {whose}; whoever waits gets it now",
            "who had it learns so at its next heartbeat at the latest, and may work on until then",
        ],
    )
