"""The benchmark of the blocking twin: `python benchmarks/blocking.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line and the scenarios of threads, with their targets. How turns are taken stands in
`turns.py`, who takes part in `peers.py` and `drivers.py`.

Theory. A thread that waits costs a hand-over of the interpreter; a bare driver pays it twice in a cycle, for two
answers, and has a connection for every thread. The blocking twin waits once, for the grant, and all its threads share
one link. So it is compared with the bare driver in both of its lives: with as many threads, and with one alone, which
nobody disturbs. No thread ever waits for another's lock here: keys are fresh, only the way to the server is shared.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from harness import KeyKind
from report import Target
from running import Conduct, command, understand
from scenarios import Run, look
from turns import THREADS, Guest, Round, median_ratio, take_turns

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
        rounds, failed = take_turns(guests, run.yardsticks(), run.arguments.rounds, run.arguments.window, KEYS)
    finally:
        for guest in guests:
            guest.close()
    run.dismiss(title, failed, [run.ours])
    run.report.figures[title] = rounds
    run.report.show(run.rates(title, rounds))
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
    parser = command("blocking.py", "Measure pgconcert's blocking twin against drivers and peers.", SCENARIOS, FIELD)
    return understand(parser, words, SCENARIOS, {"window": 0.1, "rounds": 2, "only": [OURS, RAW]})


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    conduct = Conduct(partial(Run, ours=OURS), SCENARIOS, before=lambda run: look(run, FIELD))
    return conduct.run(parse(words))


if __name__ == "__main__":
    sys.exit(main())
