"""The tables on a real server: made once whoever comes, looked at, removed without what is not ours.

Here live tests of `postgres/schema.py`, `postgres/schemafiles.py` and the files in `postgres/sql/`; the commands stand
in `tests/cli/test_schema.py`. Theory: what is there is asked of the catalogue, by another connection.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pgconcert.errors import ConfigurationError, StatementFailed, Unavailable
from pgconcert.postgres import schema
from pgconcert.postgres.link import Link, Statement
from pgconcert.postgres.schema import apply, drop, ensure, lacking, look
from pgconcert.postgres.schemafiles import checked, grants, quoted, script, tables, versions
from pgconcert.testing import eventually_async, rewrite
from tests.poolers import PgBouncer
from tests.postgres.scenes import context, raw
from tests.servers import Server

ODD = 'we "ird"; -- x\'y %s  $ z'
NEWEST = max(versions())
ALL = tuple(versions())


@pytest.fixture
def empty(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, without our tables."""
    with server.fresh_database() as url:
        yield url


@pytest.fixture
def plain(server: Server, empty: str, unique: str) -> Iterator[tuple[str, str]]:
    """A role without any right but to connect: its name, and the URL with which it comes."""
    role = re.sub(r"\W", "_", unique) + '\'s "role"'
    server.execute(f"create role {quoted(role)} login password 'x'")
    yield role, rewrite(server.over_tcp(empty), user=role, password="x")
    with raw(empty) as owner:
        owner.execute(f"drop owned by {quoted(role)} cascade".encode())
    server.execute(f"drop role {quoted(role)}")


@asynccontextmanager
async def visit(url: str) -> AsyncGenerator[Link]:
    """A link for a moment."""
    async with schema.visit(context(url)) as link:
        yield link


async def applied(url: str, name: str = "pgconcert") -> tuple[int, ...]:
    """Apply, on a connection of its own."""
    async with visit(url) as link:
        return await apply(link, name)


def rows(url: str, sql: str, *params: object) -> list[tuple[Any, ...]]:
    """Ask with another connection."""
    with raw(url) as connection:
        return connection.execute(sql.encode(), params or None).fetchall()


def relations(url: str, name: str) -> set[str]:
    """The tables in a schema."""
    return {row[0] for row in rows(url, "select tablename from pg_tables where schemaname = %s", name)}


def has_schema(url: str, name: str) -> bool:
    """Whether there is a schema."""
    return bool(rows(url, "select 1 from pg_namespace where nspname = %s", name))


# the files


def test_the_files() -> None:
    """Numbered without holes; each ends by writing its number; no sign that other tools would take for theirs."""
    assert list(versions()) == list(range(1, NEWEST + 1))
    for number, text in versions().items():
        assert text.endswith(f"\n\ninsert into pgconcert.version (version) values ({number});\n")
        assert not set(text) & set("%:{}")
        assert all(use == "pgconcert." for use in re.findall(r"pgconcert.", text) if use != "pgconcert;")
    assert re.findall(r"create schema.*", "".join(versions().values())) == ["create schema if not exists pgconcert;"]


def test_the_text_names_the_schema() -> None:
    """Nothing but the name that was given is in it; every version is there, or the one that was asked for."""
    text = script(ODD)
    assert "pgconcert" not in text
    assert text.count(quoted(ODD)) == script().count('"pgconcert"') > 10
    assert script(version=1).startswith("-- Version 1")
    assert '\n--   grant usage on schema "pgconcert" to "your_role";\n' in script(version=1)
    with pytest.raises(ConfigurationError, match=f"no version {NEWEST + 1} of the schema; there are 1 to {NEWEST}"):
        script(version=NEWEST + 1)


@pytest.mark.parametrize("name", ["", "a\0b", "é" * 32, "a\nb", "\x7f", "\ud800", 5, None, b"x"])
def test_names_that_can_be_none(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^schema must be a text"):
        checked(name)


# making


@pytest.mark.parametrize("name", ["pgconcert", ODD, "é" * 31 + "x"])
async def test_apply(empty: str, name: str) -> None:
    """All tables are there, under that name and no other; the second time nothing happens."""
    async with visit(empty) as link:
        assert (await look(link, name)).verdict == "missing"
        assert await apply(link, name) == ALL
        found = await look(link, name)
        assert (found.verdict, found.applied, found.exists) == ("current", ALL, True)
        assert await lacking(link, name) == []
        before = link.statements
        assert await apply(link, name) == ()
        assert link.statements == before + 2
    assert relations(empty, name) == set(tables())
    assert has_schema(empty, "pgconcert") == (name == "pgconcert")
    recent = f"select bool_and(clock_timestamp() - applied < '1 minute') from {quoted(name)}.version"
    with raw(empty) as connection:
        assert connection.execute(recent.encode()).fetchone() == (True,)


async def test_storage(empty: str) -> None:
    """Payloads are stored outside their row, and not compressed."""
    await applied(empty)
    external = (
        "select attstorage from pg_attribute where attrelid = 'pgconcert.message_payload'::regclass and attname = %s"
    )
    assert rows(empty, external, "payload") in ([("e",)], [(b"e",)])


async def test_ten_at_once(empty: str) -> None:
    """Of ten connections at once on a fresh database one makes the tables, and none gets an error."""
    outcomes = await asyncio.gather(*(applied(empty) for _ in range(10)))
    assert sorted(outcomes) == [()] * 9 + [ALL]
    assert relations(empty, "pgconcert") == set(tables())


async def test_nothing_half_made(empty: str) -> None:
    """A failure in the middle leaves nothing of what came before it."""
    with raw(empty) as owner:
        owner.execute("create schema pgconcert; create table pgconcert.message_claim (mine int)")
    with pytest.raises(StatementFailed, match="already exists"):
        await applied(empty)
    assert relations(empty, "pgconcert") == {"message_claim"}


async def test_leaving_in_the_middle(empty: str) -> None:
    """A caller that leaves while others make the tables leaves nothing behind, and nothing half done."""
    with raw(empty) as other:
        other.execute("select pg_advisory_lock(%s, %s)", [int(part) for part in schema._pair("pgconcert")])
        task = asyncio.create_task(applied(empty))
        waits = "select 1 from pg_locks where locktype = 'advisory' and not granted"
        await eventually_async(lambda: rows(empty, waits), what="it waits for the other")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    locks = "select 1 from pg_locks where locktype = 'advisory'"
    await eventually_async(lambda: not rows(empty, locks), what="its session has ended")
    assert not has_schema(empty, "pgconcert")


async def test_the_text_is_enough(empty: str) -> None:
    """The printed text, run as one transaction by another tool, is the same as applying."""
    with raw(empty) as tool, tool.transaction():
        tool.execute(script(ODD).encode())
    async with visit(empty) as link:
        assert (await look(link, ODD)).verdict == "current"
        assert await apply(link, ODD) == ()
        assert await apply(link, "pgconcert") == ALL
    columns = """
        select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage, a.attidentity,
               coalesce(c.reloptions, '{}')
          from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
         where n.nspname = %s and a.attnum > 0 order by 1, 2
    """
    assert rows(empty, columns, ODD) == rows(empty, columns, "pgconcert") != []


async def test_ensure(empty: str) -> None:
    """What a coordinator with ``migrate=True`` calls: makes what is missing, and has nothing open afterwards."""
    await asyncio.gather(*(ensure(context(empty), "pgconcert") for _ in range(3)))
    assert relations(empty, "pgconcert") == set(tables())
    left = "select 1 from pg_stat_activity where application_name like '%%pgconcert-work'"
    await eventually_async(lambda: not rows(empty, left), what="its sessions have ended")


async def test_ensure_without_a_server() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await ensure(context("postgresql://ann:hunter2@127.0.0.1:1/app"), "pgconcert")


@pytest.mark.needs("pgbouncer")
async def test_through_a_transaction_pooler(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Several at once through one; nothing of it stays on the sessions of others."""
    pooler = pgbouncer("transaction", pool_size=8)
    outcomes = await asyncio.gather(*(applied(pooler.url) for _ in range(3)))
    assert sorted(outcomes) == [()] * 2 + [ALL]
    for _ in range(4):
        assert rows(pooler.url, "select current_setting('lock_timeout')") == [("0",)]
    async with visit(pooler.url) as link:
        assert await drop(link, "pgconcert")


async def test_hostile_defaults(server: Server, empty: str) -> None:
    """What the database sets for its sessions changes nothing."""
    name = rows(empty, "select current_database()")[0][0]
    for setting in (
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "search_path = nowhere",
    ):
        server.execute(f"alter database {name} set {setting}")
    assert sorted(await asyncio.gather(*(applied(empty) for _ in range(4)))) == [()] * 3 + [ALL]


# roles


async def test_a_role_without_rights(empty: str, plain: tuple[str, str]) -> None:
    """It is told what to grant; with exactly that it finds all current, and applying asks for no more."""
    role, url = plain
    with pytest.raises(ConfigurationError, match="permission denied for database") as refused:
        await applied(url)
    assert "run pgconcert schema apply as an owner of the database" in str(refused.value)
    assert str(refused.value).endswith(f" to {quoted(role)}")
    await applied(empty)
    with pytest.raises(ConfigurationError, match="permission denied for schema pgconcert") as refused:
        await applied(url)
    for grant in grants("pgconcert", role):
        assert grant in str(refused.value)
    with raw(empty) as owner:
        needed = grants("pgconcert", role)
        owner.execute(b"revoke execute on all functions in schema pgconcert from public")
        async with visit(url) as link:
            for grant in needed:
                owner.execute(grant.encode())
                assert await lacking(link, "pgconcert") == ([] if grant is needed[-1] else needed)
            assert await apply(link, "pgconcert") == ()


async def test_the_right_that_is_named_is_enough(empty: str, plain: tuple[str, str]) -> None:
    """The statement in the message lets the role make its own tables."""
    _, url = plain
    with pytest.raises(ConfigurationError) as refused:
        await applied(url)
    with raw(empty) as owner:
        owner.execute(str(refused.value).partition("let one run: ")[2].encode())
    assert await applied(url) == ALL


async def test_a_schema_made_by_somebody_else(empty: str, plain: tuple[str, str]) -> None:
    """A role that may create in a schema, but make none, makes its tables there; dropping them leaves the schema."""
    _, url = plain
    with raw(empty) as owner:
        owner.execute("create schema pgconcert")
    with pytest.raises(ConfigurationError, match="grant create on schema ") as refused:
        await applied(url)
    with raw(empty) as owner:
        owner.execute(str(refused.value).partition("let one run: ")[2].encode())
        owner.execute(grants("pgconcert", plain[0])[0].encode())
    assert await applied(url) == ALL
    async with visit(url) as link:
        assert not await drop(link, "pgconcert")
    assert has_schema(empty, "pgconcert")
    assert relations(empty, "pgconcert") == set()


async def test_dropping_what_belongs_to_others(empty: str, plain: tuple[str, str]) -> None:
    role, url = plain
    await applied(empty)
    with raw(empty) as owner:
        for grant in grants("pgconcert", role):
            owner.execute(grant.encode())
    async with visit(url) as link:
        with pytest.raises(ConfigurationError, match=r"were not removed: must be owner of table .* is not their owner"):
            await drop(link, "pgconcert")
    assert relations(empty, "pgconcert") == set(tables())


# looking


async def test_verdicts(empty: str) -> None:
    """Missing without the schema and in an empty one; old, newer and current by the versions that are there."""

    async def verdict() -> str:
        async with visit(empty) as link:
            return (await look(link, "pgconcert")).verdict

    with raw(empty) as owner:
        assert await verdict() == "missing"
        owner.execute("create schema pgconcert")
        assert await verdict() == "missing"
        await applied(empty)
        assert await verdict() == "current"
        owner.execute("insert into pgconcert.version (version) values (1000)")
        assert await verdict() == "newer"
        assert await applied(empty) == ()
        owner.execute("delete from pgconcert.version where version = %s", [NEWEST])
        assert await verdict() == "old"


async def test_a_table_of_somebody_else(empty: str) -> None:
    """A table ``version`` that is not ours is not taken for ours, and not removed."""
    with raw(empty) as owner:
        owner.execute("create table public.version (number int)")
    async with visit(empty) as link:
        for ask in (look, apply, drop):
            with pytest.raises(ConfigurationError, match=r'"public"\.version is somebody else\'s'):
                await ask(link, "public")
    assert relations(empty, "public") == {"version"}


# removing


@pytest.mark.parametrize("name", ["pgconcert", ODD])
async def test_drop(empty: str, name: str) -> None:
    """Nothing of ours is left; again, there is nothing to do; and it can be made anew."""
    everything = "select count(*) from pg_class where relnamespace = (select oid from pg_namespace where nspname = %s)"
    async with visit(empty) as link:
        assert not await drop(link, name)
        await apply(link, name)
        assert await drop(link, name)
        assert rows(empty, everything, name) == [(0,)]
        assert not has_schema(empty, name)
        assert not await drop(link, name)
        assert await apply(link, name) == ALL


@pytest.mark.parametrize(
    "other",
    ["table {0}.theirs (a int)", "function {0}.f() returns int language sql as 'select 1'", "type {0}.t as (a int)"],
)
async def test_drop_leaves_what_is_not_ours(empty: str, other: str) -> None:
    with raw(empty) as owner:
        owner.execute("create schema app")
        owner.execute(f"create {other.format('app')}".encode())
    async with visit(empty) as link:
        await apply(link, "app")
        assert not await drop(link, "app")
    assert has_schema(empty, "app")
    assert not relations(empty, "app") & set(tables())


async def test_drop_leaves_public(empty: str) -> None:
    async with visit(empty) as link:
        await apply(link, "public")
        assert not await drop(link, "public")
    assert has_schema(empty, "public")
    assert relations(empty, "public") == set()


async def test_somebody_in_the_way(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that others have locked is not waited for without end, and nothing has happened."""
    await applied(empty)
    monkeypatch.setattr(schema, "_LIMITS", Statement(b"", b"select set_config('lock_timeout', '50ms', true)"))
    with raw(empty) as other, other.transaction():
        other.execute("lock table pgconcert.message_payload in share mode")
        async with visit(empty) as link:
            with pytest.raises(Unavailable, match="another session has held a lock"):
                await drop(link, "pgconcert")
    assert relations(empty, "pgconcert") == set(tables())
