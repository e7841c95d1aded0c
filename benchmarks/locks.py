"""The lock benchmark: `python benchmarks/locks.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line. What is measured stands in `scenarios.py`.
"""

from __future__ import annotations

import argparse
import sys

from peers import CANDIDATES
from running import Conduct, command, understand
from scenarios import SCENARIOS, SMOKE, Run


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = command("locks.py", "Measure pgconcert's locks against drivers and peers.", SCENARIOS, CANDIDATES)
    parser.add_argument("--cycles", type=int, default=100_000, help="of the contended scenario (default 100000)")
    smoke = {"window": 0.1, "rounds": 2, "cycles": 2000, "only": sorted(SMOKE)}
    arguments = understand(parser, words, SCENARIOS, smoke)
    if arguments.cycles < 8:
        parser.error("--cycles must be at least 8")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    return Conduct(Run, SCENARIOS, settings=("cycles",)).run(parse(words))


if __name__ == "__main__":
    sys.exit(main())
