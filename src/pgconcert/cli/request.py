"""``pgconcert request``: sends a request and prints the first reply."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import click

from ..coordinator import AsyncCoordinator
from ..errors import DecodeFailed, RequestFailed, RequestTimeout, Unavailable
from ..pubsub.message import Message
from .console import printable
from .listen_lines import message_as_json
from .messaging import (
    Target,
    channel_argument,
    execute,
    header_option,
    opened,
    read_payload,
    say,
    schema_option,
    seconds_type,
    write_all,
)
from .target import direct_url_option, url_option

__all__ = ["command"]

_ANSWERED_WITH_ERROR = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    target: Target
    channel: str
    payload: str | None
    headers: dict[str, str]
    timeout: float
    as_json: bool


@click.command(
    epilog="""\b
Examples:
  pgconcert request price '{"sku": 7}'
  total=$(pgconcert request price '{"sku": 7}' --timeout 2)
  pgconcert request thumbnail < cat.png > small.png
  pgconcert request price 7 --json | jq .seconds

\b
Whoever handles the channel answers: c.listen({"price": handler}) in a program,
pgconcert listen price --exec COMMAND in a shell. The first answer counts.

\b
Exit code:
    0  answered; the reply is on standard output, byte for byte
    1  answered with an error, which is on standard error
    2  the call is wrong: a channel, header or payload that cannot be
   69  the server could not be reached
   70  something failed that should not
   74  the connection died between the sending and the answer
   75  nobody answered in time
   78  the configuration is wrong (no address, a transaction pooler without
       --direct-url, ...)
128+n  signal n came; the request may be handled all the same
"""
)
@channel_argument("channel")
@click.argument("payload", required=False)
@click.option(
    "--timeout", type=seconds_type, default=10.0, show_default=True, metavar="S", help="Seconds for all of it."
)
@click.option("--json", "as_json", is_flag=True, help="The reply as one JSON object.")
@header_option
@url_option
@direct_url_option
@schema_option
def command(
    channel: str,
    payload: str | None,
    timeout: float,
    as_json: bool,
    headers: dict[str, str],
    url: str | None,
    direct_url: str | None,
    schema: str,
) -> None:
    """Send a request to whoever handles CHANNEL, and print the reply.

    Without PAYLOAD it is all of standard input, byte for byte.
    """
    target = Target(url=url, direct_url=direct_url, name="pgconcert request", schema=schema)
    job = _Job(target=target, channel=channel, payload=payload, headers=headers, timeout=timeout, as_json=as_json)
    execute(lambda signals: _request(job))


async def _request(job: _Job) -> int:
    payload = await read_payload(job.payload)
    async with opened(job.target) as coordinator:
        begun = time.monotonic()
        try:
            reply = await coordinator.request(job.channel, payload, headers=job.headers or None, timeout=job.timeout)
        except RequestFailed as failed:
            say(str(failed))
            return _ANSWERED_WITH_ERROR
        except RequestTimeout as late:
            if coordinator.listening == "unknown":
                raise Unavailable(_why_not(coordinator) or f"no answer within {job.timeout:g} s") from late
            raise
        seconds = time.monotonic() - begun
    await write_all(_as_json(reply, seconds) if job.as_json else _as_text(reply))
    return 0


def _why_not(coordinator: AsyncCoordinator) -> str | None:
    return next((link.last_error for link in coordinator.health().links if link.role == "listen"), None)


def _as_json(reply: Message, seconds: float) -> bytes:
    seen = message_as_json(reply)
    kept = {name: seen[name] for name in ("payload", "payload_base64", "headers", "pid", "received") if name in seen}
    return json.dumps(kept | {"seconds": round(seconds, 6)}).encode() + b"\n"


def _as_text(reply: Message) -> bytes:
    if not sys.stdout.isatty():
        return reply.payload
    try:
        lines = reply.text.removesuffix("\n").split("\n")
    except DecodeFailed:
        lines = [f"({len(reply.payload)} bytes that are no text; write them to a file: > reply)"]
    return "".join(f"{printable(line)}\n" for line in lines).encode(sys.stdout.encoding, "backslashreplace")
