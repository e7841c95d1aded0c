"""The page on the wire holds test vectors for other languages; here they are compared with what we really do.

Here lives that comparison, table by table. Which keys there are is tested with the functions that derive them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgconcert.keys import KeySpace, agreement_pair, gate_pair, interest_pair, slot_pair

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/wire.md").read_text()
BEYOND_LOCKS = 2**64
"""What the library adds to the 64 bits of a semaphore."""


def table(*header: str) -> list[list[str]]:
    """The rows of the table with this header, without marks of code."""
    head = f"| {' | '.join(header)} |\n"
    assert PAGE.count(head) == 1, header
    found = re.match(r"\|[-|]+\|\n((?:\|.*\|\n)+)", PAGE.partition(head)[2])
    assert found
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return [["" if cell == "(none)" else cell for cell in row] for row in rows]


def numbers(pair: str) -> tuple[int, ...]:
    """A pair as the page writes it."""
    return tuple(map(int, pair.strip("()").split(",")))


@pytest.mark.parametrize(("namespace", "text", "key"), table("namespace", "text", "key"))
def test_keys_of_texts(namespace: str, text: str, key: str) -> None:
    assert KeySpace(namespace).key(text).value == int(key)


@pytest.mark.parametrize(("namespace", "name", "key"), table("namespace", "semaphore", "key"))
def test_keys_of_semaphores(namespace: str, name: str, key: str) -> None:
    assert KeySpace(namespace).semaphore(name, 4).value - BEYOND_LOCKS == int(key)


@pytest.mark.parametrize(("key", "interest", "gate"), table("key", "pair of kind 1", "pair of kind 2"))
def test_marks_and_gates(key: str, interest: str, gate: str) -> None:
    assert interest_pair(int(key)) == numbers(interest)
    assert gate_pair(int(key)) == numbers(gate)


@pytest.mark.parametrize(("name", "what", "number", "pair"), table("semaphore", "what", "number", "pair"))
def test_slots_and_agreements(name: str, what: str, number: str, pair: str) -> None:
    derive = {"slot": slot_pair, "agreement": agreement_pair}[what]
    assert derive(KeySpace().semaphore(name, 4).value, int(number)) == numbers(pair)
