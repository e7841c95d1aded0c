"""The server and we compute the same pairs from a key: Python for what is read, SQL for what is asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from pgconcert.keys import agreement_pair, gate_pair, interest_pair, numbered_pair, slot_pair
from pgconcert.postgres.locktable import numbered_halves
from pgconcert.postgres.statements import _AGREEMENT_OF_K, _GATE_OF_K, _MARK_OF_K, _SLOT_OF_K
from tests.servers import Server

BEYOND: Final = 2**64


def keys() -> list[int]:
    """Many of any kind, and those at the edges of every bit."""
    rng = random.Random(20)
    found = [rng.randrange(-(2**63), 2**63) for _ in range(2000)]
    found += [sign * 2**bits + step for bits in range(63) for sign in (1, -1) for step in (-1, 0, 1)]
    return [*found, -(2**63), 2**63 - 1]


@pytest.mark.parametrize(("sql", "pair"), [(_MARK_OF_K, interest_pair), (_GATE_OF_K, gate_pair)], ids=["mark", "gate"])
def test_the_server_computes_the_same_marks_and_gates(
    server: Server, sql: str, pair: Callable[[int], tuple[int, int]]
) -> None:
    """Whatever the key; that of a semaphore lies beyond the server's range, and travels without that."""
    known = keys()
    rows = server.execute(f"select k, {sql} from unnest(%s::int8[]) k", known)
    assert [tuple(row) for row in rows] == [(key, *pair(key)) for key in known]
    assert [pair(key + BEYOND) for key in known] == [pair(key) for key in known]


@pytest.mark.parametrize(
    ("sql", "name", "pair"),
    [(_SLOT_OF_K, "s", slot_pair), (_AGREEMENT_OF_K, "n", agreement_pair)],
    ids=["slot", "agreement"],
)
def test_the_server_computes_the_same_slots_and_agreements(
    server: Server, sql: str, name: str, pair: Callable[[int, int], tuple[int, int]]
) -> None:
    known = keys()
    numbers = [index % 1001 for index in range(len(known))]
    rows = server.execute(f"select {sql} from unnest(%s::int8[], %s::int4[]) q(k, {name})", known, numbers)
    assert [tuple(row) for row in rows] == [
        pair(key + BEYOND, number) for key, number in zip(known, numbers, strict=True)
    ]


def test_slots_are_found_by_the_halves_that_are_asked_for(server: Server) -> None:
    """What the server is asked for is what it shows: unsigned halves, of which the first also has kind and number."""
    for key in keys()[:200]:
        first, second = slot_pair(key + BEYOND, 7)
        upper, lower = map(int, numbered_halves(key + BEYOND))
        ((classid, objid),) = server.execute(f"select {first}::int8 & 262143, {second}::int8 & 4294967295")
        assert (upper, lower) == (classid, objid)
        assert (upper << 32) | lower == numbered_pair((first, second))[2]
