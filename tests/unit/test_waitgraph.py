"""Who waits for whom: cycles of processes, found in the server's list of advisory locks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pgconcert.keys import interest_pair
from pgconcert.postgres.locktable import LockRow
from pgconcert.postgres.waitgraph import find_cycle, process_name


def holds(name: str, key: int, pid: int = 1) -> LockRow:
    return LockRow(key, None, pid, f"{name} pgconcert-lock")


def waits(name: str, key: int, pid: int = 1) -> LockRow:
    return LockRow(None, interest_pair(key), pid, f"{name} pgconcert-lock")


def test_process_names() -> None:
    assert process_name("billing@host7:4711 pgconcert-lock", 5) == "billing@host7:4711"
    assert process_name("psql", 5) == "psql (pid 5)"
    assert process_name("", 5) == "an unnamed session (pid 5)"
    assert process_name("a pgconcert-listen", 5) == "a pgconcert-listen (pid 5)"
    assert process_name(" pgconcert-lock", 5) == " pgconcert-lock (pid 5)"


def test_two_processes_that_wait_for_each_other() -> None:
    rows = [holds("a", 1), waits("a", 2), holds("b", 2), waits("b", 1)]
    assert find_cycle(rows, "a") == ("a", "b", "a")
    assert find_cycle(rows, "b") == ("b", "a", "b")


def test_a_cycle_of_three_over_several_links_of_one_process() -> None:
    rows = [holds("a", 1, 10), waits("a", 2, 11), holds("b", 2), waits("b", 3), holds("c", 3), waits("c", 1)]
    assert find_cycle(rows, "a") == ("a", "b", "c", "a")


def test_the_shortest_cycle_is_told() -> None:
    rows = [holds("a", 1), waits("a", 2), waits("a", 4), holds("b", 2), waits("b", 3), holds("c", 3), waits("c", 1)]
    rows += [holds("d", 4), waits("d", 1)]
    assert find_cycle(rows, "a") == ("a", "d", "a")


def test_waiting_is_no_cycle() -> None:
    chain = [holds("b", 2), waits("a", 2), holds("c", 3), waits("b", 3)]
    assert find_cycle(chain, "a") == ()
    assert find_cycle([], "a") == ()
    assert find_cycle([holds("a", 1), waits("a", 1)], "a") == (), "two tasks of one process, one key: no deadlock"


def test_a_cycle_elsewhere_is_not_ours() -> None:
    rows = [waits("a", 1), holds("b", 1), waits("b", 2), holds("c", 2), waits("c", 1)]
    assert find_cycle(rows, "a") == ()
    assert find_cycle(rows, "b") == ("b", "c", "b")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"), st.integers(1, 4)), max_size=20))
def test_what_is_told_is_a_cycle(drawn: list[tuple[bool, str, int]]) -> None:
    rows = [holds(name, key) if held else waits(name, key) for held, name, key in drawn]
    edges = {
        (waiter, holder)
        for waiting, waiter, wanted in drawn
        if not waiting
        for held, holder, key in drawn
        if held and key == wanted and holder != waiter
    }
    reached, front = set[str](), {"a"}
    while front:
        front = {holder for waiter, holder in edges if waiter in front} - reached
        reached |= front
    path = find_cycle(rows, "a")
    assert bool(path) == ("a" in reached)
    assert set(pairwise(path)) <= edges
    if path:
        assert path[0] == path[-1] == "a"
