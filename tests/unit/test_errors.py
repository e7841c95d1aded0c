"""The error tree: as drawn in its docstring, with the builtin bases that callers catch, and it travels by pickle."""

from __future__ import annotations

import copy
import functools
import pickle
import re

import pytest

from pgconcert import errors
from pgconcert.errors import (
    DecodeFailed,
    HoldLost,
    PgconcertError,
    PublishManyFailed,
    PublishUncertain,
    StatementFailed,
    shown,
)

CLASSES: list[type[PgconcertError]] = [getattr(errors, name) for name in errors.__all__]
LINE = re.compile(r"^ {4}(?P<indent>[│ ]*)(?:[├└]── )?(?P<name>[A-Z]\w+)(?: \((?P<builtin>\w+)\))?")


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Every name in the drawing with its parent and its builtin base."""
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    assert errors.__doc__
    drawing = errors.__doc__.split("::\n", 1)[1].split("*Not acquired*")[0]
    for line in drawing.splitlines():
        if match := LINE.match(line):
            depth = 0 if "──" not in line else len(match["indent"]) // 4 + 1
            above[depth:] = [match["name"]]
            found[match["name"]] = (above[depth - 1] if depth else None, match["builtin"])
    return found


def make(kind: type[PgconcertError]) -> PgconcertError:
    if issubclass(kind, HoldLost):
        return kind("key", "why")
    if issubclass(kind, StatementFailed):
        return kind("what happened", "53200")
    if issubclass(kind, DecodeFailed):
        return kind("what happened", b"\xff")
    if issubclass(kind, PublishManyFailed):
        return kind(3, {1: PublishUncertain("the link died")})
    return kind("what happened")


def test_the_drawing_names_every_error() -> None:
    assert sorted(drawn()) == sorted(errors.__all__)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_is_as_drawn(kind: type[PgconcertError]) -> None:
    parent, builtin = drawn()[kind.__name__]
    names = [base.__name__ for base in kind.__bases__]
    assert names == [parent or "Exception", *([builtin] if builtin else [])]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_travel_by_pickle_and_keep_their_notes(kind: type[PgconcertError]) -> None:
    error = make(kind)
    error.add_note("while this happened, the hold was lost")
    ways = [functools.partial(pickle.dumps, protocol=protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for again in (*(pickle.loads(way(error)) for way in ways), copy.copy(error)):
        assert type(again) is kind
        assert again.__notes__ == error.__notes__
        assert str(again) == str(error)
        assert again.args == error.args
        if kind is not PublishManyFailed:  # it carries errors, which are equal to themselves alone
            assert vars(again) == vars(error)
        assert repr(vars(again)) == repr(vars(error))


def test_a_lost_hold_names_key_and_reason() -> None:
    error = HoldLost("invoice", "its connection died")
    assert (error.key, error.reason) == ("invoice", "its connection died")
    assert str(error) == "'invoice' was lost: its connection died"


def test_a_failed_statement_has_a_state() -> None:
    assert StatementFailed("text").sqlstate == ""
    assert StatementFailed("text", "57014").sqlstate == "57014"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ((), "()"),
        (("a",), "('a',)"),
        (("a", 1, "c"), "('a', 1, 'c')"),
        (tuple(range(2000)), "(0, 1, 2 and 1997 more)"),
    ],
)
def test_of_a_large_set_only_a_few_are_shown(keys: tuple[int | str, ...], text: str) -> None:
    assert shown(keys) == text
    assert str(HoldLost(keys, "why")) == f"{text} was lost: why"
    assert HoldLost(keys, "why").key == keys
