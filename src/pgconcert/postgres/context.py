"""What all links of one engine have in common: where they lead, how long they wait, whose messages are our own."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field
from typing import Final, Literal

from ..conninfo import AddressSource
from ..events import EventStream
from .probe import Proof

__all__ = ["PATIENCE", "Context", "OwnPids", "Role"]

Role = Literal["lock", "listen", "publish", "payload", "work", "tasks"]

_REMEMBERED: Final = 60.0


class OwnPids:
    """The server processes behind the links of one engine, now or within the last minute: what they sent is our own.

    Those behind a pooler are ours only while we are connected to it, and in transaction mode not even then: other
    clients of the pooler send from them too.
    """

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._links: dict[tuple[bytes, int], int] = {}
        self._server = b""

    def came(self, proof: Proof) -> None:
        """A link is up."""
        if proof.through == "transaction pooler":
            return
        key = proof.started, proof.pid
        self._links[key] = self._links.get(key, 0) + 1
        if proof.started != self._server:
            # another server, or it has started again: its numbers begin anew, and may be those of strangers now
            self._server = proof.started
            self.pids.clear()
            self.pids.update(pid for started, pid in self._links if started == self._server)
        self.pids.add(proof.pid)

    def went(self, proof: Proof, loop: asyncio.AbstractEventLoop) -> None:
        """A link is down; what it sent may still be under way to us."""
        if proof.through == "direct":
            loop.call_later(_REMEMBERED, self._forget, (proof.started, proof.pid))
        elif proof.through == "session pooler":
            self._forget((proof.started, proof.pid))

    def _forget(self, key: tuple[bytes, int]) -> None:
        self._links[key] -= 1
        if not self._links[key]:
            del self._links[key]
            if key[0] == self._server:
                self.pids.discard(key[1])


PATIENCE: Final = 12
"""How often ``network_timeout`` a statement may take that is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all links of one engine have in common.

    ``reconnect_limit`` and ``pulse_interval`` concern the listen link: how often in a row connecting may fail, and
    after how many seconds of silence it is tried whether it hears.
    """

    address: AddressSource
    direct_address: AddressSource | None
    name: str
    network_timeout: float
    connect_timeout: float
    events: EventStream
    loop: asyncio.AbstractEventLoop
    reconnect_limit: int | None = None
    pulse_interval: float = 15.0
    own: OwnPids = field(default_factory=OwnPids)

    def application_name(self, role: Role, name: str | None) -> str:
        """``billing@host7:4711 pgconcert-lock``: what people see in pg_stat_activity, at most 63 ASCII bytes."""
        tail = f"@{socket.gethostname().split('.')[0][:20]}:{os.getpid()} pgconcert-{role}"
        ours = (name or self.name).encode("ascii", "replace").decode()
        return ours[: 63 - len(tail)] + tail
