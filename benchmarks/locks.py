"""The lock benchmark: `python benchmarks/locks.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line. What is measured stands in `scenarios.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from peers import CANDIDATES
from report import Report
from scenarios import SCENARIOS, SMOKE, Run
from yardstick import site


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="locks.py", description="Measure pgconcert's locks against drivers and peers."
    )
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument(
        "--url", help="a PostgreSQL to use; it gets a database of its own for the run. Default: embedded"
    )
    parser.add_argument("--window", type=float, default=1.0, metavar="SECONDS", help="length of a turn (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of everybody (default 9)")
    parser.add_argument("--cycles", type=int, default=100_000, help="of the contended scenario (default 100000)")
    parser.add_argument("--pin", action="store_true", help="server and all candidates on one CPU; not with --url")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(CANDIDATES),
        metavar="CANDIDATE",
        help=f"repeatable; of {', '.join(CANDIDATES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--smoke", action="store_true", help="tiny windows, no peers: does the benchmark still work?")
    arguments = parser.parse_args(words)
    unknown = set(arguments.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown scenario {', '.join(sorted(unknown))}: choose from {', '.join(SCENARIOS)}")
    if arguments.window <= 0 or arguments.rounds < 1 or arguments.cycles < 8:
        parser.error("--window must be positive, --rounds at least 1, --cycles at least 8")
    if arguments.pin and arguments.url:
        parser.error("--pin cannot move a server that runs already: leave out --url")
    if arguments.smoke:
        arguments.window, arguments.rounds, arguments.cycles = 0.1, 2, 2000
        arguments.only = arguments.only or sorted(SMOKE)
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    arguments = parse(words)
    report = Report()
    if arguments.pin:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # everything started from here on inherits it
    with site(arguments.url) as place:
        run = Run(place, report, arguments)
        version = place.ask("select current_setting('server_version')")
        print(f"PostgreSQL {version}, {arguments.rounds} rounds of {arguments.window:g} s windows", flush=True)
        for name in arguments.scenarios or SCENARIOS:
            SCENARIOS[name](run)
        right = report.finish() and not run.broken
        if arguments.json:
            settings = {
                "window": arguments.window,
                "rounds": arguments.rounds,
                "cycles": arguments.cycles,
                "pinned": arguments.pin,
                "server": version,
            }
            report.write(arguments.json, settings)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
