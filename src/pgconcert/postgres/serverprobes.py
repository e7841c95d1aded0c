"""The probes of a server that lets us in: each asks one thing on a link and returns a finding. What it means is said in
``verdicts.py``; when it is asked, and what happens when it fails, in ``diagnosis.py``.

No probe leaves anything behind: locks are given back, channels are not listened to any more, second links are closed.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from ..errors import LinkLost
from ..keys import KeySpace
from . import verdicts
from .addresses import Attempt
from .link import Link, statement
from .probe import Proof, apply_settings, settings
from .statements import LOCKS_ON_SERVER, NOTIFY, PING, TRY
from .verdicts import Finding

__all__ = ["NETWORK_TIMEOUT", "Patient", "ServerProbe", "connected", "existing_databases", "server_probes"]

NETWORK_TIMEOUT: Final = 5.0
"""Seconds, as a coordinator has it by default."""

_LOCK_TIMEOUT: Final = 0.1
_ROUNDS: Final = 10

_FORCED = statement("""
    select name, setting from pg_settings where source in ('database', 'user', 'database user') order by name
""")
_IDLE_LIMIT = statement("select reset_val from pg_settings where name = 'idle_session_timeout'")
_CONNECTIONS = statement("""
    select current_setting('max_connections'),
           current_setting('superuser_reserved_connections')::int8
             + coalesce(current_setting('reserved_connections', true), '0')::int8,
           (select sum(numbackends) from pg_stat_database)
""")
_QUEUE = statement("select pg_notification_queue_usage()")
_CLOCK = statement("select extract(epoch from clock_timestamp())")
_KEEPALIVE = statement("select current_setting('tcp_keepalives_idle'), current_setting('tcp_user_timeout')")
_RIGHTS = statement("select current_user, pg_has_role(current_user, 'pg_read_all_stats', 'usage')")
_DATABASES = statement("""
    select datname from pg_database where datallowconn and not datistemplate order by datname limit 20
""")
_UNLOCK = statement("select pg_advisory_unlock($1)")


class Patient:
    """One address, and what is known of it so far. ``kind`` tells the direct one from the other."""

    def __init__(self, parameters: Mapping[str, str], kind: str = "") -> None:
        self.parameters = {
            "application_name": "pgconcert doctor",
            "tcp_user_timeout": str(round(NETWORK_TIMEOUT * 1000)),
            **parameters,
        }
        self.kind = kind
        self.places: list[Attempt] = []
        self.place: Attempt | None = None
        self.link: Link | None = None
        self.proof: Proof | None = None
        self.sender: Link | None = None
        """Where a coordinator would publish, if that is another link."""
        self.refused: dict[str, str] = {}
        """The settings that the server refused."""

    @property
    def without_session(self) -> str:
        """Why there is no session of our own on a primary, in words; empty when there is one."""
        if self.proof is None:
            return "there is no connection"
        if self.proof.through == "transaction pooler":
            return "through a transaction pooler it would be done on the sessions of others"
        return "on a standby it proves nothing" if self.proof.standby else ""

    @property
    def is_socket(self) -> bool:
        """Whether the way there is a Unix socket."""
        return self.link is not None and self.link.server.startswith(("/", "@"))

    @property
    def is_local(self) -> bool:
        """Whether the way there stays on this machine."""
        server = self.link.server if self.link else ""
        return self.is_socket or server.startswith(("127.", "::1:", "localhost:"))


@asynccontextmanager
async def connected(conninfo: str) -> AsyncIterator[Link]:
    """A link that is closed at the end."""
    link = await Link.connect(conninfo)
    link.named = False
    try:
        yield link
    finally:
        link.owner = None
        link.close("the probe has ended")


async def existing_databases(link: Link) -> list[str]:
    """Databases one can connect to."""
    return [(name or b"").decode(errors="replace") for (name,) in await link.execute(_DATABASES)]


class ServerProbe(NamedTuple):
    """A probe: its name, whether it needs a session of our own on a primary, and what it does."""

    name: str
    needs_session: bool
    run: Callable[[Patient, Link], Awaitable[Finding]]


def server_probes() -> tuple[ServerProbe, ...]:
    """All of them, in order: settings are asked for before they are changed, and changed before they are looked at."""
    return (
        ServerProbe("version", False, _version),
        ServerProbe("rights", False, _rights),
        ServerProbe("settings", True, _settings),
        ServerProbe("idle_session_timeout", False, _idle),
        ServerProbe("keepalive", True, _keepalive),
        ServerProbe("LISTEN/NOTIFY", True, _notify),
        ServerProbe("lock", True, _lock),
        ServerProbe("lock table", False, _lock_table),
        ServerProbe("connections", False, _connections),
        ServerProbe("notification queue", False, _queue),
        ServerProbe("latency", False, _latency),
        ServerProbe("clock", False, _clock),
    )


async def _version(patient: Patient, link: Link) -> Finding:
    return verdicts.version(link.version)


async def _rights(patient: Patient, link: Link) -> Finding:
    role, sees = (await link.execute(_RIGHTS))[0]
    return verdicts.rights((role or b"").decode(errors="replace"), sees == b"t")


async def _settings(patient: Patient, link: Link) -> Finding:
    forced = {
        (name or b"").decode(): (value or b"").decode(errors="replace") for name, value in await link.execute(_FORCED)
    }
    wanted = settings(link.version, network_timeout=NETWORK_TIMEOUT, lock_timeout=_LOCK_TIMEOUT)
    patient.refused = await apply_settings(link, wanted)
    return verdicts.settings_taken(len(wanted) - len(patient.refused), patient.refused, forced)


async def _idle(patient: Patient, link: Link) -> Finding:
    rows = await link.execute(_IDLE_LIMIT)
    return verdicts.idle_limit(int(rows[0][0] or 0) if rows else 0, "idle_session_timeout" in patient.refused)


async def _keepalive(patient: Patient, link: Link) -> Finding:
    idle, user_timeout = (await link.execute(_KEEPALIVE))[0]
    return verdicts.keepalive(int(idle or 0), int(user_timeout or 0), patient.is_socket)


async def _notify(patient: Patient, link: Link) -> Finding:
    channel = f"pgconcert:proof:{secrets.token_hex(8)}"
    ear = _Ear(channel.encode())
    link.owner = ear
    link.hear = ear.hear
    try:
        await link.execute(statement(f'listen "{channel}"'))
        async with _sender(patient) as sender:
            started = time.monotonic()
            await sender.execute(NOTIFY, (channel.encode(), b""))
            await asyncio.wait([ear.heard], timeout=NETWORK_TIMEOUT)
        if not ear.heard.done():
            return verdicts.notification(None, NETWORK_TIMEOUT)
        ear.heard.result()
        return verdicts.notification(time.monotonic() - started, NETWORK_TIMEOUT)
    finally:
        link.owner = None
        link.send(statement(f'unlisten "{channel}"'), (), lambda rows, error: None)


async def _lock(patient: Patient, link: Link) -> Finding:
    key = (b"%d" % KeySpace("pgconcert doctor").key(secrets.token_hex(8)).value,)
    assert patient.place is not None

    async def granted(asked: Link) -> bool:
        return (await asked.execute(TRY, key))[0][0] == b"t"

    async with connected(patient.place.conninfo) as other:
        story = [await granted(link), await granted(other)]
        await link.execute(_UNLOCK, key)
        story.append(await granted(other))
    return verdicts.lock_story(story)


async def _lock_table(patient: Patient, link: Link) -> Finding:
    assert patient.proof is not None
    return verdicts.lock_table(patient.proof.lock_table, int((await link.execute(LOCKS_ON_SERVER))[0][0] or 0))


async def _connections(patient: Patient, link: Link) -> Finding:
    most, reserved, used = (int(value or 0) for value in (await link.execute(_CONNECTIONS))[0])
    return verdicts.connections(most, reserved, used)


async def _queue(patient: Patient, link: Link) -> Finding:
    return verdicts.notify_queue(float((await link.execute(_QUEUE))[0][0] or 0))


async def _latency(patient: Patient, link: Link) -> Finding:
    took: list[float] = []
    for _ in range(_ROUNDS):
        started = time.monotonic()
        await link.execute(PING)
        took.append(time.monotonic() - started)
    return verdicts.latency(statistics.median(took), _ROUNDS)


async def _clock(patient: Patient, link: Link) -> Finding:
    before = time.time()
    theirs = float((await link.execute(_CLOCK))[0][0] or 0)
    after = time.time()
    return verdicts.clock(theirs - (before + after) / 2, abs(after - before) / 2)


class _Ear:
    """The owner of a link for the length of one probe: waits for one notification."""

    def __init__(self, channel: bytes) -> None:
        self._channel = channel
        self.heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(self, channel: bytes, pid: int, payload: bytes) -> None:
        if channel == self._channel and not self.heard.done():
            self.heard.set_result(None)

    def link_lost(self, link: Link, reason: str) -> None:
        if not self.heard.done():
            self.heard.set_exception(LinkLost(reason))
            self.heard.exception()  # read: nobody else may


@asynccontextmanager
async def _sender(patient: Patient) -> AsyncIterator[Link]:
    """Another session than the one that listens, so that the notification goes the whole way."""
    if patient.sender is not None:
        yield patient.sender
        return
    assert patient.place is not None
    async with connected(patient.place.conninfo) as other:
        yield other
