"""What stands at the other end of a fresh link, found out with statements that change nothing.

The protocol's backend pid against ``pg_backend_pid()`` tells whether a pooler stands in between. If one does, a second
connection tells the modes apart: it opens a transaction, which pins a server session to it; a transaction pooler then
gives it the session that we used last, or gives us another one, or has none left for us. If it has none left for the
second connection, that one waits in line: in transaction mode it gets ours as soon as a transaction of ours has ended.
In session mode ours never changes hands. If the pooler lets no second connection in, its mode cannot be told, and the
attempt fails. Only a session proven our own is given settings, because through a transaction pooler they would stay on
connections that other clients use next. Until it is proven, the link has one Sync at a time on the wire (``link.py``),
and an answer that has not the shape of its question ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import PgconcertError, StatementFailed, Unavailable
from .link import Link, Rows
from .statements import BACKEND_PID, BEGIN, INCARNATION, PROBE, ROLLBACK, SET

__all__ = ["Proof", "Through", "apply_settings", "prove", "settings"]

Through = Literal["direct", "session pooler", "transaction pooler"]

_ROUNDS: Final = 5
_PATIENCE: Final = 1.0
_SOON: Final = 0.1
_LOOKS: Final = 20
_BETWEEN_LOOKS: Final = 0.1
_CANCELLED: Final = "57014"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a probe found. ``pid`` is the server process behind the link, ``lock_table`` how many locks the server has
    room for, ``database`` the oid of ours, ``incarnation`` (system identifier, timeline) where the role may read it,
    ``started`` when the server was started, as a text that tells one start from another."""

    pid: int
    through: Through
    standby: bool
    lock_table: int
    database: bytes
    incarnation: tuple[int, int] | None
    started: bytes = b""


async def prove(link: Link, second: Callable[[], Awaitable[Link]]) -> Proof:
    """Probe ``link``. ``second`` opens another connection to the same address; it is asked only behind a pooler."""
    link.named = False
    row = await _row(link, link.execute(PROBE), 5)
    incarnation = await _incarnation(link)
    through: Through = "direct"
    if int(row[0] or 0) != link.pid:
        through = await _pooler_mode(link, second)
    link.named = through != "transaction pooler"
    return Proof(
        pid=int(row[0] or 0),
        through=through,
        standby=row[1] == b"t",
        lock_table=int(row[2] or 0),
        database=row[3] or b"0",
        incarnation=incarnation,
        started=row[4] or b"",
    )


async def _incarnation(link: Link) -> tuple[int, int] | None:
    try:
        identifier, wal_file = await _row(link, link.execute(INCARNATION), 2)
    except StatementFailed as error:
        if error.sqlstate == _CANCELLED:
            raise
        return None  # some managed servers do not let plain roles look
    if identifier is None or wal_file is None:
        return None
    return int(identifier), int(wal_file[:8], 16)


async def _pooler_mode(link: Link, second: Callable[[], Awaitable[Link]]) -> Through:
    try:
        other = await second()
    except PgconcertError as error:
        # not to know the mode must never mean that sessions are our own
        raise Unavailable(
            f"a pooler stands in between, and its mode cannot be told, because it let no second connection in: {error}"
        ) from error
    other.named = False
    try:
        mine = await _pid(link)
        waits = 0
        for _ in range(_ROUNDS):
            begun = other.execute(BEGIN)
            await asyncio.wait([begun], timeout=_PATIENCE)
            if not begun.done() and await _is_ours_alone(link, mine, begun):
                return "session pooler"
            try:
                await asyncio.wait_for(begun, _PATIENCE)
                theirs = await asyncio.wait_for(_pid(other), _PATIENCE)
                asked = link.execute(BACKEND_PID)
                await asyncio.wait([asked], timeout=_SOON)
                # whoever waits in line for a session waits for none of its own; but a network may be slow for once
                waits += not asked.done()
                ended = other.execute(ROLLBACK)
                now = await asyncio.wait_for(_number(link, asked), _PATIENCE)
                await asyncio.wait_for(ended, _PATIENCE)
                # ours is now what was used last, which a pooler of transactions gives away first
                again = await asyncio.wait_for(_pid(link), _PATIENCE)
            except (PgconcertError, TimeoutError):
                return "transaction pooler"
            if theirs == mine or now != mine or again != mine:
                return "transaction pooler"
        return "transaction pooler" if waits == _ROUNDS else "session pooler"
    finally:
        other.close("the probe has ended")


async def _is_ours_alone(link: Link, mine: int, begun: asyncio.Future[Rows]) -> bool:
    """The pooler has no session for a second connection. In transaction mode it takes ours for that one as soon as a
    transaction of ours has ended, or somebody else does; in session mode ours is ours all the same."""
    waits = 0
    for _ in range(_LOOKS):
        asked = link.execute(BACKEND_PID)
        await asyncio.wait([asked], timeout=_SOON)
        waits += not asked.done()
        await asyncio.wait([asked, begun], timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if waits > _LOOKS // 4 or not asked.done() or await _number(link, asked) != mine:
            return False
        # not a moment longer than needed: its transaction keeps a session from others
        await asyncio.wait([begun], timeout=_BETWEEN_LOOKS)
        if begun.done():
            return False
    return True


async def _pid(link: Link) -> int:
    return await _number(link, link.execute(BACKEND_PID))


async def _number(link: Link, asked: Awaitable[Rows]) -> int:
    (number,) = await _row(link, asked, 1)
    return int(number or 0)


async def _row(link: Link, asked: Awaitable[Rows], columns: int) -> tuple[bytes | None, ...]:
    rows = await asked
    if len(rows) != 1 or len(rows[0]) != columns:
        reason = f"one row of {columns} columns was asked for, and something else came: what stands in between mixes up"
        link.close(f"{reason} answers")
        raise Unavailable(f"{reason} answers")
    return rows[0]


async def apply_settings(link: Link, wanted: Mapping[str, str]) -> dict[str, str]:
    """Give a session of our own its settings, in one round trip. Returns what was refused, with the server's words.

    A role's time limit may end the very statement that was to lift it. That is no refusal, and without the setting the
    session would go on under that limit: it is raised, and the next attempt may be quicker.
    """
    asked = {name: link.execute(SET, (name.encode(), value.encode())) for name, value in wanted.items()}
    refused: dict[str, str] = {}
    cancelled: StatementFailed | None = None
    for name, answer in asked.items():
        try:
            await answer
        except StatementFailed as error:
            refused[name] = str(error)
            if error.sqlstate == _CANCELLED:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    return refused


def settings(version: int, *, network_timeout: float, lock_timeout: float) -> dict[str, str]:
    """The settings of a session: immune to what role and database set, and quick to notice a dead peer.

    No time limit of the server may end a session that holds locks; our own deadline covers statements.
    """
    bound = str(max(1000, round(network_timeout * 1000)))
    seconds = str(max(1, round(network_timeout / 2)))
    wanted = {
        "client_encoding": "UTF8",
        "search_path": "",
        "statement_timeout": "0",
        "lock_timeout": str(max(1, round(lock_timeout * 1000))),
        "idle_in_transaction_session_timeout": "0",
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "default_transaction_deferrable": "off",
        "synchronous_commit": "on",
        "tcp_keepalives_idle": seconds,
        "tcp_keepalives_interval": seconds,
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": bound,
    }
    if version >= 140000:
        wanted["idle_session_timeout"] = "0"
        wanted["client_connection_check_interval"] = bound
    if version >= 170000:
        wanted["transaction_timeout"] = "0"
    return wanted
