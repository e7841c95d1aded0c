"""The command of ``pgconcert listen --exec``: run once for each message. Here lives one run, and the count of all.

Theory. A run leads a process group of its own, so that Ctrl-C on a terminal reaches us and not the command, and the end
reaches all that the command has started. It gets the payload on its standard input. If the message is a request, its
standard output is the reply; else its output is ours. A code other than 0 is raised, and so told, and answered.

Cancelled (its time is over), it gets SIGTERM, and SIGKILL after half a second. Messages beyond the wanted count stand
still until the listening ends: they are neither handled nor answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Final

from ..pubsub.message import Message
from .run_child import CANNOT_RUN, CommandFailed

__all__ = ["Runner"]

_GRACE: Final = 0.5


class Runner:
    """Runs a command for each message, ``count`` times at most; then ``done`` is set."""

    def __init__(self, path: str, arguments: tuple[str, ...], count: int | None) -> None:
        self._path = path
        self._arguments = arguments
        self._count = count
        self._begun = 0
        self._ended = 0
        self._over = False
        self._running: set[Process] = set()
        self.done = asyncio.Event()

    async def handle(self, message: Message) -> bytes | None:
        """Run it; what it wrote, if somebody wants to know. Raises ``CommandFailed``."""
        if self._over or self._begun == self._count:
            await asyncio.Event().wait()
        self._begun += 1
        try:
            return await self._run(message)
        finally:
            self._ended += 1
            if self._ended == self._count:
                self.done.set()

    def kill(self) -> None:
        """SIGKILL for all that runs; nothing more is begun."""
        self._over = True
        for process in self._running:
            _signal(process, signal.SIGKILL)

    async def _run(self, message: Message) -> bytes | None:
        wanted = message.reply_to is not None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._arguments,
                executable=self._path,
                stdin=PIPE,
                stdout=PIPE if wanted else None,
                process_group=0,
                env=os.environ | environment(message),
            )
        except OSError as error:
            raise CommandFailed(
                f"{self._arguments[0]} could not be started: {error.strerror or error}", CANNOT_RUN
            ) from error
        self._running.add(process)
        try:
            written, _ = await process.communicate(message.payload)
        except asyncio.CancelledError:
            await _end(process)
            raise
        finally:
            self._running.discard(process)
        code = process.returncode
        if code:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise CommandFailed(f"{self._arguments[0]} {how}", code)
        return written if wanted else None


def environment(message: Message) -> Mapping[str, str]:
    """What the command is told beside the payload."""
    return {
        "PGCONCERT_CHANNEL": message.channel,
        "PGCONCERT_ID": message.id or "",
        "PGCONCERT_HEADERS": json.dumps(dict(message.headers)),
        "PGCONCERT_PID": str(message.pid),
        "PGCONCERT_REQUEST": "0" if message.reply_to is None else "1",
    }


async def _end(process: Process) -> None:
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _GRACE)
    _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    # it leads its group, which may outlive it
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
