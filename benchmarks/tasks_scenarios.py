"""The scenarios of the benchmark of tasks, and their targets.

What may live here: one function for each scenario, and the run. Who takes part stands in `tasks_peers.py`, what their
processes do in `tasks_hosting.py`, what a tick costs in `tasks_ticks.py`, how turns are taken in `turns.py`.

Theory. A queue of tasks has three sides: how fast tasks are put there, how soon an idle worker has one, and how fast
several workers get through many of them. The last is measured for lone tasks and for batches, because what a task costs
the server besides its own work is one flush to disk each time that somebody notes something down: whoever notes down
many things together is faster by as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from harness import host
from report import Table, Target, number
from running import BaseRun, rate_table
from tasks_hosting import Crew, host_worker
from tasks_peers import CHUNK, MAKERS, RIVALS, WORKERS, enqueuers
from tasks_ticks import ticks
from turns import Guest, Round, Spread, first_line, median_ratio, ratios, rotations, take_turns

OURS = "pgconcert"
OUR_KINDS = ("pgconcert", "pgconcert, 1 call", "pgconcert (uvloop)")
AGAINST = "pgqueuer"
SIZES = (1, 4)
BATCHES = (1, 10, 100)
WAYS = 40
"""How many tasks of a window are sent one by one."""
AT_BATCH = {1: 1.0, 10: None, 100: 2.0}
"""How many times the tasks of the faster rival, by batch."""


@dataclass
class Run(BaseRun):
    """What all scenarios of a run share."""

    made: set[str] = field(default_factory=set)
    """Whose tables are there."""

    def crew(self, name: str, queue: str, size: int) -> Crew | None:
        """Processes of one candidate; `None` if it does not take part."""
        spec, guests = WORKERS[name], list[Guest]()
        for _ in range(size):
            guest = self.welcome(name, host_worker, spec, self.site.address, queue)
            if guest is None:
                for one in guests:
                    one.close()
                return None
            guests.append(guest)
        return Crew(name, guests)


def make_tables(run: Run) -> None:
    """The tables of all who take part."""
    wanted = run.wanted(WORKERS)
    for library, make in MAKERS.items():
        names = [name for name in wanted if name.startswith(library)]
        if not names:
            continue
        try:
            asyncio.run(make(run.site.address))
        except ModuleNotFoundError:
            for name in names:
                run.skip(name, f"skipped, not installed: pip install {WORKERS[name].pip}")


@contextlib.contextmanager
def crews(run: Run, queue: str, size: int) -> Iterator[dict[str, Crew]]:
    present: dict[str, Crew] = {}
    try:
        for name in run.wanted(WORKERS):
            if (crew := run.crew(name, f"{queue} of {name}", size)) is not None:
                present[name] = crew
        yield present
    finally:
        for crew in present.values():
            crew.close()


def in_turn(run: Run, title: str, present: dict[str, Crew], turn: Callable[[Crew], float]) -> list[Round]:
    """Let every crew have its turn in every round; whoever fails goes home."""
    failed: dict[str, str] = {}
    rounds: list[Round] = []

    def take(crew: Crew) -> float | None:
        try:
            return turn(crew)
        except RuntimeError as error:
            failed[crew.name] = first_line(error)
            present.pop(crew.name).close()
            return None

    for crew in [*present.values()]:
        take(crew)  # fills queues, prepares statements
    for order in rotations([*present], run.arguments.rounds):
        figures = {name: take(present[name]) for name in order if name in present}
        rounds.append({name: figure for name, figure in figures.items() if figure is not None})
    run.dismiss(title, failed, OUR_KINDS)
    return rounds


def rates(run: Run) -> None:
    """How many tasks a second do one and four processes get through, alone and in batches?"""
    sizes, batches = ((2,), (10,)) if run.arguments.smoke else (SIZES, BATCHES)
    with crews(run, "rates", max(sizes)) as present:
        for size in sizes:
            for batch in batches:
                title = f"{size} {'process does' if size == 1 else 'processes do'} tasks, batch {batch}"
                turn = lambda crew, size=size, batch=batch: crew.turn(size, batch, run.arguments.window)  # noqa: E731
                rounds = in_turn(run, title, present, turn)
                run.report.figures[title] = rounds
                run.report.show(rate_table(run, title, rounds, unit="tasks/s", against=AGAINST))
                promise(run, rounds, title, AT_BATCH.get(batch))
        accounts(run, present, max(sizes))


def promise(run: Run, rounds: list[Round], text: str, bound: float | None) -> None:
    """The target against whichever rival leaves ours the least."""
    if bound is None:
        return
    found = {rival: ratio for rival in RIVALS if (ratio := median_ratio(rounds, OURS, rival))}
    rival = min(found, key=lambda name: found[name], default="")
    run.target(Target(f"{text}, times the fastest rival", ">=", bound, found.get(rival), rival))


def accounts(run: Run, present: dict[str, Crew], size: int) -> None:
    """What was done twice, and what never, once all queues are empty."""
    rows = []
    for name, crew in [*present.items()]:
        lost = crew.finish(size)
        rows.append((name, f"{crew.enqueued:,}", f"{crew.twice:,}", f"{lost:,}"))
        run.report.figures[f"accounts of {name}"] = {"enqueued": crew.enqueued, "twice": crew.twice, "lost": lost}
        if name in OUR_KINDS:
            run.target(Target(f"{name}: tasks done twice, or never", "==", 0, crew.twice + lost, must=True))
    columns = ("candidate", "tasks", "done twice", "never done")
    run.report.show(Table("all tasks, at the end", columns, tuple(rows)))


def pickup(run: Run) -> None:
    """How long is a task under way from its sender to an idle worker?"""
    count = 5 if run.arguments.smoke else WAYS
    pooled: dict[str, list[int]] = {}

    def turn(crew: Crew) -> float:
        ways = crew.ways(count)
        pooled.setdefault(crew.name, []).extend(ways)
        return statistics.median(ways)

    with crews(run, "pickup", 2) as present:
        rounds = in_turn(run, "pickup", present, turn)
    rows = []
    for name, sample in sorted(pooled.items(), key=lambda item: statistics.median(item[1])):
        sample.sort()
        times = (sample[0], statistics.median(sample), sample[int(len(sample) * 0.99)], sample[-1])
        spread = Spread.of(found).cells() if (found := ratios(rounds, name, AGAINST)) else ("",) * 5
        theirs = median_ratio(rounds, name, OURS)
        cells = (*(f"{ns / 1e6:.2f}" for ns in times), *spread, number(theirs) if theirs else "")
        rows.append((name, f"{len(sample):,}", *cells))
    columns = (
        "candidate",
        "tasks",
        "min ms",
        "p50",
        "p99",
        "max",
        "min",
        "q1",
        f"x {AGAINST}",
        "q3",
        "max x",
        "x ours",
    )
    run.report.show(Table("from the call that enqueues a task to an idle worker that has it", columns, tuple(rows)))
    run.report.figures["pickup"] = {"median ns by round": rounds, "ns": pooled}


def enqueue(run: Run) -> None:
    """How many tasks a second does one process put into a queue?"""
    for title, tasks, many in (
        ("one task enqueues, one at a time", 1, 1),
        ("100 tasks enqueue, one at a time each", 100, 1),
        (f"one task enqueues {CHUNK:,} by a call", 1, CHUNK),
    ):
        candidates = enqueuers(many)
        guests: list[Guest] = []
        try:
            for name in run.wanted(candidates):
                guest = run.welcome(name, host, candidates[name], run.site.address, tasks)
                guests += [guest] if guest is not None else []
            rounds, failed = take_turns(guests, {}, run.arguments.rounds, run.arguments.window, "int")
        finally:
            for guest in guests:
                guest.close()
        run.dismiss(title, failed, OUR_KINDS)
        rounds = [{name: rate * many for name, rate in rates.items()} for rates in rounds]
        run.report.figures[title] = rounds
        run.report.show(rate_table(run, title, rounds, unit="tasks/s", against=AGAINST))
        promise(run, rounds, title, 1.0)


SCENARIOS: dict[str, Callable[[Run], None]] = {
    "rates": rates,
    "pickup": pickup,
    "enqueue": enqueue,
    "ticks": ticks,
}
