"""What is read from errors of drivers, however they are wrapped, and from errors that are not what they seem.

Here live tests of `transaction/servererrors.py` that need no server; real violations stand in
`tests/postgres/test_callers_constraints.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert import ConfigurationError
from pgconcert.transaction import is_constraint_error
from pgconcert.transaction.servererrors import told, told_by


class Driver(Exception):
    """An error as a driver might make it."""

    def __init__(self, *args: object, **attributes: object) -> None:
        super().__init__(*args)
        self.__dict__.update(attributes)


def violation(name: str = "mail_key") -> Driver:
    return Driver("twice", sqlstate="23505", diag=SimpleNamespace(constraint_name=name, message_primary="twice"))


SHAPES = {
    "psycopg": violation(),
    "psycopg2": Driver(pgcode="23505", diag=SimpleNamespace(constraint_name="mail_key", message_primary="twice")),
    "asyncpg": Driver("twice", sqlstate="23505", constraint_name="mail_key", message="twice"),
    "pg8000": Driver({"S": "ERROR", "C": "23505", "M": "twice", "n": "mail_key"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_driver_in_its_own_way(shape: str) -> None:
    assert told(SHAPES[shape]) == ("23505", "twice", "mail_key")
    assert is_constraint_error(SHAPES[shape], "mail_key")
    assert not is_constraint_error(SHAPES[shape], "Mail_key")


def test_errors_that_the_libraries_make_without_a_server() -> None:
    assert told(psycopg.errors.UniqueViolation("x")) == ("23505", "x", None)
    assert told(psycopg.OperationalError("no route")) is None
    assert told(asyncpg.UniqueViolationError("x")) == ("23505", "x", None)
    assert told(asyncpg.InterfaceError("x")) is None
    assert told(OSError(5, "x")) is None
    assert not is_constraint_error(None, "mail_key")


class Raises(Exception):
    """Raises whatever it is asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("diag", "sqlstate", "pgcode", "orig", "message", "constraint_name", "args"):
            raise ValueError(name)
        return super().__getattribute__(name)


class Says(Exception):
    """Has a code, and falls over when it is to be written."""

    sqlstate = "40001"

    def __str__(self) -> str:
        raise ValueError


class Anything:
    """Has every attribute, and none of them is what one thinks."""

    def __getattr__(self, name: str) -> Anything:
        return Anything()

    def __bool__(self) -> bool:
        raise TypeError


ODD = [
    Raises(),
    Driver(sqlstate=Anything(), diag=Anything(), orig=Anything()),
    Driver(sqlstate=40001),
    Driver(sqlstate="4000"),
    Driver(sqlstate="abcde"),
    Driver(sqlstate="40001\n"),
    Driver({}),
    Driver({"C": 23505, "n": "mail_key"}),
    Driver({"n": "mail_key"}),
    Driver(diag=SimpleNamespace(constraint_name="mail_key")),
    Driver(constraint_name="mail_key"),
]


@pytest.mark.parametrize("error", ODD, ids=range(len(ODD)))
def test_what_is_no_error_of_a_server_has_said_nothing(error: Exception) -> None:
    assert told(error) is None
    assert not is_constraint_error(error, "mail_key")
    error.__cause__ = violation()
    assert is_constraint_error(error, "mail_key")


def test_what_cannot_be_read_does_not_hide_the_code() -> None:
    assert told(Says()) == ("40001", "", None)
    assert told(Driver({"C": "40001"})) == ("40001", "", None)
    assert told(Driver("x", sqlstate="40001", diag=Anything(), constraint_name=7)) is not None


def test_a_dict_may_be_an_argument_of_any_error() -> None:
    assert told(Driver({"C": "x"}, sqlstate="40001")) is not None


def caught(raiser: Any) -> BaseException:
    try:
        raiser()
    except BaseException as error:
        return error
    raise AssertionError


def _from() -> None:
    raise KeyError from violation()


def _while_handled() -> None:
    try:
        raise violation()
    except Driver:
        raise KeyError  # noqa: B904


def _from_another() -> None:
    try:
        raise violation()
    except Driver:
        raise KeyError from ValueError()


def _from_none() -> None:
    try:
        raise violation()
    except Driver:
        raise KeyError from None


def test_chains() -> None:
    """What an error was raised from, or while it was handled, belongs to it, unless the program said otherwise."""
    assert is_constraint_error(caught(_from), "mail_key")
    assert is_constraint_error(caught(_while_handled), "mail_key")
    assert not is_constraint_error(caught(_from_none), "mail_key")
    assert not is_constraint_error(caught(_from_another), "mail_key")


def test_what_was_handled_before_does_not_belong_to_it() -> None:
    try:
        raise violation("before")
    except Driver as before:
        outside, after = before, caught(_while_handled)
    assert is_constraint_error(after, "before")
    assert [found.constraint for found in told_by(after, outside)] == ["mail_key"]


def test_groups() -> None:
    group = BaseExceptionGroup("all", [KeyError(), BaseExceptionGroup("some", [ValueError(), caught(_from)])])
    assert is_constraint_error(group, "mail_key")
    assert not is_constraint_error(group, "other_key")


def test_cycles_and_long_chains_end() -> None:
    one, two = Driver(), violation()
    one.__cause__, two.__cause__, two.orig = two, one, one  # type: ignore[attr-defined]
    assert is_constraint_error(one, "mail_key")
    assert not is_constraint_error(one, "other_key")
    first: Exception = violation()
    for _ in range(5_000):
        after = KeyError()
        after.__context__ = first
        first = after
    assert is_constraint_error(first, "mail_key")
    while first.__context__ is not None:  # taken apart by hand: the interpreter would do it recursively
        first.__context__, first = None, first.__context__  # type: ignore[assignment]
    assert is_constraint_error(ExceptionGroup("many", [KeyError() for _ in range(5_000)] + [violation()]), "mail_key")


ANOTHER = st.none() | st.integers(0, 5)
LINKS = st.tuples(ANOTHER, ANOTHER, st.lists(st.integers(0, 5), max_size=3))
"""Of an error: what it was raised from, what it followed, and what is in the group that it wraps; by number."""


@given(st.lists(LINKS, min_size=6, max_size=6), st.integers(0, 5))
def test_found_exactly_if_there_is_a_way(links: list[tuple[int | None, int | None, list[int]]], begin: int) -> None:
    """Of errors linked at random, cycles included, those are found that a walk over the links reaches, each once."""
    errors = [violation(f"key_{n}") for n in range(6)]
    for error, (cause, context, group) in zip(errors, links, strict=True):
        error.__context__ = None if context is None else errors[context]
        if cause is not None:
            error.__cause__ = errors[cause]  # and what it followed counts no more
        if group:
            error.__dict__["orig"] = ExceptionGroup("group", [errors[n] for n in group])
    ways = [{cause if cause is not None else context, *group} - {None} for cause, context, group in links]
    reached = new = {begin}
    while new:
        new = {end for start in new for end in ways[start]} - reached  # type: ignore[assignment]
        reached = reached | new
    assert sorted(str(one.constraint) for one in told_by(errors[begin])) == sorted(f"key_{n}" for n in reached)


@pytest.mark.parametrize("name", ["", None, 7, b"mail_key"])
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="the name of a constraint is a text"):
        is_constraint_error(violation(), name)
