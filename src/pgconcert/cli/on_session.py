"""What the commands about job locks and elections share: the options of times, JSON given by hand, the environment of a
command that runs while something that hangs on a session is held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final

import click

from ..hold import AsyncHold
from ..sessions.hold import AsyncSessionHold
from .held_command import seconds

__all__ = ["environment_of", "json_type", "timing_options"]

_TIMES: Final = (
    ("ttl", "Seconds after our last heartbeat until others may take over.  [default: 40]"),
    ("interval", "Seconds between heartbeats.  [default: ttl / 4]"),
    ("check", "While it is waited for: seconds until we look again, at the latest.  [default: ttl / 2]"),
    ("timeout", "Seconds after which a heartbeat without an answer has failed.  [default: interval / 2]"),
)


def timing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The times of a session. The command gets those that were given as a mapping called ``times``."""

    @wraps(function)
    def called(**given: Any) -> Any:
        values: Mapping[str, float | None] = {name: given.pop(name) for name, _ in _TIMES}
        return function(times={name: value for name, value in values.items() if value is not None}, **given)

    made: Callable[..., Any] = called
    for name, meaning in reversed(_TIMES):
        made = click.option(f"--{name}", type=seconds, metavar="S", help=meaning)(made)
    return made


def json_type(text: object) -> Any:
    """The type of options that are JSON."""
    try:
        return json.loads(str(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}") from None


def environment_of(hold: AsyncHold, name: str) -> dict[str, str]:
    """What a command learns of the hold under which it runs."""
    assert isinstance(hold, AsyncSessionHold)
    return {
        "PGCONCERT_LOCK": name,
        "PGCONCERT_TOKEN": str(hold.token),
        "PGCONCERT_SESSION": str(hold.session_id),
    }
