"""From the server's rows to what an operator reads: names, roles, modes, and what cannot be known."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert import KeyInvalid
from pgconcert.keys import KeySpace, agreement_pair, gate_pair, interest_pair, slot_pair
from pgconcert.postgres.lockview import Names, SeenLock, read_view

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EXCLUSIVE, SHARED = "ExclusiveLock", "ShareLock"
KEYS = KeySpace()
LETTER = KEYS.key("letter").value
GPU = KEYS.semaphore("gpu", 4).value
Row = tuple[Any, ...]


def session(pid: int) -> Row:
    return pid, f"app@host:{pid} pgconcert-lock", "ann", "10.0.0.1", NOW


def on_key(key: int, mode: str, pid: int, *, granted: bool = True, database: str = "app") -> Row:
    unsigned = key & (2**64 - 1)
    return NOW, "app", database, unsigned >> 32, unsigned & (2**32 - 1), 1, mode, granted, *session(pid)


def on_pair(pair: tuple[int, int], mode: str, pid: int, *, granted: bool = True, database: str = "app") -> Row:
    return NOW, "app", database, pair[0] & (2**32 - 1), pair[1] & (2**32 - 1), 2, mode, granted, *session(pid)


def seen(rows: list[Row], *names: str, namespace: str = "") -> tuple[SeenLock, ...]:
    return read_view(rows, Names(names, namespace)).locks


def told(rows: list[Row], *names: str) -> list[tuple[str, str | None, str, int | None]]:
    """Key, mode, role, pid of each line."""
    return [(lock.key, lock.mode, lock.role, lock.session.pid) for lock in seen(rows, *names)]


def test_nothing() -> None:
    """The one row of a server without locks is empty."""
    view = read_view([(NOW, "app", *[None] * 11)], Names())
    assert (view.at, view.database, view.locks) == (NOW, "app", ())


def test_a_key_has_its_name_if_it_was_given() -> None:
    rows = [on_key(LETTER, EXCLUSIVE, 7)]
    assert told(rows) == [(str(LETTER), "exclusive", "held", 7)]
    assert told(rows, "letter", "other") == [("letter", "exclusive", "held", 7)]


def test_with_names_the_others_are_left_out() -> None:
    rows = [on_key(LETTER, EXCLUSIVE, 7), on_key(5, SHARED, 8), on_pair((0, 5), EXCLUSIVE, 9)]
    assert told(rows, "letter") == [("letter", "exclusive", "held", 7)]
    assert told(rows, "other") == []


def test_a_name_depends_on_the_namespace() -> None:
    rows = [on_key(KeySpace("billing").key("letter").value, SHARED, 7)]
    assert seen(rows, "letter") == ()
    assert [lock.name for lock in seen(rows, "letter", namespace="billing")] == ["letter"]


def test_a_number_and_the_text_of_it_are_two_locks() -> None:
    rows = [on_key(-42, EXCLUSIVE, 7), on_key(KEYS.key("-42").value, EXCLUSIVE, 8)]
    assert sorted(told(rows, "-42")) == [("'-42'", "exclusive", "held", 8), ("-42", "exclusive", "held", 7)]
    assert {lock.name for lock in seen(rows, "-42")} == {"-42"}


def test_a_number_too_large_for_the_server_is_a_text() -> None:
    assert told([on_key(KEYS.key(str(2**63)).value, SHARED, 7)], str(2**63)) == [(str(2**63), "shared", "held", 7)]


def test_a_blocked_session_of_another_program_waits() -> None:
    rows = [on_key(42, EXCLUSIVE, 8, granted=False), on_key(42, SHARED, 7)]
    assert told(rows) == [("42", "shared", "held", 7), ("42", "exclusive", "waiting", 8)]


def test_pairs_of_others() -> None:
    rows = [
        on_pair((1, -2), SHARED, 7),
        on_pair((-1, 2), EXCLUSIVE, 8, granted=False),
        on_pair((5 << 28, 0), SHARED, 9),
    ]
    assert sorted(told(rows)) == [
        ("(-1, 2)", "exclusive", "waiting", 8),
        ("(1, -2)", "shared", "held", 7),
        ("(1342177280, 0)", "shared", "held", 9),
    ]


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_mark_is_matched_with_the_key_that_is_held(key: int) -> None:
    """Whatever the key: who holds it, who waits, and who of these wants to write."""
    rows = [
        on_key(key, SHARED, 7),
        on_pair(interest_pair(key), SHARED, 8),
        on_pair(interest_pair(key), SHARED, 9),
        on_pair(gate_pair(key), EXCLUSIVE, 9),
    ]
    expected = [
        (str(key), "shared", "held", 7),
        (str(key), None, "waiting", 8),
        (str(key), "exclusive", "waiting", 9),
    ]
    assert told(rows) == expected
    assert told(rows[::-1]) == expected


def test_a_gate_without_its_mark_is_a_writer() -> None:
    assert told([on_pair(gate_pair(LETTER), EXCLUSIVE, 8)], "letter") == [("letter", "exclusive", "waiting", 8)]


def test_a_mark_whose_key_is_free() -> None:
    rows = [on_pair(interest_pair(LETTER), SHARED, 8), on_pair(gate_pair(LETTER), EXCLUSIVE, 8)]
    assert told(rows) == [(f"a key with mark {interest_pair(LETTER)}", "exclusive", "waiting", 8)]
    assert told(rows, "letter") == [("letter", "exclusive", "waiting", 8)]
    assert told(rows, "other") == []


def test_a_look_at_a_mark_and_a_pass_through_a_gate_are_no_waiters() -> None:
    """A releaser holds the mark exclusively for one statement, a reader the gate shared."""
    rows = [
        on_key(LETTER, SHARED, 7),
        on_pair(interest_pair(LETTER), EXCLUSIVE, 7),
        on_pair(gate_pair(LETTER), SHARED, 8),
    ]
    assert told(rows, "letter") == [("letter", "shared", "held", 7)]


def test_a_semaphore() -> None:
    rows = [
        on_pair(slot_pair(GPU, 0), EXCLUSIVE, 7),
        on_pair(slot_pair(GPU, 3), EXCLUSIVE, 8),
        *(on_pair(agreement_pair(GPU, 4), SHARED, pid) for pid in (7, 8, 9)),
        on_pair(interest_pair(GPU), SHARED, 9),
    ]
    expected = [
        ("gpu (semaphore, slot 0 of 4)", "permit", "held", 7),
        ("gpu (semaphore, slot 3 of 4)", "permit", "held", 8),
        ("gpu (semaphore)", "permit", "waiting", 9),
    ]
    assert told(rows, "gpu") == expected
    (first, *_, last) = seen(rows, "gpu")
    assert (first.slot, first.permits, last.slot, last.permits) == (0, 4, None, 4)
    partial = GPU % 2**50
    assert told(rows) == [(key.replace("gpu", str(partial)), *rest) for key, *rest in expected]


def test_a_semaphore_whose_permits_nobody_says() -> None:
    assert told([on_pair(slot_pair(GPU, 2), EXCLUSIVE, 7)], "gpu") == [("gpu (semaphore, slot 2)", "permit", "held", 7)]


def test_a_semaphore_that_somebody_waits_for_while_no_slot_is_taken() -> None:
    rows = [on_pair(interest_pair(GPU), SHARED, 9), on_pair(agreement_pair(GPU, 4), SHARED, 9)]
    assert told(rows, "gpu") == [("gpu (semaphore)", "permit", "waiting", 9)]
    assert told(rows) == [(f"a key with mark {interest_pair(GPU)}", None, "waiting", 9)]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20))
def test_waiters_of_an_unnamed_semaphore_are_found(name: str) -> None:
    value = KEYS.semaphore(name, 1).value
    rows = [on_pair(slot_pair(value, 5), EXCLUSIVE, 7), on_pair(interest_pair(value), SHARED, 8)]
    assert [(lock.kind, lock.number, lock.role) for lock in seen(rows)] == [
        ("semaphore", value % 2**50, "held"),
        ("semaphore", value % 2**50, "waiting"),
    ]


def test_databases_do_not_mix() -> None:
    """A mark in one database does not belong to a key held in another."""
    rows = [on_key(LETTER, EXCLUSIVE, 7, database="a"), on_pair(interest_pair(LETTER), SHARED, 8, database="b")]
    assert [(lock.database, lock.kind) for lock in seen(rows)] == [("a", "lock"), ("b", "mark")]


def test_what_the_role_may_not_see_is_not_there() -> None:
    (held,) = seen([(*on_key(1, EXCLUSIVE, 7)[:8], 7, "", None, None, None)])
    assert (held.session.application, held.session.client, held.session.since) == (None, None, None)
    (prepared,) = seen([(*on_key(1, EXCLUSIVE, 7)[:8], None, None, None, None, None)])
    assert prepared.session.pid is None


def test_our_suffix_is_left_out() -> None:
    assert seen([on_key(1, EXCLUSIVE, 7)])[0].session.application == "app@host:7"


def test_a_name_with_control_characters_is_quoted() -> None:
    assert told([on_key(KEYS.key("a\x1b[2J").value, SHARED, 7)], "a\x1b[2J") == [("'a\\x1b[2J'", "shared", "held", 7)]


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "cannot be the empty text"), ("x" * 1001, "1001 bytes; at most 1000"), ("a\udcff", "lone surrogate")],
)
def test_names_that_can_be_nothing(name: str, said: str) -> None:
    with pytest.raises(KeyInvalid, match=said):
        Names([name])
