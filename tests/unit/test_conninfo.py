"""Every form of an address, what it becomes, and that no error ever shows a secret."""

from __future__ import annotations

import asyncio
import functools
import traceback
from urllib.parse import quote

import psycopg_pool
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.conninfo import AddressSource, parse
from pgconcert.errors import ConfigurationError

ENVIRONMENT = ("PGCONCERT_URL", "DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


WANTED = {"host": "h", "port": "5433", "user": "u", "password": "p w", "dbname": "d"}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:p%20w@h:5433/d",
        "postgres://u:p%20w@h:5433/d",
        "postgresql+psycopg://u:p%20w@h:5433/d",
        "postgres+psycopg://u:p%20w@h:5433/d",
        "postgresql+asyncpg://u:p%20w@h:5433/d?prepared_statement_cache_size=0",
        "postgresql+psycopg://u:p%20w@/d?host=h:5433",
        "host=h port=5433 user=u password='p w' dbname=d",
    ],
)
async def test_strings(text: str) -> None:
    assert parse(text) == WANTED
    assert await AddressSource(text).parameters() == WANTED


@pytest.mark.parametrize(
    ("value", "mode"), [("true", "require"), ("False", "disable"), ("verify-full", "verify-full"), ("prefer", "prefer")]
)
def test_ssl_of_asyncpg_becomes_sslmode(value: str, mode: str) -> None:
    assert parse(f"postgresql+asyncpg://h/d?ssl={value}")["sslmode"] == mode


@pytest.mark.parametrize(
    ("text", "hosts", "ports"),
    [
        ("postgresql://a:1,b:2/d", "a,b", "1,2"),
        ("postgresql+psycopg://u@/d?host=a:1&host=b:2", "a,b", "1,2"),
        ("postgresql+psycopg://u@/d?host=a&host=b", "a,b", None),
        ("postgresql+psycopg://u@/d?host=/run/postgresql", "/run/postgresql", None),
        ("host=a,b port=1,2", "a,b", "1,2"),
    ],
)
def test_several_hosts(text: str, hosts: str, ports: str | None) -> None:
    known = parse(text)
    assert (known["host"], known.get("port")) == (hosts, ports)


def test_the_empty_string_leaves_all_to_libpq() -> None:
    assert parse("") == {}


@pytest.mark.parametrize(
    "password",
    [
        "p/w?#@:%+",
        "p w",
    ],
)
async def test_sqlalchemy_engine_with_its_password(password: str) -> None:
    url = sqlalchemy.URL.create("postgresql+psycopg", "u", password, "h", 5433, "d")
    assert await AddressSource(sqlalchemy.create_engine(url)).parameters() == {**WANTED, "password": password}


async def test_unopened_pool() -> None:
    pool = psycopg_pool.ConnectionPool(
        "host=h user=u", kwargs={"dbname": "d", "password": "p w", "port": 5433, "autocommit": True}, open=False
    )
    assert await AddressSource(pool).parameters() == WANTED


async def test_callables_are_asked_at_every_connect() -> None:
    answers = iter(["host=a", "host=b", "host=c", "host=d"])

    async def later() -> str:
        await asyncio.sleep(0)
        return next(answers)

    for source in (AddressSource(lambda: next(answers)), AddressSource(later)):
        seen = [(await source.parameters())["host"] for _ in range(2)]
        assert seen in (["a", "b"], ["c", "d"])


async def test_a_callable_may_return_an_awaitable_and_raise() -> None:
    async def give() -> str:
        return "host=a"

    assert await AddressSource(functools.partial(give)).parameters() == {"host": "a"}

    def vault() -> str:
        raise OSError("vault is sealed")

    with pytest.raises(OSError, match="vault is sealed"):
        await AddressSource(vault).parameters()


async def test_a_callable_must_return_text() -> None:
    with pytest.raises(ConfigurationError, match="returned int"):
        await AddressSource(lambda: 7).parameters()


def test_what_is_no_address() -> None:
    with pytest.raises(ConfigurationError, match="not float"):
        AddressSource(1.5)


async def test_the_environment_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATABASE", "d")
    assert await AddressSource(None).parameters() == {}
    monkeypatch.setenv("DATABASE_URL", "host=second")
    assert (await AddressSource(None).parameters())["host"] == "second"
    monkeypatch.setenv("PGCONCERT_URL", "host=first")
    assert (await AddressSource(None).parameters())["host"] == "first"
    assert (await AddressSource("host=given").parameters())["host"] == "given"


def test_no_address_names_the_ways_to_give_one() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AddressSource(None)
    for way in ("PGCONCERT_URL", "DATABASE_URL", "PGHOST", "--url embedded://"):
        assert way in str(caught.value)


SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cs", "Cc"]), min_size=6)
MARK = "s3cr3t"  # a name: a traceback quotes the lines of this file
BROKEN = (
    "postgresql://u:{0}@h:port/d",
    "postgresql://u:{0}@h/d?nonsense=1",
    "postgresql://u:{0}@[::1/d",
    "postgresql+psycopg://u:{0}@[::1/d",
    "postgresql://u:%zz{0}@h/d",
    "host=h password='{0}",
    "host=h password={0} nonsense",
    "host=h nonsense={0}",
)


@given(SECRET, st.sampled_from(BROKEN))
def test_a_broken_string_is_refused_without_its_secret(secret: str, form: str) -> None:
    shown = ""
    try:
        parse(form.format(MARK + secret))
    except ConfigurationError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error)
    assert MARK not in shown


@given(SECRET)
def test_a_well_quoted_password_arrives_whole(secret: str) -> None:
    assert parse(f"postgresql://u:{quote(secret, safe='')}@h/d")["password"] == secret
    assert parse(f"postgresql+psycopg://u:{quote(secret, safe='')}@h/d")["password"] == secret


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_question_mark_in_a_password_is_no_port(scheme: str) -> None:
    """libpq reads this URL as it is meant; a driver's name in the scheme must not change that."""
    assert parse(f"{scheme}://u:12?34@h/d") == {"user": "u", "password": "12?34", "host": "h", "dbname": "d"}
