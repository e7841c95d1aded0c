"""The port of a driver on connections of every kind: begin, commit, rollback, and what is open afterwards.

Here live tests of the files of drivers in `transaction/` and of `lending.py`. Theory: after each end the connection
must be as its owner had it, so each test begins another transaction after it, and looks from outside at what was
written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from pgconcert.errors import ConfigurationError, TransactionAborted
from pgconcert.testing import eventually_async
from pgconcert.transaction.connections import driver_of
from pgconcert.transaction.flow import Query
from tests.postgres.callers import KINDS, Caller, caller
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows

QUICK = ("psycopg", "asyncpg", "sqlalchemy-asyncpg", "sqlalchemy-session", "django")


def parametrized(quick: tuple[str, ...]) -> pytest.MarkDecorator:
    """Every kind, and in autocommit mode those that have it; quickly some of them."""
    found = [(kind, False, kind in quick) for kind in KINDS]
    found += [
        (kind, True, kind == "sqlalchemy-psycopg2") for kind in KINDS if kind.startswith(("psycopg", "sqlalchemy"))
    ]
    cases = [pytest.param(kind, mode, marks=() if fast else pytest.mark.long) for kind, mode, fast in found]
    return pytest.mark.parametrize(("kind", "autocommit"), cases)


every, some, few = parametrized(KINDS), parametrized(QUICK), parametrized(("asyncpg", "sqlalchemy-session", "django"))


@pytest.fixture
def table(database: str) -> Iterator[str]:
    """The URL of a database with an empty table `mine`."""
    with raw(database) as owner:
        owner.execute("create table mine (n int)")
        yield database
        owner.execute("drop table mine")


class Port:
    """A driver, whose methods run where the caller's connection may be used."""

    def __init__(self, one: Caller, driver: Any) -> None:
        self.one = one
        self.driver = driver

    async def __call__(self, method: str, *values: Any) -> Any:
        return await self.one.call(getattr(self.driver, method), *values)

    async def insert(self, number: int) -> None:
        await self("one", Query("insert into mine values (cast($1 as pg_catalog.int4))", (number,), rows=False))

    async def fail(self) -> None:
        with pytest.raises(Exception, match="division by zero") as caught:
            await self("one", Query("select 1/0"))
        assert self.driver.failure(caught.value).sqlstate == "22012"
        assert self.driver.failure(caught.value).message == "division by zero"


async def port(one: Caller) -> Port:
    return Port(one, await one.say(driver_of, "the test"))


def written(url: str) -> list[int]:
    return [row[0] for row in rows(url, "select n from mine order by n")]


@every
async def test_a_transaction(table: str, kind: str, autocommit: bool) -> None:
    """Committed or rolled back, with savepoints inside; the isolation is that of one transaction."""
    async with caller(kind, table, autocommit=autocommit) as one:
        said = await port(one)
        before = await one.value("show transaction_isolation")
        if not autocommit and not kind.startswith(("asyncpg", "django")):
            await one.rollback()
        begun = await said("begin", "serializable")
        assert await said("in_transaction")
        assert await said("one", Query("show transaction_isolation")) == ("serializable",)
        await said.insert(1)
        inner = await said("begin", None)
        await said.insert(2)
        await said("rollback", inner)
        inner = await said("begin", None)
        with pytest.raises(ConfigurationError, match="isolation='serializable' is for a transaction that begins"):
            await said("begin", "serializable")
        await said.insert(3)
        await said("commit", inner)
        assert written(table) == []
        await said("commit", begun)
        assert written(table) == [1, 3]
        begun = await said("begin", None)
        await said.insert(4)
        await said("rollback", begun)
        assert written(table) == [1, 3]
        assert await one.value("show transaction_isolation") == before
        assert await idle(one, table, autocommit)


@some
async def test_a_failed_one_is_not_committed(table: str, kind: str, autocommit: bool) -> None:
    """What the server would roll back without a word is an error; it is open until it is rolled back. A savepoint that
    failed takes nothing else with it."""
    async with caller(kind, table, autocommit=autocommit) as one:
        said = await port(one)
        begun = await said("begin", None)
        await said.insert(1)
        await said.fail()
        with pytest.raises(TransactionAborted, match="a statement of this transaction had failed"):
            await said("commit", begun)
        await said("rollback", begun)
        begun = await said("begin", None)
        await said.insert(2)
        inner = await said("begin", None)
        await said.fail()
        with pytest.raises(TransactionAborted):
            await said("commit", inner)
        await said("rollback", inner)
        await said("commit", begun)
        assert written(table) == [2]
        assert await idle(one, table, autocommit)


@some
async def test_one_that_is_over(table: str, kind: str, autocommit: bool) -> None:
    """A transaction that was ended in SQL is over for us too, and the next one is a new one."""
    async with caller(kind, table, autocommit=autocommit) as one:
        said = await port(one)
        for number, (theirs, ours) in enumerate(itertools.product(("commit", "rollback"), repeat=2)):
            begun = await said("begin", None)
            await said.insert(number)
            await one.execute(theirs)
            await said(ours, begun)
        begun = await said("begin", "repeatable read")
        await said.insert(4)
        await said("commit", begun)
        assert written(table) == [0, 1, 4]


@few
async def test_one_that_is_thrown_away(table: str, kind: str, autocommit: bool) -> None:
    """A discarded connection is closed, and so is its transaction; a rollback of that says nothing more."""
    async with caller(kind, table, autocommit=autocommit) as one:
        said = await port(one)
        begun = await said("begin", None)
        await said.insert(1)
        pid = await one.pid()
        await said("discard")
        await eventually_async(lambda: not rows(table, f"select 1 from pg_stat_activity where pid = {pid}"))
        await said("rollback", begun)
        await said("discard")
    assert written(table) == []


@few
async def test_one_that_broke(table: str, kind: str, autocommit: bool) -> None:
    """A connection that the server has ended, unseen until the commit, is the driver's error then, never silence."""
    async with caller(kind, table, autocommit=autocommit) as one:
        said = await port(one)
        for seen in (False, True):
            begun = await said("begin", None)
            await said.insert(1)
            pid = await one.pid()
            with raw(table) as owner:
                owner.execute("select pg_terminate_backend(%s, 60000)", (pid,))
            if seen:
                with pytest.raises(Exception, match=r".") as caught:
                    await said("one", Query("select 1"))
                assert not isinstance(caught.value, ConfigurationError)
            with pytest.raises(Exception, match=r".") as caught:
                await said("commit", begun)
            assert not type(caught.value).__module__.startswith("pgconcert"), caught.value
            try:
                await said("rollback", begun)
            except Exception as error:
                assert not type(error).__module__.startswith("pgconcert")  # noqa: PT017
            await said("discard")
            if not kind.startswith(("sqlalchemy", "django")):
                break  # the others can be used again
    assert written(table) == []


async def idle(one: Caller, url: str, autocommit: bool) -> bool:
    """Whether the server is in no transaction, once what the test itself has asked is over; a session
    gives its connection back then, and that is closed."""
    pid = await one.pid()
    if not autocommit and not one.kind.startswith(("asyncpg", "django")):
        await one.rollback()
    return rows(url, f"select state from pg_stat_activity where pid = {pid}") in ([("idle",)], [])
