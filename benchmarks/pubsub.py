"""The publish-and-subscribe benchmark: `python benchmarks/pubsub.py [scenario ...]`; see README.md for how to read it.

What may live here: the command line. What is measured stands in `pubsub_scenarios.py` and `pubsub_hearing.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from pubsub_candidate import LARGEST, SMALLEST
from pubsub_hearing import channels, fanout, latency, receive
from pubsub_peers import LISTENERS, PUBLISHERS
from pubsub_scenarios import Run, blocking, hundred, one, request, same, ten, thousand
from running import Conduct, command, understand

SCENARIOS: dict[str, Callable[[Run], None]] = {
    "one": one,
    "ten": ten,
    "hundred": hundred,
    "thousand": thousand,
    "same": same,
    "receive": receive,
    "latency": latency,
    "channels": channels,
    "fanout": fanout,
    "blocking": blocking,
    "request": request,
}
SMOKE = {
    "window": 0.1,
    "rounds": 2,
    "only": ["pgconcert", "pgconcert.blocking", "psycopg", "psycopg async", "libpq"],
    "scenarios": [name for name in SCENARIOS if name not in ("ten", "thousand")],
}


def parse(words: list[str] | None) -> argparse.Namespace:
    candidates = dict.fromkeys([*PUBLISHERS, *LISTENERS])
    text = "Measure pgconcert's messages against drivers and peers."
    parser = command("pubsub.py", text, SCENARIOS, candidates)
    parser.add_argument(
        "--size", type=int, default=32, metavar="BYTES", help="of a published payload (default 32; try 1000 and 7000)"
    )
    arguments = understand(parser, words, SCENARIOS, SMOKE)
    if not SMALLEST <= arguments.size <= LARGEST:
        parser.error(f"--size must be between {SMALLEST} and {LARGEST}")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the scenarios; 0 unless something is wrong (not merely slow), 1 otherwise."""
    arguments = parse(words)
    return Conduct(Run, SCENARIOS, settings=("size",), after=Run.close, nats=True).run(arguments)


if __name__ == "__main__":
    sys.exit(main())
