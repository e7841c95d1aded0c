"""`conninfo.with_parameters`: what libpq and SQLAlchemy read from it, what stays as it was, and no secret shown.

Theory: libpq's own parser is the oracle. Whatever is given comes back from it unchanged, beside all that was there
before; and what a URL had and nobody changed is found in the result letter by letter.
"""

from __future__ import annotations

import traceback
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from pgconcert.conninfo import parse, with_parameters
from pgconcert.errors import ConfigurationError

MARK = "s3cr3t"  # a name: a traceback quotes the lines of this file

EXAMPLES = [
    # one more, and one in the place of another
    ("postgresql://h/d", {"sslmode": "require"}, "postgresql://h/d?sslmode=require"),
    ("postgres://h/d", {"sslmode": "require"}, "postgres://h/d?sslmode=require"),
    ("postgresql://h?sslmode=disable", {"sslmode": "require"}, "postgresql://h?sslmode=require"),
    ("postgresql://h/d?ssl=true", {"sslmode": "disable"}, "postgresql://h/d?sslmode=disable"),
    ("postgresql://h/d?options=-c%20a%3D1&sslmode=disable", {"sslmode": None}, "postgresql://h/d?options=-c%20a%3D1"),
    ("postgresql://h/d?application%5Fname=a", {"application_name": "b"}, "postgresql://h/d?application_name=b"),
    ("postgresql://h/d?options=-c a%3D1", {"keepalives": False}, "postgresql://h/d?options=-c%20a%3D1&keepalives=0"),
    ("postgresql://h/d", {"keepalives": True, "connect_timeout": 5}, "postgresql://h/d?keepalives=1&connect_timeout=5"),
    ("postgresql://h/d", {}, "postgresql://h/d"),
    # what stands in the authority is replaced there
    ("postgresql://u:p@h:5/d", {"dbname": "o t"}, "postgresql://u:p@h:5/o%20t"),
    ("postgresql://u:p@h:5/d", {"dbname": None}, "postgresql://u:p@h:5/"),
    ("postgresql://h?dbname=d", {"dbname": "o"}, "postgresql://h/o"),
    ("postgresql://u:p@h/d", {"user": "a@b"}, "postgresql://a%40b:p@h/d"),
    ("postgresql://h/d?application_name=a@b", {"user": "x"}, "postgresql://x@h/d?application_name=a@b"),
    ("postgresql://u:p@h/d", {"password": "/:?@"}, "postgresql://u:%2F%3A%3F%40@h/d"),
    ("postgresql://u:p@h/d", {"password": None}, "postgresql://u@h/d"),
    ("postgresql://u:p@h/d", {"user": None, "password": None}, "postgresql://h/d"),
    ("postgresql://u@h/d?password=old", {"password": "new"}, "postgresql://u:new@h/d"),
    ("postgresql://u:p@h:5/d", {"port": 6}, "postgresql://u:p@h:6/d"),
    ("postgresql://u:p@h:5/d", {"port": None}, "postgresql://u:p@h/d"),
    ("postgresql://u:p@h:5/d", {"host": "::1"}, "postgresql://u:p@[::1]:5/d"),
    ("postgresql://h:5/d", {"host": "/run/pg"}, "postgresql:///d?host=%2Frun%2Fpg&port=5"),
    ("postgresql:///d?host=%2Frun&port=5", {"host": "h"}, "postgresql://h:5/d"),
    ("postgresql+psycopg:///d?host=/run", {"sslmode": None}, "postgresql+psycopg:///d?host=/run"),
    # several hosts stay, IPv6 too
    ("postgresql://u@a:1,[::1]:2/d", {"sslmode": "require"}, "postgresql://u@a:1,[::1]:2/d?sslmode=require"),
    ("postgresql://u@a:1,b:2/d", {"port": "3,4"}, "postgresql://u@/d?host=a%2Cb&port=3%2C4"),
    ("postgresql://u@a:1,b:2/d", {"host": "c", "port": 3}, "postgresql://u@c:3/d"),
    # with a driver in it
    ("postgresql+asyncpg://u@h/d?ssl=true", {"prepared_statement_cache_size": 0},
     "postgresql+asyncpg://u@h/d?ssl=true&prepared_statement_cache_size=0"),
    ("postgresql+psycopg://u@/d?host=a:1&host=b:2", {"connect_timeout": 5},
     "postgresql+psycopg://u@/d?host=a:1&host=b:2&connect_timeout=5"),
    ("postgresql+psycopg://u@/d?host=a:1&host=b:2", {"host": "h", "port": 3}, "postgresql+psycopg://u@h:3/d"),
    ("postgresql+psycopg://u@/d?host=a,::1&port=1", {"port": "1,2"},
     "postgresql+psycopg://u@/d?host=a%2C%3A%3A1&port=1%2C2"),
    # pairs with blanks between them
    ("host=h user=u", {"user": "v", "sslmode": "require"}, "host=h user=v sslmode=require"),
    ("host=h password='a ://b'", {"connect_timeout": 1}, "host=h password='a ://b' connect_timeout=1"),
    ("host=a,b port=1,2", {"port": None}, "host=a,b"),
]  # fmt: skip


@pytest.mark.parametrize(("address", "parameters", "result"), EXAMPLES)
def test_examples(address: str, parameters: dict[str, Any], result: str) -> None:
    changed = with_parameters(address, parameters)
    assert changed == result if result.startswith("postgres") else sorted(changed.split()) == sorted(result.split())
    parse(result)
    if "+" in address.partition("://")[0]:
        make_url(result)
    else:
        conninfo_to_dict(result)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
ODD = st.text(st.sampled_from(" &=%?#@:/'\"\\+ä€😀,;[]x"), min_size=1, max_size=8)
VALUE = TEXT | ODD
NAME = st.sampled_from(["user", "password", "dbname", "application_name", "options", "sslrootcert", "passfile"])
PARAMETERS = st.dictionaries(NAME, VALUE | st.none(), max_size=4)
PLACE = st.sampled_from([{"host": "h"}, {"host": "::1", "port": "5"}, {"host": "/run"}, {"host": "a,b", "port": "1,2"}])
FORM = st.sampled_from(["postgresql://", "postgres://", "postgresql+psycopg://", ""])


def written(form: str, parts: dict[str, str]) -> str:
    """An address made by hand: everything in the query part, as both readers take it."""
    if not form:
        return " ".join(
            f"{name}='" + value.replace("\\", r"\\").replace("'", r"\'") + "'" for name, value in parts.items()
        )
    return f"{form}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in parts.items())


@given(FORM, st.dictionaries(NAME, VALUE, max_size=4), PARAMETERS, PLACE, PLACE | st.just({}))
def test_whatever_is_given_comes_back_from_libpq(
    form: str, before: dict[str, str], given: dict[str, str | None], place: dict[str, str], moved: dict[str, str]
) -> None:
    move = {"host": moved["host"], "port": moved.get("port")} if moved else {}
    address = written(form, before | place)
    result = with_parameters(address, given | move)
    wanted = {name: value for name, value in (before | place | given | move).items() if value is not None}
    assert result.startswith(form)
    assert parse(result) == wanted
    if form != "postgresql+psycopg://":
        assert conninfo_to_dict(result) == wanted
    assert parse(with_parameters(result, given | move)) == wanted  # twice is once


@given(st.dictionaries(NAME, VALUE, max_size=4), st.sampled_from(["plan", "a b", "ssl"]), VALUE)
def test_sqlalchemy_reads_the_same(given: dict[str, str], own: str, value: str) -> None:
    url = make_url(with_parameters("postgresql+asyncpg://u:p@h:5/d", given | {own: value}))
    assert (url.username, url.password, url.host, url.port, url.database) == (
        given.get("user", "u"), given.get("password", "p"), "h", 5, given.get("dbname", "d"),
    )  # fmt: skip
    rest = {name: each for name, each in given.items() if name not in ("user", "password", "dbname")}
    assert dict(url.query) == rest | {own: value}


@pytest.mark.parametrize(
    ("address", "parameters", "words"),
    [
        ("postgresql://h/d", {"conect_timeout": 5}, "'conect_timeout' is no connection parameter"),
        ("host=h", {"prepared_statement_cache_size": 0}, r"postgresql\+driver://"),
        ("host=h", {"host=x user": "u"}, "is no connection parameter"),
        ("host=h", {"": "u"}, "is no connection parameter"),
        ("postgresql+psycopg://h", {"": "u"}, "is no connection parameter"),
        ("host=h", {7: "u"}, "7 is no connection parameter"),
        ("host=h", {"connect_timeout": 2.5}, "connect_timeout must be .*, not float"),
        ("host=h", {"connect_timeout": 10**50}, "connect_timeout must be .*, not int"),
        ("host=h", {"password": "a\0b"}, "password has a character"),
        ("postgresql://h", {"password": "a\ud800b"}, "password has a character"),
        ("postgresql://h", {"port": "5x"}, "port must be a number"),
        ("postgresql://h", {"port": ""}, "port must be a number"),
        ("postgresql://h", {"host": "h:5"}, "ports go to port"),
        ("postgresql://h", {"host": "a@b"}, "what was given for host"),
        ("postgresql://a:1,b:2/d", {"host": "c"}, "2 ports for 1 host: give host and port together"),
        ("postgresql://a:1,b:2/d", {"port": "1,2,3"}, "3 ports for 2 hosts"),
        ("", {"port": 5}, "the address is the empty text"),
        ("mysql://h/d", {"port": 5}, "not a valid PostgreSQL connection string"),
        (None, {"port": 5}, "changes a connection string, not NoneType"),
    ],
)
def test_what_is_refused(address: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        with_parameters(address, parameters)


def everything_shown(error: BaseException) -> str:
    """The traceback as it is printed, and every error that this one keeps, whether it would be printed or not."""
    shown, waiting, seen = "".join(traceback.format_exception(error)), [error], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            shown += f"{one!s}{one!r}{one.args!r}{vars(one)!r}{getattr(one, 'object', '')!r}"
            waiting += [linked for linked in (one.__cause__, one.__context__) if linked]
    return shown


SECRET = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cs", "Cc"])) | ODD
BROKEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("postgresql://u:{0}@h:port/d", {}),
    ("postgres://u:{0}@h/d?nonsense=1", {}),
    ("postgresql://u:{0}@[::1/d", {}),
    ("postgresql+psycopg://u:{0}@[::1/d", {}),
    ("postgresql://u:%zz{0}@h/d", {}),
    ("host=h password='{0}", {}),
    ("host=h nonsense={0}", {}),
    ("mysql://u:{0}@h/d", {}),
    ("{0}://u@h/d", {}),
    ("postgresql://u:{0}\ud800@h/d", {}),
    ("postgresql://u:{0}@h/d", {"nonsense": 1}),
    ("postgresql://u:{0}@h/d", {"connect_timeout": 2.5}),
    ("postgresql://u:{0}@a:1,b:2/d", {"port": "1,2,3"}),
    ("postgresql://u@h/d", {"password": "{0}\0"}),
    ("postgresql://u@h/d", {"password": "{0}\ud800"}),
    ("postgresql://u@h/d", {"host": "@{0}@"}),
    ("postgresql://u@h/d", {"port": "{0}"}),
)


@given(SECRET, st.sampled_from(BROKEN))
def test_no_refusal_holds_a_part_of_a_secret(secret: str, form: tuple[str, dict[str, Any]]) -> None:
    shown = ""
    parameters = {
        name: value.format(MARK + secret) if isinstance(value, str) else value for name, value in form[1].items()
    }
    try:
        with_parameters(form[0].format(MARK + secret), parameters)
    except ConfigurationError as error:
        shown = everything_shown(error)
    assert MARK not in shown


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_the_broken_ones_are_refused(number: int) -> None:
    address, parameters = BROKEN[number]
    given = {name: value.format(MARK) if isinstance(value, str) else value for name, value in parameters.items()}
    with pytest.raises(ConfigurationError):
        with_parameters(address.format(MARK), given)
