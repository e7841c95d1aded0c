"""``pgconcert publish``: sends one message, or each line of standard input as one.

With ``--lines`` what can be read at once is sent at once, while the next is read, and so a stream of lines costs one
statement for many. Order is kept: a line that may be too large for a notification is kept in a table first, so it
travels alone. The first line that fails ends it, because what comes after may rely on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import click

from ..coordinator import AsyncCoordinator
from ..errors import PayloadInvalid, PublishUncertain
from .messaging import (
    Target,
    channel_argument,
    check_json,
    code_of,
    execute,
    header_option,
    opened,
    read_chunk,
    read_payload,
    say,
    schema_option,
)
from .target import direct_url_option, url_option

__all__ = ["command"]

_PATIENCE: Final = 1.0
_SMALL: Final = 3000
"""Bytes that fit a notification in any envelope."""

_LARGEST: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    target: Target
    channel: str
    payload: str | None
    headers: dict[str, str]
    with_id: bool
    checked: bool
    lines: bool


@click.command(
    epilog="""\b
Examples:
  pgconcert publish orders 'order 42 is paid'
  pgconcert publish orders '{"order": 42}' --json       refused if it is not JSON
  pgconcert publish pictures < cat.png                  bytes as they are
  tail -f app.log | pgconcert publish logs --lines      each line a message
  pgconcert publish jobs build --id                     for delivery="one-each"
  pgconcert publish orders hello --header from=shop

\b
A message reaches whoever listens in this moment; with no listener it is dropped,
and that is success.

\b
Exit code:
    0  published: the server has committed it
    2  the call is wrong: a channel, header or payload that cannot be
   69  not published: the server could not be reached; try again
   70  not published: the server refused
   74  uncertain: the connection died between the sending and the answer
   75  not published: the server's queue is full; the message names who blocks it
   78  not published: the configuration is wrong (no address, a payload of more
       than 7,999 bytes without pgconcert schema apply, ...)
128+n  signal n came; what was not answered by then may have been published
"""
)
@channel_argument("channel")
@click.argument("payload", required=False)
@click.option("--lines", is_flag=True, help="Each line of standard input is a message; the count is told at the end.")
@click.option("--json", "checked", is_flag=True, help="Refuse what is not JSON.")
@header_option
@click.option("--id", "with_id", is_flag=True, help="Give each message an id of its own.")
@url_option
@direct_url_option
@schema_option
def command(
    channel: str,
    payload: str | None,
    lines: bool,
    checked: bool,
    headers: dict[str, str],
    with_id: bool,
    url: str | None,
    direct_url: str | None,
    schema: str,
) -> None:
    """Send a message to whoever listens to CHANNEL.

    Without PAYLOAD it is all of standard input, byte for byte. Text without NUL of at most 7,999 bytes, without headers
    and id, is a plain NOTIFY, which any program can read.
    """
    if lines and payload is not None:
        raise click.UsageError("--lines reads standard input; leave PAYLOAD out")
    target = Target(url=url, direct_url=direct_url, name="pgconcert publish", schema=schema)
    job = _Job(
        target=target,
        channel=channel,
        payload=payload,
        headers=headers,
        with_id=with_id,
        checked=checked,
        lines=lines,
    )
    execute(lambda signals: _stream(job) if lines else _one(job))


async def _one(job: _Job) -> int:
    payload = await read_payload(job.payload)
    if job.checked:
        payload = check_json(payload)
    async with opened(job.target) as coordinator:
        await _send(coordinator, job, payload)
    return 0


async def _send(coordinator: AsyncCoordinator, job: _Job, payload: bytes) -> None:
    await coordinator.publish(job.channel, payload, headers=job.headers or None, id=job.with_id)


async def _stream(job: _Job) -> int:
    async with opened(job.target) as coordinator:
        stream = _Stream(coordinator, job)
        try:
            await _read_lines(stream)
        finally:
            say(stream.count())
        return stream.code


async def _read_lines(stream: _Stream) -> None:
    rest = bytearray()
    reading = asyncio.create_task(read_chunk())
    while chunk := await reading:
        reading = asyncio.create_task(read_chunk())
        rest += chunk
        if b"\n" in chunk:
            *lines, rest = rest.split(b"\n")
            await stream.send(lines)
        elif len(rest) > _LARGEST:
            await stream.send([rest])  # which says that it is too large
        if stream.code:
            reading.cancel()
            return
    if rest:
        await stream.send([rest])


@dataclass(slots=True)
class _Stream:
    """The lines that were sent, and what became of them."""

    coordinator: AsyncCoordinator
    job: _Job
    read: int = 0
    published: int = 0
    failed: int = 0
    uncertain: int = 0
    under_way: int = 0
    code: int = 0
    run: list[bytes] = field(default_factory=list)

    async def send(self, lines: Iterable[bytes | bytearray]) -> None:
        """Send some lines, in their order, until one fails."""
        for line in lines:
            payload = bytes(line)
            if self.job.checked:
                try:
                    payload = check_json(payload)
                except PayloadInvalid as error:
                    await self._flush()
                    self._fail(self.read + 1, error)
            if len(payload) > _SMALL:
                await self._flush()
            self.run.append(payload)
            if len(payload) > _SMALL:
                await self._flush()
            if self.code:
                return
        await self._flush()

    async def _flush(self) -> None:
        run, self.run = self.run, []
        if not run or self.code:
            return
        self.under_way = len(run)
        sending = asyncio.gather(
            *(_send(self.coordinator, self.job, payload) for payload in run), return_exceptions=True
        )
        try:
            await asyncio.shield(sending)
        finally:
            if not sending.done():  # told to end: a moment more, and it is known what became of them
                await asyncio.wait([sending], timeout=_PATIENCE)
            if sending.done():
                self._count(sending.result())
            else:
                sending.cancel()

    def _count(self, outcomes: Sequence[BaseException | None]) -> None:
        self.under_way = 0
        for place, outcome in enumerate(outcomes, self.read + 1):
            if outcome is None:
                self.published += 1
            else:
                self._fail(place, outcome)
        self.read += len(outcomes)

    def _fail(self, number: int, error: BaseException) -> None:
        if not self.code:
            self.code = code_of(error)
            say(f"line {number}: {error}")
        if isinstance(error, PublishUncertain):
            self.uncertain += 1
        else:
            self.failed += 1

    def count(self) -> str:
        """What became of them, in a sentence."""
        said = f"{self.published} messages published"
        if self.failed:
            said += f", {self.failed} not"
        if self.uncertain + self.under_way:
            said += f", {self.uncertain + self.under_way} perhaps"
        return said
