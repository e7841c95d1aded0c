"""`is_constraint_error` and real violations, of every kind of constraint, by every driver.

Here lives what needs a server of the tests of `transaction/servererrors.py`; the others stand in
`tests/unit/test_server_errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgconcert.transaction import is_constraint_error
from pgconcert.transaction.servererrors import told_by
from tests.postgres.callers import caller, kinds
from tests.postgres.scenes import raw
from tests.servers import Server

TABLES = """
create table owner (id int constraint owner_key primary key);
create table mail (
    id int not null,
    address text constraint "Address taken" unique,
    owner int constraint "Müller's owner" references owner,
    size int constraint size_is_positive check (size > 0),
    room int4range, constraint room_taken exclude using gist (room with &&)
);
create unique index id_once on mail (id) where id > 10;
insert into owner values (1);
insert into mail values (1, 'a', 1, 1, '[1,5]'), (11, 'b', 1, 1, '[11,15]');
"""

VIOLATIONS = {
    "23505": ("insert into mail (id, address) values (2, 'a')", "Address taken"),
    "23505 of an index": ("insert into mail (id) values (11)", "id_once"),
    "23505 of a key": ("insert into owner values (1)", "owner_key"),
    "23503": ("insert into mail (id, owner) values (2, 7)", "Müller's owner"),
    "23514": ("insert into mail (id, size) values (2, 0)", "size_is_positive"),
    "23P01": ("insert into mail (id, room) values (2, '[4,12]')", "room_taken"),
    "23502": ("insert into mail (size) values (2)", None),
    "22012": ("select 1/0", None),
}


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    """The URL of a database with such tables."""
    with server.fresh_database() as made:
        with raw(made) as conn:
            conn.execute(TABLES.encode())
        yield made


@kinds("psycopg", "asyncpg", "sqlalchemy-psycopg2", "sqlalchemy-pg8000", "sqlalchemy-asyncpg", "django")
async def test_each_constraint_by_its_name(url: str, kind: str) -> None:
    """Each violation is of its own constraint and of no other, bare and wrapped; the code is the server's."""
    names = {name for _, name in VIOLATIONS.values() if name} | {"mail_id_not_null", "id", "mail", "address taken"}
    async with caller(kind, url, autocommit=True) as one:
        for code, (statement, name) in VIOLATIONS.items():
            with pytest.raises(Exception) as raised:
                await one.execute(statement)
            codes = {told.sqlstate for told in told_by(raised.value)}
            assert codes == {code[:5]}
            for error in (raised.value, ExceptionGroup("several", [KeyError(), raised.value])):
                assert {other for other in names if is_constraint_error(error, other)} == ({name} if name else set())
