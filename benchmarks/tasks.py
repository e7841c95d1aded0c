"""The benchmark of tasks: `python benchmarks/tasks.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line. What is measured stands in `tasks_scenarios.py` and `tasks_ticks.py`.
"""

from __future__ import annotations

import argparse
import sys

from running import Conduct, command, understand
from tasks_peers import WORKERS
from tasks_scenarios import SCENARIOS, Run, make_tables


def parse(words: list[str] | None) -> argparse.Namespace:
    text = "Measure queues of tasks: doing, enqueueing and picking up, beside other queues; and what a tick costs."
    parser = command("tasks.py", text, SCENARIOS, WORKERS)
    return understand(parser, words, SCENARIOS, {"window": 0.1, "rounds": 2, "only": ["pgconcert"]})


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    return Conduct(Run, SCENARIOS, before=make_tables).run(parse(words))


if __name__ == "__main__":
    sys.exit(main())
