"""The fair share: fair within one, with the fewest moves, and what is started stays where it is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.tasks.balance import moves, share
from pgconcert.taskstore import Held

few = st.integers(0, 12)
caps = st.none() | st.integers(0, 12)


@dataclass
class Site:
    """Sessions with tasks. A task is a number; ``assigned`` has those that are not started, in their order."""

    assigned: list[list[int]]
    started: list[list[int]]
    most: int | None
    moved: int = 0

    @staticmethod
    def of(held: list[tuple[int, int]], most: int | None) -> Site:
        numbers = iter(range(10**6))
        return Site(
            [[next(numbers) for _ in range(assigned)] for assigned, _ in held],
            [[next(numbers) for _ in range(started)] for _, started in held],
            most,
        )

    def look(self) -> dict[int, Held]:
        return {
            session: Held(session, len(assigned), len(started))
            for session, (assigned, started) in enumerate(zip(self.assigned, self.started, strict=True))
        }

    def plan(self, session: int) -> dict[int, int]:
        seen = self.look()
        mine = seen.pop(session)
        return moves(mine.assigned + mine.started, seen, self.most)

    def carry_out(self, session: int, plan: dict[int, int]) -> None:
        """As ``Move`` does it: what is not there any more is not moved."""
        for giver, number in plan.items():
            kept = max(len(self.assigned[giver]) - number, 0)
            gone = self.assigned[giver][kept:]
            del self.assigned[giver][kept:]
            self.assigned[session] += gone
            self.moved += len(gone)

    def turn(self, session: int) -> None:
        plan = self.plan(session)
        before = self.look()
        for giver, number in plan.items():
            assert giver != session
            assert 0 < number <= before[giver].assigned
        self.carry_out(session, plan)
        if self.most is not None and plan:
            assert self.has(session) <= self.most

    def has(self, session: int) -> int:
        return len(self.assigned[session]) + len(self.started[session])

    def tasks(self) -> list[int]:
        return sorted(task for kind in (self.assigned, self.started) for some in kind for task in some)

    def fair(self) -> bool:
        """Whether nobody who could give has two more than anybody who may take."""
        everybody = range(len(self.assigned))
        givers = [self.has(one) for one in everybody if self.assigned[one]]
        takers = [self.has(one) for one in everybody if self.most is None or self.has(one) < self.most]
        return not givers or not takers or max(givers) - min(takers) <= 1

    def fewest(self) -> int:
        """How many moves are needed: always from whoever has most of those that can give to whoever has least."""
        has = [self.has(one) for one in range(len(self.assigned))]
        can_give = [len(some) for some in self.assigned]
        for number in range(10**6):
            givers = [one for one in range(len(has)) if can_give[one]]
            takers = [one for one in range(len(has)) if self.most is None or has[one] < self.most]
            giver = max(givers, key=has.__getitem__, default=None)
            taker = min(takers, key=has.__getitem__, default=None)
            if giver is None or taker is None or has[giver] - has[taker] <= 1:
                return number
            has[giver], has[taker] = has[giver] - 1, has[taker] + 1
            can_give[giver] -= 1
            can_give[taker] += 1
        raise AssertionError("does not end")


sites = st.builds(Site.of, st.lists(st.tuples(few, few), min_size=1, max_size=6), caps)


@given(st.integers(0, 10**9), st.integers(1, 1000), st.none() | st.integers(0, 10**6))
def test_shares_suffice_and_none_is_larger_than_needed(outstanding: int, sessions: int, most: int | None) -> None:
    part = share(outstanding, sessions, most)
    if most is not None and part == most:
        assert most * sessions <= outstanding + sessions
    else:
        assert part * sessions >= outstanding
    assert part == 0 or (part - 1) * sessions < outstanding


@pytest.mark.parametrize(
    ("outstanding", "sessions", "most", "expected"),
    [(0, 3, None, 0), (1, 3, None, 1), (10, 3, None, 4), (10, 3, 2, 2), (10, 1, None, 10), (10, 3, 0, 0), (7, 0, 5, 5)],
)
def test_the_share(outstanding: int, sessions: int, most: int | None, expected: int) -> None:
    assert share(outstanding, sessions, most) == expected


@given(sites, st.data())
def test_after_a_turn_of_each_all_is_fair_with_the_fewest_moves(site: Site, data: st.DataObject) -> None:
    tasks, started, fewest = site.tasks(), [[*some] for some in site.started], site.fewest()
    for session in data.draw(st.permutations(range(len(site.assigned)))):
        site.turn(session)
    assert site.fair()
    assert site.moved == fewest
    assert site.tasks() == tasks
    assert site.started == started
    assert not any(site.plan(session) for session in range(len(site.assigned)))


@given(sites)
def test_a_plan_looks_at_nothing_but_what_is_told(site: Site) -> None:
    seen = site.look()
    backwards = dict(reversed(seen.items()))
    mine = seen.pop(0)
    del backwards[0]
    plan = moves(mine.assigned + mine.started, seen, site.most)
    assert plan == moves(mine.assigned + mine.started, backwards, site.most)
    assert [*plan] == sorted(plan)


@given(sites)
def test_what_is_fair_stays(site: Site) -> None:
    if site.fair():
        assert not any(site.plan(session) for session in range(len(site.assigned)))


@given(sites)
def test_turns_in_one_instant_settle_too(site: Site) -> None:
    tasks, everybody = site.tasks(), range(len(site.assigned))
    for _ in range(3):
        plans = [site.plan(session) for session in everybody]
        for session in everybody:
            site.carry_out(session, plans[session])
    for session in everybody:
        site.turn(session)
    assert site.fair()
    assert site.tasks() == tasks


@given(sites, st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["finish", "start", "turn"])), max_size=40))
def test_all_settles_while_work_goes_on(site: Site, steps: list[tuple[int, str]]) -> None:
    for which, what in steps:
        session = which % len(site.assigned)
        if what == "turn":
            site.turn(session)
        elif what == "finish" and site.started[session]:
            site.started[session].pop()
        elif site.assigned[session]:
            site.started[session].append(site.assigned[session].pop(0))
    for session in range(len(site.assigned)):
        site.turn(session)
    assert site.fair()


def test_who_has_nothing_gets_something_while_there_is_something() -> None:
    assert moves(0, {1: Held(1, 1, 1)}, None) == {1: 1}
    assert moves(0, {1: Held(1, 1, 0)}, None) == {}
    assert moves(0, {1: Held(1, 0, 9)}, None) == {}
    assert moves(0, {}, None) == {}


def test_a_newcomer_takes_its_part_from_those_that_have_most() -> None:
    assert moves(0, {1: Held(1, 9, 0), 2: Held(2, 9, 0)}, None) == {1: 3, 2: 3}
    assert moves(0, {1: Held(1, 9, 0), 2: Held(2, 3, 0)}, None) == {1: 4}
    assert moves(0, {1: Held(1, 9, 0), 2: Held(2, 9, 0)}, 2) == {1: 1, 2: 1}
    assert moves(0, {1: Held(1, 9, 0), 2: Held(2, 9, 0)}, 0) == {}


@pytest.mark.parametrize("order", [*permutations(range(4))])
def test_the_odd_ones_go_to_whoever_asks_first(order: tuple[int, ...]) -> None:
    site = Site.of([(10, 0), (0, 0), (0, 0), (0, 0)], None)
    for session in order:
        site.turn(session)
    assert sorted(site.has(session) for session in range(4)) == [2, 2, 3, 3]
    assert site.moved == 7


def test_large_numbers_cost_little() -> None:
    others = {session: Held(session, 10**9, session) for session in range(1, 1000)}
    plan = moves(0, others, None)
    assert sum(plan.values()) == (999 * 10**9 + sum(others)) // 1000
