"""What every benchmark shares around its scenarios: the run, the table of rates, the command line.

What may live here: no measurement, no scenario, no target; and nothing that knows what a cycle is.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from report import Report, Table, Target, number
from turns import YARDSTICK, Guest, Missing, Round, Spread, median_ratio, ratios
from yardstick import Site, site


@dataclass
class BaseRun:
    """What all scenarios of a run share."""

    site: Site
    report: Report
    arguments: argparse.Namespace
    ours: str = "pgconcert"
    """The candidate that the run is about."""
    missing: set[str] = field(default_factory=set)
    broken: bool = False

    def wanted(self, names: Iterable[str]) -> list[str]:
        only = self.arguments.only
        return [name for name in names if name not in self.missing and (only is None or name in only)]

    def welcome(self, name: str, host: Callable[..., None], *what: object, label: str | None = None) -> Guest | None:
        """Open a candidate, or say why it does not take part. `label` is its name in the tables, if it has two."""
        try:
            return Guest(label or name, host, *what)
        except Missing as missing:
            how = str(missing) if str(missing).startswith("npm ") else f"pip install {missing}"
            self.skip(name, f"skipped, not installed: {how}")
        except RuntimeError as error:
            self.skip(name, f"skipped, cannot start: {error}")
        return None

    def skip(self, name: str, reason: str) -> None:
        self.missing.add(name)
        self.report.note(f"{name}: {reason}")
        self.broken |= name == self.ours

    def dismiss(self, title: str, failed: Mapping[str, str], ours: Iterable[str]) -> None:
        """Name those who failed in the middle of a competition; if they are `ours`, the run is broken."""
        for name, error in failed.items():
            self.report.note(f"{title}: {name} failed and was left out: {error}")
            self.broken |= name in ours

    def target(self, target: Target) -> None:
        self.report.targets.append(target)


def rate_table(
    run: BaseRun,
    title: str,
    rounds: Sequence[Round],
    *,
    unit: str = "cycles/s",
    against: str = YARDSTICK,
    ours: str | None = None,
    more: Mapping[str, Callable[[str], str]] | None = None,
) -> Table:
    """A row for everybody: the median rate, the ratios to `against`, ours to theirs, and columns of one's own."""
    more, ours = more or {}, ours or run.ours
    names = sorted({name for rates in rounds for name in rates}, key=lambda name: -median_ratio(rounds, name, against))
    rows = []
    for name in names:
        sample = ratios(rounds, name, against)
        rate = statistics.median(rates[name] for rates in rounds if name in rates)
        rows.append(
            (
                name,
                number(rate),
                *(Spread.of(sample).cells() if sample else ("",) * 5),
                number(times) if (times := median_ratio(rounds, ours, name)) else "",
                *(cell(name) for cell in more.values()),
            )
        )
    return Table(title, ("candidate", unit, "min", "q1", f"x {against}", "q3", "max", "ours is x", *more), tuple(rows))


def command(
    prog: str, description: str, scenarios: Iterable[str], candidates: Iterable[str]
) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    names = list(candidates)
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(scenarios)}; default: all")
    parser.add_argument(
        "--url", help="a PostgreSQL to use; it gets a database of its own for the run. Default: embedded"
    )
    parser.add_argument("--window", type=float, default=1.0, metavar="SECONDS", help="length of a turn (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of everybody (default 9)")
    parser.add_argument("--pin", action="store_true", help="server and all candidates on one CPU; not with --url")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="CANDIDATE", help=f"repeatable; of {', '.join(names)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--smoke", action="store_true", help="tiny windows, no peers: does the benchmark still work?")
    return parser


def understand(
    parser: argparse.ArgumentParser, words: list[str] | None, scenarios: Iterable[str], smoke: Mapping[str, object]
) -> argparse.Namespace:
    """Parse and check; `smoke` is what --smoke sets: figures always, names where none were given."""
    arguments = parser.parse_args(words)
    if unknown := set(arguments.scenarios) - set(scenarios):
        parser.error(f"unknown scenario {', '.join(sorted(unknown))}: choose from {', '.join(scenarios)}")
    if arguments.window <= 0 or arguments.rounds < 1:
        parser.error("--window must be positive, --rounds at least 1")
    if arguments.pin and arguments.url:
        parser.error("--pin cannot move a server that runs already: leave out --url")
    if arguments.smoke:
        for name, value in smoke.items():
            if not (isinstance(value, list) and getattr(arguments, name)):
                setattr(arguments, name, value)
    return arguments


R = TypeVar("R", bound=BaseRun)


@dataclass(frozen=True)
class Conduct(Generic[R]):
    """How a benchmark runs from its command line to its exit code."""

    make: Callable[[Site, Report, argparse.Namespace], R]
    scenarios: Mapping[str, Callable[[R], None]]
    settings: Sequence[str] = ()
    """Options that belong into the JSON file, besides those of everybody."""
    before: Callable[[R], None] | None = None
    after: Callable[[R], None] | None = None
    nats: bool = False

    def run(self, arguments: argparse.Namespace) -> int:
        """0 unless something is wrong (not merely slow), 1 otherwise."""
        report = Report()
        if arguments.pin:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # everything started from here on inherits it
        with site(arguments.url, nats=self.nats) as place:
            run = self.make(place, report, arguments)
            version = place.ask("select current_setting('server_version')")
            print(f"PostgreSQL {version}, {arguments.rounds} rounds of {arguments.window:g} s windows", flush=True)
            try:
                if self.before is not None:
                    self.before(run)
                for name in arguments.scenarios or self.scenarios:
                    self.scenarios[name](run)
            finally:
                if self.after is not None:
                    self.after(run)
            right = report.finish() and not run.broken
            if arguments.json:
                settings: dict[str, Any] = {name: getattr(arguments, name) for name in self.settings}
                settings |= {"window": arguments.window, "rounds": arguments.rounds, "pinned": arguments.pin}
                report.write(arguments.json, settings | {"server": version})
        return 0 if right else 1
