"""Who is inside what and who waits for what, without any lock: which waits are refused, and in which words.

Here live the shapes of deadlocks within one process, and random ones compared with a definition that is slow and plain.
Tasks are only names here; nothing runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.backend import Claim
from pgconcert.deadlock import Scopes
from pgconcert.errors import WouldDeadlock
from pgconcert.keys import LockKey
from tests.unit.lockmodel import Answer

A, B, C = (LockKey(name, value) for value, name in enumerate("abc"))
ADVICE = ". Take them in one order everywhere, or all at once with lock_all()"
RE_ENTRANT = (
    "this task holds 'a' already and would wait for itself for ever; locks are not re-entrant: "
    "pass the hold on, or use try_acquire()"
)
UPGRADE = (
    "this task holds 'a' shared and would wait for itself for ever; a shared lock cannot be upgraded: "
    "release it first, and look again at what you have read"
)


def semaphore(permits: int) -> LockKey:
    return LockKey("s", 2**64, permits)


@dataclass(eq=False)
class Task:
    """Somebody, equal to nobody else."""

    name: str


class Scene:
    """Tasks by name, with what they are inside of and wait for."""

    def __init__(self) -> None:
        self.scopes = Scopes("task", lambda task: task.name)
        self.tasks: dict[str, Task] = {}

    def task(self, name: str) -> Task:
        return self.tasks.setdefault(name, Task(name))

    def inside(self, name: str, key: LockKey, shared: bool = False) -> Claim:
        claim = Claim(key, Answer(), wait=True, shared=shared)
        claim.grant()
        self.scopes.enter(claim, self.task(name))
        return claim

    def waits(self, name: str, key: LockKey, shared: bool = False) -> None:
        """As ``Register.claim`` does it."""
        if self.scopes.concerns(self.task(name), key):
            self.scopes.begin_wait(self.task(name), key, shared)

    def refused(self, name: str, key: LockKey, shared: bool = False) -> str:
        """In which words a wait is refused. It leaves no trace."""
        with pytest.raises(WouldDeadlock) as caught:
            self.waits(name, key, shared)
        return str(caught.value)


@pytest.mark.parametrize(
    ("held", "wanted", "words"),
    [(False, False, RE_ENTRANT), (False, True, RE_ENTRANT), (True, True, RE_ENTRANT), (True, False, UPGRADE)],
)
def test_a_task_does_not_wait_for_itself(held: bool, wanted: bool, words: str) -> None:
    s = Scene()
    s.inside("one", A, held)
    assert s.refused("one", A, wanted) == words


def test_two_in_a_circle() -> None:
    s = Scene()
    s.inside("one", A)
    s.inside("two", B)
    s.waits("one", B)
    assert s.refused("two", A) == (
        "this task would wait for 'a' for ever: 'a' is held by task 'one', which waits for 'b'; "
        "'b' is held by this task" + ADVICE
    )


def test_three_in_a_circle() -> None:
    s = Scene()
    for name, key in (("one", A), ("two", B), ("three", C)):
        s.inside(name, key)
    s.waits("one", B)
    s.waits("two", C)
    assert s.refused("three", A) == (
        "this task would wait for 'a' for ever: 'a' is held by task 'one', which waits for 'b'; "
        "'b' is held by task 'two', which waits for 'c'; 'c' is held by this task" + ADVICE
    )


def test_a_refused_wait_was_never_there() -> None:
    s = Scene()
    s.inside("one", A)
    s.inside("two", B)
    s.waits("one", B)
    s.refused("two", A)
    s.inside("three", C)
    s.waits("three", A)


def test_a_line_is_no_circle() -> None:
    s = Scene()
    s.inside("one", A)
    s.inside("two", B)
    s.waits("one", B)
    s.waits("two", C)
    s.waits("three", A)


def test_a_wait_that_has_ended_counts_no_more() -> None:
    s = Scene()
    s.inside("one", A)
    s.inside("two", B)
    s.waits("one", B)
    s.scopes.end_wait(s.task("one"))
    s.waits("two", A)


def test_what_was_left_counts_no_more() -> None:
    s = Scene()
    s.inside("one", A)
    claim = s.inside("two", B)
    s.waits("one", B)
    s.scopes.leave(claim, s.task("two"))
    s.inside("two", C)
    s.waits("two", A)


@pytest.mark.parametrize("lost", [True, False])
def test_what_was_lost_or_given_back_counts_no_more(lost: bool) -> None:
    s = Scene()
    s.inside("one", A)
    claim = s.inside("two", B)
    s.waits("one", B)
    if lost:
        claim.lose("gone")
    else:
        claim.over = True
    s.waits("two", A)


def test_two_holders_of_one_key_by_a_loss() -> None:
    """Whoever lost it is inside still, and its leaving takes nothing from whoever has it now."""
    s = Scene()
    lost = s.inside("one", A)
    lost.lose("gone")
    s.inside("two", A)
    s.scopes.leave(lost, s.task("one"))
    s.inside("one", B)
    s.waits("two", B)
    s.refused("one", A)


def test_readers_do_not_wait_for_readers() -> None:
    s = Scene()
    s.inside("one", A, shared=True)
    s.inside("two", B)
    s.waits("one", B)
    s.waits("two", A, shared=True)


def test_a_reader_waits_behind_a_writer_that_came_first() -> None:
    """The writer is inside nothing itself; still, without it nobody would wait."""
    s = Scene()
    s.inside("one", A, shared=True)
    s.inside("two", B)
    s.waits("writer", A)
    s.waits("one", B)
    assert s.refused("two", A, shared=True) == (
        "this task would wait for 'a' for ever: 'a' is held by task 'one', which waits for 'b'; "
        "'b' is held by this task" + ADVICE
    )


def test_a_reader_that_waits_behind_a_writer_is_waited_for() -> None:
    """The same circle, closed by the other."""
    s = Scene()
    s.inside("one", A, shared=True)
    s.inside("two", B)
    s.waits("writer", A)
    s.waits("two", A, shared=True)
    s.refused("one", B)


def test_a_writer_that_comes_later_keeps_no_reader_outside() -> None:
    s = Scene()
    s.inside("one", A, shared=True)
    s.inside("two", B)
    s.waits("two", A, shared=True)
    s.waits("writer", A)
    s.waits("one", B)


def test_a_reader_that_is_about_to_join_is_not_waited_for() -> None:
    """Its statement is under way; nothing keeps it outside."""
    s = Scene()
    s.inside("one", A, shared=True)
    s.inside("two", B)
    s.waits("two", A, shared=True)
    s.waits("one", B)


def test_a_writer_waits_for_every_reader() -> None:
    s = Scene()
    s.inside("idle", A, shared=True)
    s.inside("one", A, shared=True)
    s.inside("two", B)
    s.waits("one", B)
    s.refused("two", A)


def test_one_permit_is_a_lock() -> None:
    s = Scene()
    s.inside("one", semaphore(1))
    s.inside("two", A)
    s.waits("one", A)
    assert s.refused("two", semaphore(1)) == (
        "this task would wait for a permit of 's' for ever: a permit of 's' (none is free) is held by task 'one', "
        "which waits for 'a'; 'a' is held by this task" + ADVICE
    )


def test_the_only_permit_is_held_by_whoever_asks() -> None:
    s = Scene()
    s.inside("one", semaphore(1))
    assert s.refused("one", semaphore(1)) == (
        "this task would wait for a permit of 's' for ever: a permit of 's' (none is free) is held by this task"
        + ADVICE
    )


def test_two_permits_and_all_holders_are_stuck() -> None:
    s = Scene()
    s.inside("one", semaphore(2))
    s.inside("two", semaphore(2))
    s.inside("three", A)
    s.waits("one", A)
    s.waits("two", A)
    assert s.refused("three", semaphore(2)) == (
        "this task would wait for a permit of 's' for ever: a permit of 's' (none is free) is held by task 'one', "
        "which waits for 'a'; 'a' is held by this task" + ADVICE
    )


def test_two_permits_and_one_holder_goes_on() -> None:
    s = Scene()
    s.inside("one", semaphore(2))
    s.inside("two", semaphore(2))
    s.inside("three", A)
    s.waits("one", A)
    s.waits("three", semaphore(2))


def test_two_permits_and_one_is_free_or_out_of_sight() -> None:
    """A hold without a scope is not known here, so its permit may come back."""
    s = Scene()
    s.inside("one", semaphore(2))
    s.inside("two", A)
    s.waits("one", A)
    s.waits("two", semaphore(2))


def test_both_permits_are_held_by_whoever_asks() -> None:
    s = Scene()
    s.inside("one", semaphore(2))
    s.inside("one", semaphore(2))
    s.refused("one", semaphore(2))


def test_many_ways_are_looked_at_once() -> None:
    """Thirty readers of each key wait to write the next; the number of ways through is the sixth power of that."""
    s = Scene()
    keys = [LockKey(f"k{number}", number) for number in range(7)]
    for number, key in enumerate(keys[:-1]):
        for reader in range(30):
            s.inside(f"{number}.{reader}", key, shared=True)
    for number, key in enumerate(keys[1:-1]):
        for reader in range(30):
            s.waits(f"{number}.{reader}", key)
    s.inside("last", keys[-1])
    s.waits("last", keys[0])


@dataclass(frozen=True)
class World:
    """Tasks are numbers; so are keys, and their permits stand in ``permits`` (0 is a lock)."""

    permits: tuple[int, ...]
    inside: tuple[tuple[int, int, bool], ...]
    """Task, key, shared."""
    waits: tuple[tuple[int, int, bool], ...]
    """Task, key, shared: in the order of arrival, one for each task."""


@st.composite
def worlds(draw: st.DrawFn) -> World:
    permits = tuple(draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=2, max_size=4)))
    numbers = range(len(permits))
    inside: list[tuple[int, int, bool]] = []
    for key in numbers:
        shared = not permits[key] and draw(st.booleans())
        most = permits[key] or (3 if shared else 1)
        holders = draw(st.lists(st.integers(0, 4), max_size=most, unique=not permits[key]))
        inside.extend((task, key, shared) for task in holders)
    tasks = draw(st.permutations(range(5)))
    chosen = [(task, draw(st.sampled_from(numbers)), draw(st.booleans())) for task in tasks]
    return World(permits, tuple(inside), tuple((task, key, s and not permits[key]) for task, key, s in chosen))


def stuck(world: World, waits: list[tuple[int, int, bool]]) -> set[int]:
    """The largest set of waiting tasks none of which can go on before another of them does."""
    waiting = {task: number for number, (task, _, _) in enumerate(waits)}

    def for_ever(task: int, others: set[int]) -> bool:
        number = waiting[task]
        _, key, shared = waits[number]
        holders = [(holder, reads) for holder, held, reads in world.inside if held == key]
        if world.permits[key]:
            return len(holders) == world.permits[key] and all(holder in others for holder, _ in holders)
        writers_before = any(held == key and not reads for _, held, reads in waits[:number])
        comes_in = shared and all(reads for _, reads in holders) and not writers_before
        return any(holder == task or (holder in others and not comes_in) for holder, _ in holders)

    found = set(waiting)
    while left := {task for task in found if not for_ever(task, found)}:
        found -= left
    return found


@given(worlds())
def test_what_is_refused_is_what_would_never_end(world: World) -> None:
    """One wait after the other; those that are refused never begin, as in a program that goes on without."""
    keys = [LockKey(f"k{number}", number, permits) for number, permits in enumerate(world.permits)]
    begun: list[tuple[int, int, bool]] = []
    s = Scene()
    for task, key, shared in world.inside:
        s.inside(str(task), keys[key], shared)
    for wait in world.waits:
        task, key, shared = wait
        if task in stuck(world, [*begun, wait]):
            assert "for ever" in s.refused(str(task), keys[key], shared)
        else:
            s.waits(str(task), keys[key], shared)
            begun.append(wait)
    assert not stuck(world, begun)
