"""Our tables in a database: examined, made, removed. What they are stands in ``sql/`` and ``schemafiles.py``.

Theory. A version only adds: nothing that is there is renamed, removed, or given another meaning. So a library works
with its own version and every newer one, and processes of two releases work side by side. The states that follow::

    missing --apply--> current <--apply-- old          newer: a later release has applied more; all is well

``apply`` looks first and does nothing when nothing is missing, so a role without any right to create is enough then.
Otherwise one transaction takes an advisory lock of ours (kind 5 of the pair space), looks again, because somebody else
may have been quicker, and runs what is missing, statement by statement, as a pipeline demands. Whatever fails, the
connection is closed and nothing has happened. All this has a connection of its own: only there BEGIN harms nobody.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final, Literal

from ..errors import ConfigurationError, PgconcertError, StatementFailed, Unavailable
from .keeper import Context, Keeper
from .link import Link, Rows, Statement, statement
from .probe import Proof
from .schemafiles import (
    NOT_PERMITTED,
    UNDEFINED,
    apply_command,
    checked,
    drop_statements,
    functions,
    grants,
    identifier,
    not_permitted,
    quoted,
    sequences,
    tables,
    version_statements,
    versions,
)

__all__ = ["Found", "apply", "drop", "ensure", "lacking", "look", "visit"]

_KIND: Final = 5
_PATIENCE: Final = 60.0
"""Seconds without a sign of life, while tables are made, after which the server is taken for dead."""
_LOCK_PATIENCE: Final = 15
"""Seconds that a statement here waits for the locks of others: behind it, everybody else waits too."""

_LOCK_TIMEOUT: Final = "55P03"

_BEGIN: Final = Statement(b"", b"begin isolation level read committed, read write")
_COMMIT: Final = Statement(b"", b"commit")
_LIMITS: Final = Statement(
    b"",
    b"select set_config('lock_timeout', '%ds', true), set_config('statement_timeout', '0', true)" % _LOCK_PATIENCE,
)
_LOCK: Final = Statement(b"", b"select pg_advisory_xact_lock($1, $2)")
_WHO: Final = statement("select current_user, current_database()")
_LOOK: Final = statement("""
    select n.oid is not null, c.oid is not null
      from (select 1) one
      left join pg_catalog.pg_namespace n on n.nspname = $1::text
      left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = 'version' and c.relkind = 'r'
""")
_VERSIONS: Final = b"select version from pgconcert.version where applied is not null order by version"
# A schema goes with our tables if nothing is left in it and we may; that of everybody stays.
_DISPENSABLE: Final = Statement(
    b"",
    b"""select count(*) from pg_catalog.pg_namespace n
         where n.nspname = $1::text and n.nspname <> 'public' and pg_has_role(n.nspowner, 'usage')
           and not exists (select from pg_catalog.pg_depend d
                            where d.refclassid = 'pg_catalog.pg_namespace'::regclass and d.refobjid = n.oid
                              and d.deptype = 'n')""",
)
_RIGHTS: Final = statement("""
    select has_schema_privilege(n.oid, 'usage') and bool_and(
               has_table_privilege(c.oid, 'select') and (c.relname = 'version' or (
                   has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'update')
                   and has_table_privilege(c.oid, 'delete'))))
           and (select bool_and(has_sequence_privilege(q.oid, 'usage')) from pg_catalog.pg_class q
                 where q.relnamespace = n.oid and q.relkind = 'S' and q.relname = any ($3::text[]))
           and (select bool_and(has_function_privilege(f.oid, 'execute')) from pg_catalog.pg_proc f
                 where f.pronamespace = n.oid and f.proname || '()' = any ($4::text[]))
      from pg_catalog.pg_namespace n join pg_catalog.pg_class c on c.relnamespace = n.oid
     where n.nspname = $1::text and c.relkind = 'r' and c.relname = any ($2::text[])
     group by n.oid
""")


# what stands in the database


@dataclass(frozen=True, slots=True)
class Found:
    """What a database has of our tables. ``exists``: the schema itself is there, empty perhaps."""

    schema: str
    exists: bool
    applied: tuple[int, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """The versions that this library knows and the database has not."""
        return tuple(version for version in versions() if version not in self.applied)

    @property
    def verdict(self) -> Literal["missing", "old", "current", "newer"]:
        """``current`` and ``newer`` are fine; the others need ``apply``."""
        if not self.applied:
            return "missing"
        if self.missing:
            return "old"
        return "newer" if max(self.applied) > max(versions()) else "current"


async def look(link: Link, schema: str) -> Found:
    """What is there. Changes nothing.

    Raises ``ConfigurationError`` when the role may not look, or when what is there is not ours.
    """
    place = quoted(schema)
    exists, has_versions = (await link.execute(_LOOK, (schema.encode(),)))[0]
    rows: Rows = []
    if has_versions == b"t":
        asked = Statement(b"", _VERSIONS.replace(b"pgconcert", place.encode()))
        try:
            rows = await _together(link, [(asked, ())])
        except StatementFailed as error:
            if error.sqlstate in UNDEFINED:
                raise ConfigurationError(
                    f"the table {place}.version is somebody else's: give pgconcert a schema of its own (schema=, "
                    "--schema)"
                ) from error
            if error.sqlstate == NOT_PERMITTED:
                raise not_permitted(schema, await _role(link), error) from error
            raise
    return Found(schema, exists == b"t", tuple(int(row[0] or 0) for row in rows))


async def lacking(link: Link, schema: str) -> list[str]:
    """What must be granted to the role of this connection before it can work with the tables. Empty: nothing."""
    made = (("{" + ",".join(names) + "}").encode() for names in (tables(), sequences(), functions()))
    rows = await link.execute(_RIGHTS, (schema.encode(), *made))
    if rows and rows[0][0] == b"t":
        return []
    return grants(schema, await _role(link))


async def apply(link: Link, schema: str) -> tuple[int, ...]:
    """Make what is missing; the versions that this call has applied. Any number of processes may do so at once.

    ``link`` must be nobody else's, and after an error must be closed. Raises ``ConfigurationError`` when the role may
    not (it names what to grant), ``Unavailable`` when the connection dies or somebody locks the tables.
    """
    found = await look(link, schema)
    if not found.missing:
        return ()
    try:
        await _together(link, [(_BEGIN, ()), (_LIMITS, ()), (_LOCK, _pair(schema))])
        found = await look(link, schema)
        made = [each for version in found.missing for each in version_statements(version, schema)]
        if found.exists:
            # even "if not exists" asks for the right to make schemas, which a role may lack in a schema of its own
            made = [each for each in made if not each.sql.startswith(b"create schema ")]
        await _together(link, [*((each, ()) for each in made), (_COMMIT, ())])
    except StatementFailed as error:
        raise await _understood(link, found, "made", error) from error
    return found.missing


async def drop(link: Link, schema: str) -> bool:
    """Remove our tables with all that is in them, and the schema, if nothing else is in it and it is the role's own.

    Whether the schema is gone. ``link`` and errors: as for ``apply``.
    """
    found = await look(link, schema)
    try:
        await _together(link, [(_BEGIN, ()), (_LIMITS, ()), (_LOCK, _pair(schema))])
        found = await look(link, schema)
        if found.exists and found.applied:
            await _together(link, [(each, ()) for each in drop_statements(schema)])
        rows = await _together(link, [(_DISPENSABLE, (schema.encode(),))])
        gone = bool(found.applied) and rows[0][0] == b"1"
        last = [Statement(b"", f"drop schema {quoted(schema)}".encode())] if gone else []
        await _together(link, [(each, ()) for each in (*last, _COMMIT)])
    except StatementFailed as error:
        raise await _understood(link, found, "removed", error) from error
    return gone


async def ensure(context: Context, schema: str) -> None:
    """Connect, make what is missing, close. Errors: see ``apply`` and ``visit``."""
    checked(schema)
    async with visit(context) as link:
        await apply(link, schema)


@asynccontextmanager
async def visit(context: Context) -> AsyncIterator[Link]:
    """A link of one's own for the time of a block. Raises what the first attempt to connect raises."""
    patient = replace(context, network_timeout=max(context.network_timeout, _PATIENCE))
    visitor = _Visitor(context.loop.create_future())
    keeper = Keeper(patient, "work", visitor)
    keeper.want()
    try:
        yield await visitor.link
    finally:
        await keeper.close()


class _Visitor:
    """The owner of a link for one visit."""

    def __init__(self, link: asyncio.Future[Link]) -> None:
        self.link = link

    def link_up(self, link: Link, proof: Proof) -> None:
        """Begin the visit; a second link, after the first has died, is closed with the visit."""
        if not self.link.done():
            self.link.set_result(link)

    def link_down(self, reason: str) -> None:
        """Whoever waits for an answer is told by the link."""

    def connect_failed(self, error: PgconcertError) -> None:
        """End the visit before it began."""
        if not self.link.done():
            self.link.set_exception(error)


async def _together(link: Link, group: Sequence[tuple[Statement, Sequence[bytes | None]]]) -> Rows:
    """Send several statements in one go; the rows of the last."""
    answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def settle(rows: Rows, error: Exception | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(rows)
        else:
            answer.set_exception(error)

    link.send_together(group, settle)
    return await answer


async def _role(link: Link) -> str:
    return ((await link.execute(_WHO))[0][0] or b"").decode(errors="replace")


def _pair(schema: str) -> tuple[bytes, bytes]:
    """The advisory lock under which a schema changes: kind 5, then 32 bits of its name."""
    (name,) = struct.unpack(">i", blake2b(schema.encode(), digest_size=4).digest())
    return str(_KIND << 28).encode(), str(name).encode()


async def _understood(
    link: Link, found: Found, what: Literal["made", "removed"], error: StatementFailed
) -> PgconcertError:
    place = quoted(found.schema)
    if error.sqlstate == _LOCK_TIMEOUT:
        return Unavailable(
            f"the tables of pgconcert in schema {place} were not {what}: another session has held a lock that is in "
            f"the way for {_LOCK_PATIENCE} s; end it (pg_locks names it) and try again"
        )
    if error.sqlstate != NOT_PERMITTED:
        return error
    try:
        await _together(link, [(Statement(b"", b"rollback"), ())])
        role, database = ((name or b"").decode(errors="replace") for name in (await link.execute(_WHO))[0])
    except PgconcertError:
        role, database = "your_role", "your_database"
    if what == "removed":
        return ConfigurationError(
            f"the tables of pgconcert in schema {place} were not removed: {error}; role {role} is not their owner"
        )
    where = f"schema {place}" if found.exists else f"database {identifier(database)}"
    return ConfigurationError(
        f"the tables of pgconcert were not made in schema {place}: {error}; run {apply_command(found.schema)} as an "
        f"owner of the database, or let one run: grant create on {where} to {identifier(role)}"
    )
