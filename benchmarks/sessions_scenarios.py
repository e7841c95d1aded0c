"""The scenarios of the benchmark of sessions, and their targets.

What may live here: one function for each scenario, and the run. Who takes part stands in `sessions_peers.py`, what the
processes of ours do that hold much or are killed in `sessions_holding.py`, how turns are taken in `turns.py`.

Theory. What a job lock costs has three sides: its cycle, which is compared with what people write by hand; what goes on
while it is held, which is counted and must not depend on how many are held; and how long a name stands empty between
two holders, which is compared with the fastest that the server has, a blocking `pg_advisory_lock`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness import host
from peers import CANDIDATES as LOCKS
from processes import Group
from report import Table, Target
from running import BaseRun, rate_table
from sessions_holding import CROWD, Beats, Passed, host_holder
from sessions_peers import BY_HAND, CANDIDATES
from turns import THREADS, Guest, Round, Spread, median_ratio, ratios, take_turns

OURS = "pgconcert"
NATIVE = "psycopg"
"""In the benchmark of locks: a blocking pg_advisory_lock over psycopg."""
OUR_KINDS = ("pgconcert", "pgconcert.blocking")
MANY = 10_000
TTL = 2.0
JITTER = 0.1
"""Seconds above the ttl that a take-over may last: the spread of those who wait for one instant, and the way."""
SETTLE = 0.02
"""Seconds until whoever has asked waits in earnest: its mark is a write, and is flushed to disk."""
WAITERS = 1000
AS_FAST = 1.0
"""A lone cycle should take no longer than that of the lease by hand, though that has no token and wakes nobody."""


@dataclass
class Run(BaseRun):
    """What all scenarios of a run share."""

    def invite(self, name: str, tasks: int) -> Guest | None:
        return self.welcome(name, host, CANDIDATES[name], self.site.address, tasks)

    def holder(self, label: str) -> Guest:
        return Guest(label, host_holder, self.site.address)


def make_tables(run: Run) -> None:
    """Our tables, in the database of the run."""

    async def make() -> None:
        from pgconcert import AsyncCoordinator

        async with AsyncCoordinator(run.site.address.url, migrate=True):
            pass

    asyncio.run(make())


def compete(run: Run, title: str, tasks: int) -> list[Round]:
    guests: list[Guest] = []
    try:
        guests += [guest for name in run.wanted(CANDIDATES) if (guest := run.invite(name, tasks)) is not None]
        rounds, failed = take_turns(guests, {}, run.arguments.rounds, run.arguments.window, "int")
    finally:
        for guest in guests:
            guest.close()
    run.dismiss(title, failed, OUR_KINDS)
    run.report.figures[title] = rounds
    run.report.show(rate_table(run, title, rounds, against=BY_HAND))
    return rounds


def promise(run: Run, rounds: list[Round], text: str, bound: float, ours: str = OURS) -> None:
    figure = median_ratio(rounds, ours, BY_HAND) or None
    run.target(Target(f"{text}, times the {BY_HAND}", ">=", bound, figure, ours))


def one(run: Run) -> None:
    rounds = compete(run, "one job lock again and again, one task or thread", 1)
    promise(run, rounds, "one job lock", AS_FAST)
    promise(run, rounds, "one job lock, in a thread", AS_FAST, "pgconcert.blocking")


def hundred(run: Run) -> None:
    rounds = compete(run, f"100 tasks (blocking: {THREADS} threads), each with a name of its own", 100)
    promise(run, rounds, "100 job locks at a time", 1)


def many(run: Run) -> None:
    """What it costs to go on holding: the same for one and for ten thousand."""
    count = 500 if run.arguments.smoke else MANY
    ttl, intervals = (2.0, 2) if run.arguments.smoke else (12.0, 6)
    if not run.wanted([OURS]):
        return
    rows = []
    for number in (1, count):
        guest = run.holder(f"holder of {number}")
        try:
            began = time.monotonic()
            guest.ask("hold", number, ttl, patience=120.0)
            took = time.monotonic() - began
            found: Beats = guest.ask("beats", ttl / 4 * intervals)
            guest.ask("drop", patience=120.0)
        finally:
            guest.close()
        each = found.statements / found.intervals
        rows.append((f"{number:,}", f"{took:.2f}", f"{found.statements}", f"{found.intervals:.2f}", f"{each:.2f}"))
        run.report.figures[f"{number} held"] = found.__dict__ | {"seconds to acquire": took}
        text = f"{number:,} job locks held, statements beyond one in an interval"
        beyond = max(0.0, found.statements - found.intervals - 1)
        run.target(Target(text, "==", 0, beyond, f"{found.statements} in {found.intervals:.1f}", must=True))
        run.target(Target(f"{number:,} job locks held, lost", "==", 0, found.lost, "", must=True))
    columns = ("job locks held", "s to acquire", "statements", "intervals", "per interval")
    run.report.show(Table("one process that holds", columns, tuple(rows)))


def handover(run: Run) -> None:
    """Two processes hand one name back and forth."""
    groups: list[Group] = []
    rounds: list[Round] = []
    pooled: dict[str, list[int]] = {}
    names = run.wanted([OURS, NATIVE])
    try:
        for name in names:
            spec = CANDIDATES[OURS] if name == OURS else LOCKS[name]
            groups.append(Group(name, run.site.address, 2, 1, spec))
        window = max(run.arguments.window, 0.5)
        for group in groups:
            group.alternate(min(window, 0.2), SETTLE)
        for turn in range(run.arguments.rounds):
            shift = turn % max(1, len(groups))
            figures: Round = {}
            for group in groups[shift:] + groups[:shift]:
                if latencies := group.alternate(window, SETTLE):
                    figures[group.name] = statistics.median(latencies)
                    pooled.setdefault(group.name, []).extend(latencies)
            rounds.append(figures)
    finally:
        for group in groups:
            group.close()
    rows = []
    for name, sample in pooled.items():
        sample.sort()
        times = (sample[0], statistics.median(sample), sample[int(len(sample) * 0.99)], sample[-1])
        spread = Spread.of(found).cells() if (found := ratios(rounds, name, NATIVE)) else ("",) * 5
        rows.append((name, f"{len(sample):,}", *(f"{ns / 1e6:.2f}" for ns in times), *spread))
    columns = ("candidate", "hand-overs", "min ms", "p50", "p99", "max", "min", "q1", "x native", "q3", "max x")
    title = f"a job lock handed over after its release (native: {NATIVE}, pg_advisory_lock)"
    run.report.show(Table(title, columns, tuple(rows)))
    run.report.figures["handover"] = {"median ns by round": rounds, "ns": pooled}
    figure = median_ratio(rounds, OURS, NATIVE) or None
    run.target(Target("take-over after a release, median, times native", "<=", 10, figure, NATIVE))
    run.broken |= OURS in names and OURS not in pooled


def killed(run: Run) -> None:
    """The holder is killed at any moment between two heartbeats; how long until the other has it?"""
    if not run.wanted([OURS]):
        return
    times = [take_over(run, number) for number in range(2 if run.arguments.smoke else run.arguments.rounds)]
    shown = [f"{seconds:.3f}" for seconds in (min(times), statistics.median(times), max(times))]
    title = f"the holder is killed (ttl {TTL:g} s, a heartbeat every {TTL / 4:g} s): seconds until another has it"
    run.report.show(Table(title, ("kills", "min", "median", "max"), ((str(len(times)), *shown),)))
    run.report.figures["killed"] = times
    text = f"take-over after SIGKILL, worst of {len(times)}, seconds (ttl {TTL:g} s)"
    run.target(Target(text, "<=", TTL + JITTER, max(times), f"{JITTER:g} s for jitter"))


def take_over(run: Run, number: int) -> float:
    name = f"killed:{number}"
    holder = run.holder("holder")
    try:
        waiter = run.holder("waiter")
        try:
            holder.ask("take", name, TTL)
            waiter.tell("take", name, TTL)
            time.sleep(TTL / 2 + random.random() * TTL / 4)  # at another phase of the heartbeat each time
            killed_at = time.monotonic_ns()
            holder.process.kill()
            taken: int = waiter.answer(TTL + 30)
            waiter.ask("drop")
        finally:
            waiter.close()
    finally:
        holder.process.kill()
        holder.process.join()
        holder.pipe.close()
    return (taken - killed_at) / 1e9


def crowd(run: Run) -> None:
    """A thousand waiters on one name in each of two processes: what does a hand-over cost each process?"""
    if not run.wanted([OURS]):
        return
    waiters = 50 if run.arguments.smoke else WAITERS
    guests: list[Guest] = []
    try:
        guests += [run.holder(label) for label in ("first holder", "crowd 1", "crowd 2")]
        first, *crowds = guests
        first.ask("take", CROWD, 40.0)
        for guest in crowds:
            guest.tell("gather", waiters, 40.0)
        for guest in crowds:
            guest.answer(60.0)
        began = time.monotonic()
        first.ask("drop")
        for guest in crowds:
            guest.tell("crowd")
        passed: list[Passed] = [guest.answer(300.0) for guest in crowds]
        took = time.monotonic() - began
    finally:
        for guest in guests:
            guest.close()
    order = [number for _, number in sorted((at, number) for number, p in enumerate(passed) for at in p.taken)]
    holds = len(order)
    between = sum(here != there for here, there in itertools.pairwise(order))
    each = [p.statements / holds for p in passed]
    row = (f"{holds:,}", f"{between:,}", f"{took * 1000 / holds:.2f}", *(f"{figure:.2f}" for figure in each))
    columns = ("hand-overs", "between processes", "ms each", "statements of process 1", "of process 2")
    title = f"2 processes, each with {waiters:,} waiters on one name: statements in a hand-over"
    run.report.show(Table(title, columns, (row,)))
    run.report.figures["crowd"] = {"between": between, "seconds": took, "statements": [p.statements for p in passed]}
    text = f"{waiters:,} waiters in each of two processes, statements per process and hand-over"
    run.target(Target(text, "<=", 3, max(each), f"{holds:,} hand-overs", must=True))
    run.broken |= holds != 2 * waiters


SCENARIOS: dict[str, Callable[[Run], None]] = {
    "one": one,
    "hundred": hundred,
    "many": many,
    "handover": handover,
    "killed": killed,
    "crowd": crowd,
}
