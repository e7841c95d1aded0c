"""The callers themselves: each kind begins, commits, rolls back and makes savepoints as the others do.

Here live tests of `tests/postgres/callers.py`.
"""

from __future__ import annotations

from tests.postgres.callers import caller, kinds
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows


@kinds("sqlalchemy-pg8000", "django")
async def test_a_caller(database: str, unique: str, kind: str) -> None:
    table = f'"{unique}{kind}"'
    with raw(database) as owner:
        owner.execute(f"create table {table} (n int)".encode())
    async with caller(kind, database) as one:
        for end, first in ((one.rollback, 1), (one.commit, 3)):
            await one.begin()
            await one.execute(f"insert into {table} values ({first})")
            await one.savepoint("here")
            await one.execute(f"insert into {table} values ({first + 1})")
            assert await one.value(f"select count(*) from {table}") == 2
            await one.rollback_to("here")
            assert await one.pid() > 0
            await end()
        await one.begin()
        await one.execute(f"insert into {table} values (9)")  # closed with a transaction open
    assert rows(database, f"select n from {table}") == [(3,)]
    with raw(database) as owner:
        owner.execute(f"drop table {table}".encode())
