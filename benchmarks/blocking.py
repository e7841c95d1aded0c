"""The benchmark of the blocking twin: `python benchmarks/blocking.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line and the scenarios of threads, with their targets. How turns are taken stands in
`harness.py`, who takes part in `peers.py` and `drivers.py`.

Theory. A thread that waits costs a hand-over of the interpreter; a bare driver pays it twice in a cycle, for two
answers, and has a connection for every thread. The blocking twin waits once, for the grant, and all its threads share
one link. So it is compared with the bare driver in both of its lives: with as many threads, and with one alone, which
nobody disturbs. No thread ever waits for another's lock here: keys are fresh, only the way to the server is shared.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness import THREADS, Guest, KeyKind, Round, take_turns
from report import Report, Target
from scenarios import Run, look, median_ratio, rate_table
from yardstick import site

OURS = "pgconcert.blocking"
RAW = "psycopg"
ALONE = "psycopg, one thread"
PEERS = ("django-pglock", "sqlalchemy-dlock", "PALs", "tooz")
FIELD = (OURS, RAW, *PEERS, "sqlalchemy-dlock, shared")
KEYS: KeyKind = "text"


def compete(run: Run, title: str, threads: int) -> list[Round]:
    """One competition of everybody with `threads` threads, and of the bare driver with one as well."""
    field = [(name, threads, name) for name in run.wanted(FIELD)]
    if threads > 1:
        field += [(name, 1, ALONE) for name in run.wanted([RAW])]
    guests: list[Guest] = []
    try:
        for name, width, label in field:
            if (guest := run.invite(name, width, label)) is not None:
                guests.append(guest)
        rounds, failed = take_turns(guests, run.yardstick, run.arguments.rounds, run.arguments.window, KEYS)
    finally:
        for guest in guests:
            guest.close()
    for name, error in failed.items():
        run.report.note(f"{title}: {name} failed and was left out: {error}")
        run.broken |= name == run.ours
    run.report.figures[title] = rounds
    run.report.show(rate_table(run, title, rounds))
    return rounds


def promise(run: Run, rounds: list[Round], text: str, other: str, bound: float) -> None:
    run.target(Target(text, ">=", bound, median_ratio(rounds, OURS, other) or None, other))


def peers(run: Run, rounds: list[Round], text: str) -> None:
    for name in PEERS:
        promise(run, rounds, f"{text}, times {name}", name, 1)


def one(run: Run) -> None:
    rounds = compete(run, "one thread, a fresh text name every cycle", 1)
    promise(run, rounds, "one thread, of the bare driver", RAW, 0.9)
    peers(run, rounds, "one thread")


def eight(run: Run) -> None:
    rounds = compete(run, f"{THREADS} threads, fresh text names", THREADS)
    promise(run, rounds, f"{THREADS} threads, times the bare driver with {THREADS} threads and connections", RAW, 2.5)
    promise(run, rounds, f"{THREADS} threads, times the bare driver with one thread", ALONE, 2.5)
    peers(run, rounds, f"{THREADS} threads")


SCENARIOS = {"one": one, "eight": eight}


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="blocking.py", description="Measure pgconcert's blocking twin against drivers and peers."
    )
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument(
        "--url", help="a PostgreSQL to use; it gets a database of its own for the run. Default: embedded"
    )
    parser.add_argument("--window", type=float, default=1.0, metavar="SECONDS", help="length of a turn (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of everybody (default 9)")
    parser.add_argument("--pin", action="store_true", help="server and all candidates on one CPU; not with --url")
    parser.add_argument("--only", action="append", choices=FIELD, metavar="CANDIDATE", help="repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--smoke", action="store_true", help="tiny windows, no peers: does the benchmark still work?")
    arguments = parser.parse_args(words)
    unknown = set(arguments.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown scenario {', '.join(sorted(unknown))}: choose from {', '.join(SCENARIOS)}")
    if arguments.window <= 0 or arguments.rounds < 1:
        parser.error("--window must be positive, --rounds at least 1")
    if arguments.pin and arguments.url:
        parser.error("--pin cannot move a server that runs already: leave out --url")
    if arguments.smoke:
        arguments.window, arguments.rounds = 0.1, 2
        arguments.only = arguments.only or [OURS, RAW]
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    arguments = parse(words)
    report = Report()
    if arguments.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # everything started from here on inherits it
    with site(arguments.url) as place:
        run = Run(place, report, arguments, OURS)
        version = place.ask("select current_setting('server_version')")
        print(f"PostgreSQL {version}, {arguments.rounds} rounds of {arguments.window:g} s windows", flush=True)
        look(run, FIELD)
        for name in arguments.scenarios or SCENARIOS:
            SCENARIOS[name](run)
        right = report.finish() and not run.broken
        if arguments.json:
            settings = {
                "window": arguments.window,
                "rounds": arguments.rounds,
                "pinned": arguments.pin,
                "server": version,
            }
            report.write(arguments.json, settings)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
