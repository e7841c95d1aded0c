"""Passwords in URLs that were not escaped: refused, or read whole, and never shown in part.

Theory: `@`, `:`, `/` and `?` in a password move the borders between the parts of a URL, so that a piece of the password
becomes a host, a port, a database or a parameter, which errors and logs do show. So an address is taken only if nothing
of the password is outside of the password.
"""

from __future__ import annotations

import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgconcert.conninfo import AddressSource, parse
from pgconcert.errors import ConfigurationError

MARK = "s3cr3t"  # a name: a traceback quotes the lines of this file
PASSWORD = st.lists(st.sampled_from([MARK, "@", ":", "/", "?", "#", "=", "7", ","]), min_size=1, max_size=7).map(
    "".join
)
FORMS = st.sampled_from(
    [
        "postgresql://u:{0}@h:5/d",
        "postgres://u:{0}@h/d?sslmode=require",
        "postgresql://u:{0}@h",
        "postgresql+psycopg://u:{0}@h:5/d",
        "postgresql+asyncpg://u:{0}@h/d?ssl=true",
    ]
)


def outside_of_the_password(parameters: dict[str, str]) -> list[str]:
    return [name for name, value in parameters.items() if name != "password" and MARK in value]


@given(PASSWORD, FORMS)
@example("pass@" + MARK, "postgresql://u:{0}@h:5/d")
@example("12/" + MARK, "postgresql://u:{0}@h:5/d")
@example(MARK + "?", "postgresql+psycopg://u:{0}@h:5/d")
@example("@" + MARK + "?", "postgresql+psycopg://u:{0}@h:5/d")
@example("@" + MARK + ",", "postgresql://u:{0}@h:5/d")
@example("7@" + MARK + ":7/", "postgresql+asyncpg://u:{0}@h/d?ssl=true")
def test_no_part_of_a_password_becomes_another_part(password: str, form: str) -> None:
    shown = ""
    try:
        assert not outside_of_the_password(parse(form.format(password)))
    except ConfigurationError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error)
    assert MARK not in shown


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
@pytest.mark.parametrize("password", [f"a@{MARK}", f"12/{MARK}", f"a@{MARK}/x", f"@{MARK}", f"a@b:{MARK}"])
async def test_a_callable_that_answers_with_one(scheme: str, password: str) -> None:
    source = AddressSource(lambda: f"{scheme}://u:{password}@h/d")
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        await source.parameters()
    assert MARK not in "".join(traceback.format_exception(caught.value)) + repr(source)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
@pytest.mark.parametrize("space", [" ", "%20"])
def test_options_with_spaces_arrive_whole(scheme: str, space: str) -> None:
    options = "-c work_mem=321kB -c search_path=a,b"
    url = f"{scheme}://u@h/d?options={options.replace('=', '%3D').replace(' ', space)}&sslmode=require"
    parameters = parse(url)
    assert parameters["options"] == options
    assert parameters["sslmode"] == "require"
