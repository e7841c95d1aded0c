"""``pgconcert release``: asks whoever has a job lock, or leads, to give it back. ``revoke.py`` takes it away; what both
have in common lives here: who has it, which of the two is meant, the options, the codes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Literal

import click

from ..coordinator import AsyncCoordinator
from ..election import AsyncElection
from ..errors import ConfigurationError
from ..jobs import AsyncJobLock, JobHolder
from ..keys import KeySpace
from ..sessions.register import subject_of
from ..terms import Leader
from .console import printable
from .messaging import Target, execute, opened, say, schema_option
from .target import direct_url_option, namespace_option, url_option

__all__ = ["CODES", "Kind", "command", "common_options", "tell_holder"]

Kind = Literal["job", "election"]
Thing = AsyncJobLock | AsyncElection

NOBODY: Final = 3

CODES: Final = """\b
Exit code:
    0  done
    2  the call is wrong: NAME is both, or --kind is missing
    3  nobody has it
   69  the server could not be reached, or somebody was in the way; try again
   70  something failed that should not (the server refused a statement, say)
   78  the configuration is wrong (no address, no tables, ...)
128+n  signal n came
"""


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """What ``release`` and ``revoke`` are told."""
    made = function
    for decorate in (
        schema_option,
        namespace_option,
        direct_url_option,
        url_option,
        click.option(
            "--kind",
            type=click.Choice(["job", "election"]),
            help="What NAME is: a job lock, or an election.  [default: what somebody has]",
        ),
        click.argument("name", metavar="NAME"),
    ):
        made = decorate(made)
    return made


def tell_holder(
    name: str,
    kind: Kind | None,
    target: Target,
    act: Callable[[Thing], Awaitable[bool]],
    done: Callable[[str], list[str]],
) -> None:
    """Do something to whoever has ``name``, and say so. ``done``: the sentences, made of who has it."""
    try:
        subject_of("job", KeySpace(target.namespace), name)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error

    async def work(_: object) -> int:
        async with opened(target) as coordinator:
            held = await _holders(coordinator, name, kind)
            if len(held) > 1:
                (lock, holder), (election, leader) = held
                said = f"a {_noun(lock)} ({_who(holder)}), and an {_noun(election)} ({_who(leader)})"
                say(f"{name!r} is {said}: say which with --kind job or --kind election")
                return 2
            if not held or not await act(held[0][0]):
                say(_nobody(name, kind, target.namespace))
                return NOBODY
            thing, holder = held[0]
            for sentence in done(f"{_noun(thing)} {name!r} ({_who(holder)})"):
                click.echo(printable(sentence))
            return 0

    execute(work)


async def _holders(
    coordinator: AsyncCoordinator, name: str, kind: Kind | None
) -> list[tuple[Thing, JobHolder | Leader]]:
    found: list[tuple[Thing, JobHolder | Leader]] = []
    if kind != "election":
        lock = coordinator.job_lock(name)
        if (holder := await lock.holder()) is not None:
            found.append((lock, holder))
    if kind != "job":
        election = coordinator.election(name)
        if (leader := await election.leader()) is not None:
            found.append((election, leader))
    return found


def _noun(thing: Thing) -> str:
    return "job lock" if isinstance(thing, AsyncJobLock) else "election"


def _who(holder: JobHolder | Leader) -> str:
    since = datetime.fromtimestamp(holder.since).astimezone().isoformat(" ", "seconds")
    what = "held by" if isinstance(holder, JobHolder) else "led by"
    return f"{what} {holder} since {since}, token {holder.token}"


def _nobody(name: str, kind: Kind | None, namespace: str) -> str:
    where = f" in namespace {namespace!r}" if namespace else ""
    holds, leads = f"nobody holds a job lock {name!r}", f"nobody leads an election {name!r}"
    said = {"job": holds, "election": leads, None: f"{holds}, and {leads}"}[kind]
    return f"{said}{where}; pgconcert status shows what is there"


@click.command(
    epilog=f"""\b
Examples:
  pgconcert release importer
  pgconcert release scheduler --kind election
  pgconcert release importer --namespace billing

{CODES}"""
)
@common_options
def command(name: str, kind: Kind | None, **where: Any) -> None:
    """Ask whoever holds job lock NAME, or leads election NAME, to give it back.

    It learns of it at its next heartbeat at the latest. Whether it does so is its own business: pgconcert run --job and
    pgconcert lead end their command, a program may go on. Until then it is the holder. To take it away: revoke.
    """
    tell_holder(
        name,
        kind,
        Target(name="pgconcert release", **where),
        lambda thing: thing.request_release(),
        lambda whose: [f"asked for the release of {whose}"],
    )
