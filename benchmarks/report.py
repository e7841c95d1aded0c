"""What a run says: tables, targets with met or missed, and the same as JSON.

What may live here: records of results and how they are printed. No measurement.

Theory. A target stands next to its figure and says met, missed or not measured; nothing that was missed is left out. A
target marked `must` is about being right, not about speed: if it is missed the run fails, whatever the rates are.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Target:
    """One promise: `figure` is None when it could not be measured."""

    text: str
    sign: Literal[">=", "<=", "=="]
    bound: float
    figure: float | None
    detail: str = ""
    must: bool = False

    @property
    def met(self) -> bool | None:
        if self.figure is None:
            return None
        if self.sign == ">=":
            return self.figure >= self.bound
        return self.figure <= self.bound if self.sign == "<=" else self.figure == self.bound

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]


@dataclass
class Report:
    """Collects what the scenarios find; `figures` holds the raw material for the JSON file."""

    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def show(self, table: Table) -> None:
        self.tables.append(table)
        print_table(table)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def finish(self) -> bool:
        """Print the targets; false if something is not merely slow but wrong."""
        rows = [
            (t.text, f"{t.sign} {t.bound:g}", "-" if t.figure is None else number(t.figure), t.verdict, t.detail)
            for t in self.targets
        ]
        print_table(Table("Targets", ("target", "wanted", "measured", "verdict", "by"), tuple(rows)))
        return not any(target.must and target.met is False for target in self.targets)

    def write(self, path: Path, settings: dict[str, Any]) -> None:
        content = {
            "settings": settings,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "tables": [asdict(table) for table in self.tables],
            "targets": [asdict(target) | {"met": target.met} for target in self.targets],
            "notes": self.notes,
            "figures": self.figures,
        }
        path.write_text(json.dumps(content, indent=2) + "\n")


def number(value: float) -> str:
    """Three significant digits, thousands set apart, no exponent."""
    if value == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def print_table(table: Table) -> None:
    """With rich where it is installed, in plain columns otherwise."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print_plain(table)
        return
    console = Console()
    if not console.is_terminal:
        print_plain(table)
        return
    drawn = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)


def print_plain(table: Table) -> None:
    lines: Sequence[tuple[str, ...]] = [table.columns, *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    print(f"\n{table.title}")
    for line in lines:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip(), flush=True)
