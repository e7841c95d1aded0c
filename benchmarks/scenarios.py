"""The scenarios of the lock benchmark and their targets.

What may live here: one function per scenario, `SCENARIOS`, and what they share. How turns are taken stands in
`turns.py`, who takes part in `peers.py` and `drivers.py`, what happens between processes in `processes.py`.

Theory. Every scenario asks one question that a user would ask, and puts the promise of the project beside the answer.
Statements are counted twice: by pgconcert's own counters, and by the transactions the server says it committed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from drivers import POOL
from harness import Exclusion, KeyKind, explore, host
from peers import CANDIDATES
from processes import Group, judge
from report import Table, Target
from running import BaseRun, rate_table
from turns import THREADS, YARDSTICK, Guest, Round, Spread, median_ratio, ratios, take_turns
from yardstick import LOCK_CYCLE

OURS = "pgconcert"
NATIVE = "psycopg"
UNSHARED = [name for name in CANDIDATES if name != "psycopg async, shared"]
HEADLINE = {
    "one": [name for name in UNSHARED if name != "asyncpg pool"],
    "ten": [name for name in UNSHARED if "shared" not in name],
    "thousand": [name for name in UNSHARED if "shared" not in name],
}
DRIVERS = [name for name, spec in CANDIDATES.items() if spec.kind != "library" and name in HEADLINE["one"]]
TASKS = {"one": 1, "ten": 10, "thousand": 1000}
HELD = [OURS, "psycopg async, shared", *(name for name, spec in CANDIDATES.items() if spec.kind == "library")]
SMOKE = {OURS, "psycopg async", "psycopg", "psycopg async, shared"}
SPARE_CONNECTIONS = 15
COUNT_REPEATS = 3


@dataclass
class Run(BaseRun):
    """What all scenarios of a run share, and what was found out about the candidates."""

    exclusion: dict[str, Exclusion] = field(default_factory=dict)

    def invite(self, name: str, tasks: int, label: str | None = None) -> Guest | None:
        return self.welcome(name, host, CANDIDATES[name], self.site.address, tasks, label=label)

    def yardsticks(self) -> dict[str, Callable[[], float]]:
        return {YARDSTICK: lambda: self.site.pgbench(LOCK_CYCLE, self.arguments.window)}

    def rates(self, title: str, rounds: list[Round]) -> Table:
        """The table of rates, with what was found out by trying."""
        return rate_table(self, title, rounds, more={"excludes": self.excludes, "bits": self.bits})

    def excludes(self, name: str) -> str:
        found = self.exclusion.get(name)
        return "" if found is None else "yes" if found.excludes else "NO"

    def bits(self, name: str) -> str:
        found = self.exclusion.get(name)
        return "" if found is None or found.key_bits is None else str(found.key_bits)


def compete(run: Run, scenario: str, names: list[str], tasks: int, kind: KeyKind) -> list[Round]:
    """One competition, in as many heats as the server's connections need; pgconcert is in every heat."""
    budget = int(run.site.ask("select current_setting('max_connections')::int")) - SPARE_CONNECTIONS
    played: list[Round] = []
    for heat in heats(run.wanted(names), tasks, budget):
        guests = [guest for name in heat if (guest := run.invite(name, tasks)) is not None]
        try:
            rounds, failed = take_turns(guests, run.yardsticks(), run.arguments.rounds, run.arguments.window, kind)
        finally:
            for guest in guests:
                guest.close()
        played += rounds
        run.dismiss(scenario, failed, rivals("pgconcert"))
    run.report.figures[f"{scenario}, {kind} keys"] = played
    return played


def heats(names: list[str], tasks: int, budget: int) -> list[list[str]]:
    """Split the candidates so that the idle connections of all guests of a heat fit into the budget."""
    always = [name for name in names if CANDIDATES[name].kind == "pgconcert"]
    found: list[list[str]] = []
    room = 0
    for name in names:
        if name in always:
            continue
        need = min(tasks, THREADS if CANDIDATES[name].loop == "threads" else POOL) + 1
        if not found or need > room:
            found.append(list(always))
            room = budget - 4 * len(always)
        found[-1].append(name)
        room -= need
    return found or [always]


def against_fastest(rounds: list[Round], names: Iterable[str]) -> tuple[float | None, str]:
    """The median paired ratio to whoever of `names` leaves us the least, and who that is."""
    figures = {name: median_ratio(rounds, OURS, name) for name in names if ratios(rounds, OURS, name)}
    if not figures:
        return None, "nobody to compare with"
    hardest = min(figures, key=lambda name: figures[name])
    return figures[hardest], hardest


def against_pgbench(rounds: list[Round]) -> float | None:
    return median_ratio(rounds, OURS, YARDSTICK) or None


def rivals(*kinds: str) -> list[str]:
    """Candidates of these kinds, but for those on uvloop: the targets are about pgconcert on asyncio's own loop."""
    return [name for name, spec in CANDIDATES.items() if spec.kind in kinds and spec.loop != "uvloop"]


def look(run: Run, names: Iterable[str]) -> None:
    """Find out by trying who excludes, once for all scenarios."""
    for name in run.wanted(names):
        if CANDIDATES[name].kind == "driver" or name in run.exclusion:
            continue
        guest = run.invite(name, 1)
        if guest is None:
            continue
        try:
            run.exclusion[name] = explore(guest, run.site.advisory_keys)
        except RuntimeError as error:
            run.skip(name, f"skipped, its locks do not work: {error}")
        finally:
            guest.close()
    ours = run.exclusion.get(run.ours)
    if ours is not None and not (ours.excludes and ours.key_bits == 64):
        run.report.note(f"{run.ours} does not exclude, or does not use 64 bits: {ours}")
        run.broken = True


def one(run: Run) -> None:
    look(run, HEADLINE["one"])
    rounds = compete(run, "one", HEADLINE["one"], 1, "text")
    run.report.show(run.rates("one task, a fresh text name every cycle", rounds))
    numbers = compete(run, "one", DRIVERS, 1, "int")
    run.report.show(run.rates("one task, a fresh int key every cycle", numbers))
    figure, rival = against_fastest(rounds, rivals("driver"))
    run.target(Target("one task, of the fastest bare driver", ">=", 0.85, figure, rival))
    run.target(Target("one task, of pgbench", ">=", 0.4, against_pgbench(rounds), YARDSTICK))
    excluding = [name for name in rivals("library") if name in run.exclusion and run.exclusion[name].excludes]
    figure, rival = against_fastest(rounds, excluding)
    run.target(Target("one task, times the fastest library that excludes", ">=", 2, figure, rival))
    figure, rival = against_fastest(rounds, [name for name in excluding if run.exclusion[name].key_bits])
    run.target(Target("... that excludes through PostgreSQL", ">=", 2, figure, rival))
    own, outside = count(run, 1, 20 if run.arguments.smoke else 1000)
    run.target(Target("one task, statements per cycle, own count", "==", 2, own, "median of 3", must=True))
    run.target(Target("one task, statements per cycle, server's count", "==", 2, outside, "median of 3", must=True))


def ten(run: Run) -> None:
    rounds = compete(run, "ten", HEADLINE["ten"], 10, "text")
    run.report.show(run.rates(f"10 tasks (blocking: {THREADS} threads), distinct text names", rounds))
    run.target(Target("10 tasks, times pgbench", ">=", 1.5, against_pgbench(rounds), YARDSTICK))


def thousand(run: Run) -> None:
    rounds = compete(run, "thousand", HEADLINE["thousand"], 1000, "text")
    title = f"1,000 tasks (pools of {POOL}; blocking: {THREADS} threads), distinct text names"
    run.report.show(run.rates(title, rounds))
    run.target(Target("1,000 tasks, times pgbench", ">=", 4, against_pgbench(rounds), YARDSTICK))
    figure, rival = against_fastest(rounds, rivals("driver", "library"))
    run.target(Target("1,000 tasks, times the fastest peer", ">=", 10, figure, rival))
    own, outside = count(run, 1000, 5_000 if run.arguments.smoke else 50_000)
    run.target(Target("1,000 tasks, statements per cycle, own count", "<=", 0.01, own, "median of 3", must=True))
    text = "1,000 tasks, statements per cycle, server's count"
    run.target(Target(text, "<=", 0.01, outside, "median of 3", must=True))


def count(run: Run, tasks: int, cycles: int) -> tuple[float | None, float | None]:
    """Statements per cycle: by pgconcert's own counters, and by the transactions the server says it committed.

    A process that does `cycles` is compared with one that does twice as many: connecting, probing, preparing and
    leaving cancel out, and what remains was caused by the cycles alone.
    """
    own: list[float] = []
    outside: list[float] = []
    if not run.wanted([OURS]):
        return None, None
    for _ in range(COUNT_REPEATS):
        lives = [life(run, tasks, cycles * factor) for factor in (1, 2)]
        own.append((lives[1][0] - lives[0][0]) / cycles)
        outside.append((lives[1][1] - lives[0][1]) / cycles)
    run.report.figures[f"statements per cycle, {tasks} at a time"] = {"own": own, "server": outside}
    listed = " ".join(f"{value:.4f}" for value in own), " ".join(f"{value:.4f}" for value in outside)
    run.report.note(f"statements per cycle, {tasks:,} at a time: own {listed[0]}; server {listed[1]}")
    return statistics.median(own), statistics.median(outside)


def life(run: Run, tasks: int, cycles: int) -> tuple[int, int]:
    before = run.site.commits()
    guest = Guest(OURS, host, CANDIDATES[OURS], run.site.address, tasks)
    try:
        sent = guest.ask("cycles", cycles, "text", patience=300.0)
    finally:
        guest.close()
    return int(sent), run.site.commits() - before


def held(run: Run) -> None:
    wanted = 200 if run.arguments.smoke else 1000
    rows = []
    ours: float | None = None
    for name in run.wanted(HELD):
        before = run.site.connections()
        guest = run.invite(name, 1)
        if guest is None:
            continue
        try:
            reached, error = guest.ask("hold", wanted, patience=120.0)
            connections = run.site.connections() - before
            guest.ask("drop", patience=60.0)
        finally:
            guest.close()
        rows.append((name, f"{reached:,}", str(connections), error or ""))
        if name == OURS:
            run.broken |= reached < wanted
            ours = connections if reached == wanted else None
    run.report.show(
        Table(f"{wanted:,} locks held by one process", ("candidate", "held", "connections", "stopped by"), tuple(rows))
    )
    run.target(Target(f"{wanted:,} locks held, server connections", "<=", 3, ours, OURS))


def handover(run: Run) -> None:
    names = run.wanted([OURS, "pgconcert (uvloop)", NATIVE])
    groups: list[Group] = []
    rounds: list[Round] = []
    pooled: dict[str, list[int]] = {}
    try:
        for name in names:
            try:
                groups.append(Group(name, run.site.address, 2, 1))
            except ModuleNotFoundError as missing:
                run.skip(name, f"skipped, not installed: pip install {missing}")
        window = max(run.arguments.window, 0.5)
        for group in groups:
            group.alternate(min(window, 0.2))
        for number_of_round in range(run.arguments.rounds):
            shift = number_of_round % max(1, len(groups))
            rates: Round = {}
            for group in groups[shift:] + groups[:shift]:
                latencies = group.alternate(window)
                if latencies:
                    rates[group.name] = statistics.median(latencies)
                    pooled.setdefault(group.name, []).extend(latencies)
            rounds.append(rates)
    finally:
        for group in groups:
            group.close()
    rows = []
    for name, sample in pooled.items():
        sample.sort()
        times = [sample[0], statistics.median(sample), sample[int(len(sample) * 0.99)], sample[-1]]
        spread = Spread.of(sample_ratios) if (sample_ratios := ratios(rounds, name, NATIVE)) else None
        shown = () if spread is None else (spread.least, spread.lower, spread.median, spread.upper, spread.most)
        rows.append(
            (name, f"{len(sample):,}", *(f"{ns / 1e6:.2f}" for ns in times), *(f"{value:.2f}" for value in shown))
        )
    columns = ("candidate", "hand-overs", "min ms", "p50", "p99", "max", "min", "q1", "x native", "q3", "max x")
    rows = [row + ("",) * (len(columns) - len(row)) for row in rows]
    run.report.show(
        Table(f"hand-over between two processes (native: {NATIVE}, pg_advisory_lock)", columns, tuple(rows))
    )
    run.report.figures["handover"] = {"median ns by round": rounds, "ns": pooled}
    figure = median_ratio(rounds, OURS, NATIVE) or None
    run.target(Target("hand-over, median, times native", "<=", 3, figure, NATIVE))
    run.broken |= OURS in names and OURS not in pooled


def contended(run: Run) -> None:
    """Half of the cycles in a crowd, half among few: a crowd finds overlaps, few find lost wake-ups."""
    if not run.wanted([OURS]):
        return
    control(run)
    cycles = run.arguments.cycles // 2
    rows = []
    holds = overlaps = lost = 0
    for title, size, tasks, keys in (
        ("4 processes x 20 tasks, 5 names", 4, 20, 5),
        ("4 processes x 1 task, 2 names", 4, 1, 2),
    ):
        group = Group(OURS, run.site.address, size, tasks)
        try:
            found = judge(group.contend(cycles, keys, patience=60 + cycles / 50))
        finally:
            group.close()
        gaps = found.gaps or (0,)
        late = [str(found.slower_than(limit * 1_000_000)) for limit in (20, 100, 300)]
        times = (gaps[len(gaps) // 2], gaps[int(len(gaps) * 0.99)], gaps[-1])
        rows.append(
            (
                title,
                f"{found.holds:,}",
                f"{len(found.gaps):,}",
                *(f"{ns / 1e6:.2f}" for ns in times),
                *late,
                str(found.overlaps),
                str(found.lost),
            )
        )
        holds, overlaps, lost = holds + found.holds, overlaps + found.overlaps, lost + found.lost
    columns = (
        "contended",
        "holds",
        "between processes",
        "p50 ms",
        "p99",
        "max",
        ">20",
        ">100",
        ">300",
        "overlaps",
        "lost",
    )
    run.report.show(Table("contended cycles, hand-overs between processes", columns, tuple(rows)))
    run.target(Target("contended, overlapping holds", "==", 0, overlaps, f"{holds:,} holds", must=True))
    run.target(Target("contended, lost wake-ups", "==", 0, lost, f"{holds:,} holds"))


def control(run: Run) -> None:
    """The detector must see what it is there to see: one shared connection does not exclude, so its holds overlap."""
    group = Group("psycopg async, shared", run.site.address, 1, 10)
    try:
        found = judge(group.contend(200, 1, patience=60))
    finally:
        group.close()
    run.report.note(f"negative control, one shared connection: {found.overlaps} overlaps in {found.holds} holds")
    if not found.overlaps:
        run.broken = True


SCENARIOS = {
    "one": one,
    "ten": ten,
    "thousand": thousand,
    "held": held,
    "handover": handover,
    "contended": contended,
}
