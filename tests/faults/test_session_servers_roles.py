"""Roles without rights, and tables that are missing or old, as the programs that use sessions meet them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest

from pgconcert import AsyncCoordinator, transaction
from pgconcert.errors import ConfigurationError, SchemaMissing
from pgconcert.postgres.schemafiles import grants, script
from pgconcert.testing import rewrite
from tests.postgres.scenes import raw
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"pgconcert_test_{secrets.token_hex(6)}"
    server.execute(f"create role {name} login nosuperuser nocreatedb password 'secret'")
    yield name
    server.execute(f"drop role {name}")


@pytest.fixture
def place(server: Server, role: str) -> Iterator[str]:
    """The URL of an empty database, as its owner; whatever is granted there goes before the role does."""
    with server.fresh_database() as url:
        yield url


def as_role(server: Server, url: str, role: str) -> str:
    """The same database, for the role."""
    return rewrite(server.over_tcp(url), user=role, password="secret")


async def use_everything(url: str, unique: str) -> None:
    """All that a program does with sessions, with nothing left at the end."""
    async with AsyncCoordinator(url) as c, AsyncCoordinator(url) as other:
        hold = await c.job_lock(unique, ttl=60, interval=0.3, data={"of": "ours"}).acquire()
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, connection.transaction():
            await transaction.guard(connection, hold)
        lock = other.job_lock(unique)
        assert await lock.try_acquire() is None
        found = await lock.holder()
        assert found is not None
        assert (found.identity, found.data) == (c.identity, {"of": "ours"})
        assert await lock.request_release()
        await hold.wait_release_requested()
        assert await lock.revoke()
        await hold.wait_lost()
        async with c.election(unique).lead() as leadership:
            leader = await other.election(unique).leader()
            assert leader is not None
            assert leader.token == leadership.token
        group = c.group(unique)
        assert await group.create()
        async with group.join(member_id="one", capabilities={"gpu": True}) as membership:
            await membership.update_capabilities({"gpu": False})
            (member,) = await other.group(unique).members()
            assert member.capabilities == {"gpu": False}
        assert await group.delete()
        assert await c.groups() == []
        assert {one.identity for one in await c.sessions()} >= {c.identity}


def ways_in(c: AsyncCoordinator, name: str) -> list[Callable[[], Awaitable[object]]]:
    """The first thing that a program may do."""
    return [
        c.job_lock(name).acquire,
        c.job_lock(name).try_acquire,
        c.job_lock(name).holder,
        c.job_lock(name).revoke,
        lambda: c.run_in_job_lock(name, lambda hold: asyncio.sleep(0)),
        c.election(name).leader,
        c.group(name).create,
        c.group(name).members,
        c.groups,
        c.sessions,
    ]


async def test_no_rights_but_those_that_are_named(server: Server, place: str, role: str, unique: str) -> None:
    """A role that may not make anything does everything, with the grants that ``schema show`` prints."""
    with raw(place) as owner:
        owner.execute(script().encode())
        for grant in grants("pgconcert", role):
            owner.execute(grant.encode())
    url = as_role(server, place, role)
    with raw(url) as limited:
        for made in ("create table pgconcert.other (n int)", "create schema other"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                limited.execute(made.encode())
    await use_everything(url, unique)


async def test_missing_rights_are_named(server: Server, place: str, role: str, unique: str) -> None:
    """Every way in says which statements would help; with them, the same coordinator goes on."""
    with raw(place) as owner:
        owner.execute(script().encode())
    async with AsyncCoordinator(as_role(server, place, role)) as c:
        for attempt in ways_in(c, unique):
            with pytest.raises(ConfigurationError, match=f'grant usage on schema "?pgconcert"? to "{role}"'):
                await attempt()
        with raw(place) as owner:
            for grant in grants("pgconcert", role):
                owner.execute(grant.encode())
        async with c.job_lock(unique) as hold:
            assert not hold.lost


@pytest.mark.parametrize("there", ["nothing", "version 1", "another name"])
async def test_missing_tables_are_named_with_the_command(place: str, unique: str, there: str) -> None:
    """Also tables of an old version; and once they are there, the same coordinator goes on."""
    with raw(place) as owner:
        if there == "version 1":
            owner.execute(script(version=1).encode())
        elif there == "another name":
            owner.execute(script("other").encode())
    async with AsyncCoordinator(place) as c:
        for attempt in ways_in(c, unique):
            with pytest.raises(SchemaMissing, match="pgconcert schema apply"):
                await attempt()
        with raw(place) as owner:
            owner.execute((script(version=2) if there == "version 1" else script()).encode())
        async with c.job_lock(unique) as hold:
            assert not hold.lost


async def test_the_guard_names_what_is_missing(server: Server, place: str, role: str, unique: str) -> None:
    """On a connection of the caller's, whose role may be another than the coordinator's."""
    with raw(place) as owner:
        owner.execute(script().encode())
    with raw(as_role(server, place, role)) as limited, raw(place) as owner:
        async with AsyncCoordinator(place) as c, c.job_lock(unique) as hold:
            with pytest.raises(ConfigurationError, match="grant usage on schema"), limited.transaction():
                transaction.guard(limited, hold)
            with pytest.raises(SchemaMissing, match="pgconcert schema apply --schema elsewhere"):
                with owner.transaction():
                    transaction.guard(owner, hold, schema="elsewhere")
