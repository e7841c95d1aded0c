"""What the commands for messages share: options, payloads, the coordinator, signals, and the codes they end with.

The codes are those of ``pgconcert run`` where they mean the same, after ``sysexits.h``: whoever retries by the code
must tell *not sent* (69, 75) from *may have been sent* (74), and both from what no retry mends (2, 78).

A signal ends a command by cancelling its task, so that everything is given back; a command that has something to
finish first sets ``Signals.on_signal``. What blocks (a read of standard input, a write to a full pipe) runs in a daemon
thread on the bare descriptor, so that it can neither delay the links nor the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self

import click

from ..coordinator import AsyncCoordinator
from ..errors import (
    ChannelInvalid,
    ConfigurationError,
    NotifyQueueFull,
    PayloadInvalid,
    PayloadTooLarge,
    PgconcertError,
    PublishUncertain,
    RequestTimeout,
    Unavailable,
)
from ..events import ActiveChanged, ConnectFailed, Event, ListenerReady, MessagesMissed
from ..offloop import off_loop
from ..pubsub.channels import check_channel
from .streams import open_streams

__all__ = [
    "BROKEN_PIPE",
    "NOT_IN_TIME",
    "UNCERTAIN",
    "Signals",
    "Target",
    "channel_argument",
    "check_json",
    "code_of",
    "execute",
    "header_option",
    "opened",
    "read_chunk",
    "read_payload",
    "reported",
    "say",
    "schema_option",
    "seconds_type",
    "write_all",
]

WRONG_CALL: Final = 2
UNAVAILABLE: Final = 69
FAILED: Final = 70
UNCERTAIN: Final = 74
NOT_IN_TIME: Final = 75
MISCONFIGURED: Final = 78
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
"""What a shell sees of a program that nobody reads any more."""

_STDIN: Final = 0
_STDOUT: Final = 1
_CHUNK: Final = 65536
_ATTEMPTS: Final = 10
"""Every how many attempts to connect are worth another line."""
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (PayloadTooLarge, MISCONFIGURED),
    (ChannelInvalid, WRONG_CALL),
    (PayloadInvalid, WRONG_CALL),
    (ConfigurationError, MISCONFIGURED),
    (NotifyQueueFull, NOT_IN_TIME),
    (PublishUncertain, UNCERTAIN),
    (RequestTimeout, NOT_IN_TIME),
    (Unavailable, UNAVAILABLE),
)

schema_option: Final = click.option(
    "--schema",
    default="pgconcert",
    show_default=True,
    metavar="NAME",
    help="Where our tables are, as schema= in programs.",
)
seconds_type: Final = click.FloatRange(0, 10**7, min_open=True)


def _channels(context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...]) -> Any:
    for name in (value,) if isinstance(value, str) else value:
        try:
            check_channel(name)
        except ChannelInvalid as error:
            raise click.BadParameter(str(error)) from error
    return value


def _headers(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> dict[str, str]:
    pairs = [given.partition("=") for given in value]
    for given, (name, equals, _) in zip(value, pairs, strict=True):
        if not equals or not name:
            raise click.BadParameter(f"{given!r} is not NAME=VALUE")
    return {name: text for name, _, text in pairs}


def channel_argument(name: str, **options: Any) -> Callable[[Any], Any]:
    """An argument that is a channel, or several."""
    return click.argument(name, callback=_channels, **options)


header_option: Final = click.option(
    "--header", "headers", multiple=True, callback=_headers, metavar="NAME=VALUE", help="A header; may be repeated."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server, and who we are there."""

    url: str | None
    direct_url: str | None
    name: str
    namespace: str = ""
    schema: str = "pgconcert"


@contextlib.asynccontextmanager
async def opened(target: Target) -> AsyncIterator[AsyncCoordinator]:
    """A coordinator for a command. Raises ``ConfigurationError`` for an address behind which nobody else can be."""
    async with AsyncCoordinator(
        target.url,
        direct_url=target.direct_url,
        name=target.name,
        namespace=target.namespace,
        schema=target.schema,
    ) as coordinator:
        if "processes" not in coordinator.backend.capabilities:
            raise ConfigurationError(
                f"{target.url or 'this address'} reaches no other process; give the address of a server"
            )
        yield coordinator


def reported(coordinator: AsyncCoordinator) -> Callable[[], None]:
    """Say on standard error what happens to the connection and to what is heard. Returns the way to stop."""

    def report(event: Event) -> None:
        if _worth_saying(event):
            say(str(event))

    return coordinator.events.subscribe(report)


def _worth_saying(event: Event) -> bool:
    if isinstance(event, ListenerReady):
        return not event.initial
    if isinstance(event, MessagesMissed):
        return False  # whoever listens tells it as a gap, in its place
    if isinstance(event, ConnectFailed):
        return event.attempt == 1 or event.attempt % _ATTEMPTS == 0
    return isinstance(event, ActiveChanged) or event.level >= logging.WARNING


def code_of(error: BaseException) -> int:
    """The code with which a command ends after an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def say(text: str) -> None:
    """A line on standard error, whoever wrote its parts."""
    with contextlib.suppress(OSError):
        click.echo(f"pgconcert: {_in_one_line(text)}", err=True)


def _in_one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if flat.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in flat)


# payloads


def check_json(payload: bytes) -> bytes:
    """JSON, without the space around it. Raises ``PayloadInvalid`` for what is none."""

    def none(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        json.loads(payload, parse_constant=none)
    except (ValueError, RecursionError) as error:
        raise PayloadInvalid(f"the payload is not JSON: {error}; leave out --json to send it as it is") from None
    return payload.strip()


async def read_payload(argument: str | None) -> bytes:
    """The payload of a command: its argument, or all of standard input. The bytes are what they are."""
    if argument is not None:
        return os.fsencode(argument)
    if os.isatty(_STDIN):
        say("the payload is read from the terminal; Ctrl-D ends it (an empty one is given as '')")
    whole = bytearray()
    while chunk := await read_chunk():
        whole += chunk
    return bytes(whole)


async def read_chunk() -> bytes:
    """Some bytes of standard input, as soon as there are any; none at its end."""
    return await off_loop(lambda: os.read(_STDIN, _CHUNK))


async def write_all(data: bytes) -> None:
    """Write to standard output, however long its reader takes. Raises ``BrokenPipeError``."""

    def write() -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(_STDOUT, left) :]

    await off_loop(write)


# running


class Signals:
    """What SIGINT, SIGTERM and SIGHUP do: they end the command. What was ignored stays ignored."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._caught: list[signal.Signals] = []
        self.ended_by: signal.Signals | None = None
        """The first that came."""
        self.on_signal: Callable[[], object] = task.cancel
        """Called for each."""

    def _come(self, number: signal.Signals) -> None:
        if self.ended_by is None:
            self.ended_by = number
        self.on_signal()

    def __enter__(self) -> Self:
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._come, number)
                self._caught.append(number)
        return self

    def __exit__(self, *error: object) -> None:
        for number in self._caught:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # the code is known, and the program about to end


def execute(work: Callable[[Signals], Awaitable[int]]) -> NoReturn:
    """Run a command to its end, and end the process with its code."""
    # without a handler of its own the log would write on standard error what the command says better, or not at all
    logging.getLogger("pgconcert").addHandler(logging.NullHandler())
    open_streams()
    sys.exit(asyncio.run(_ended(work)))


async def _ended(work: Callable[[Signals], Awaitable[int]]) -> int:
    with Signals() as signals:
        try:
            return await work(signals)
        except asyncio.CancelledError:
            if signals.ended_by is None:
                raise
            return 128 + signals.ended_by
        except BrokenPipeError:
            return BROKEN_PIPE
        except Unavailable as error:
            say(f"the server cannot be reached: {error}")
            return UNAVAILABLE
        except (PgconcertError, OSError) as error:
            say(str(error))
            return code_of(error)
