"""The benchmark of sessions: `python benchmarks/sessions.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line. What is measured stands in `sessions_scenarios.py`.
"""

from __future__ import annotations

import argparse
import sys

from running import Conduct, command, understand
from sessions_peers import BY_HAND, CANDIDATES
from sessions_scenarios import NATIVE, SCENARIOS, Run, make_tables


def parse(words: list[str] | None) -> argparse.Namespace:
    text = "Measure what hangs on sessions: job locks against leases by hand, and how fast they are taken over."
    parser = command("sessions.py", text, SCENARIOS, dict.fromkeys([*CANDIDATES, NATIVE]))
    smoke = {"window": 0.1, "rounds": 2, "only": ["pgconcert", "pgconcert.blocking", BY_HAND, NATIVE]}
    return understand(parser, words, SCENARIOS, smoke)


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    return Conduct(Run, SCENARIOS, before=make_tables).run(parse(words))


if __name__ == "__main__":
    sys.exit(main())
