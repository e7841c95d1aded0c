"""How the demo's second part looks: bars on a terminal, plain lines elsewhere, the same table at the end of both."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .demo_director import Mood
from .demo_display import FRAME, STATUS, STYLES, signs
from .demo_history import Kind
from .demo_tasks import Share, Sharing, excused

__all__ = ["LiveTaskView", "PlainTaskView", "task_summary"]

_LINES: Final = 4


class PlainTaskView:
    """One line for each event, and one each second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = 0
        self._next = STATUS

    def tell(self, at: int, mood: Mood, text: str) -> None:
        self._console.print(f"{(at - self._begun) / 1e9:6.2f} s  {text}", markup=False)

    def show(self, picture: Sharing) -> None:
        self._begun = picture.begun
        elapsed = (time.monotonic_ns() - picture.begun) / 1e9
        if not picture.begun or elapsed < self._next:
            return
        self._next = elapsed - elapsed % STATUS + STATUS
        has = ", ".join(str(share.has) for share in picture.shares().values())
        text = f"they have {has}; {picture.finished} of {picture.count} tasks are finished"
        self._console.print(f"{elapsed:6.2f} s  {text}", markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class LiveTaskView:
    """A bar for each process: what it has finished, what it has. Use it as ``with``; the last one stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._signs = signs(console)
        self._told: deque[tuple[int, Mood, str]] = deque(maxlen=_LINES)
        self._live = Live(console=console, auto_refresh=False)
        self._drawn = 0.0
        self._shown: Sharing | None = None

    def tell(self, at: int, mood: Mood, text: str) -> None:
        self._told.append((at, mood, text))

    def show(self, picture: Sharing) -> None:
        self._shown = picture
        if time.monotonic() - self._drawn >= FRAME:
            self._live.update(self.picture(picture), refresh=True)
            self._drawn = time.monotonic()

    def picture(self, picture: Sharing) -> RenderableType:
        """One frame."""
        if not picture.begun:
            ready = sum(record.kind is Kind.READY for record in picture.records)
            return Text(f"starting processes: {ready} of {picture.processes}", style="dim")
        return Panel(
            Group(self._bars(picture), Text(), self._events(picture)),
            title="[bold]pgconcert demo: tasks[/]",
            title_align="left",
            subtitle=f"{picture.finished} of {picture.count} tasks are finished",
            subtitle_align="right",
            box=box.ROUNDED,
            border_style="dim",
            padding=(1, 2, 0, 2),
        )

    def _bars(self, picture: Sharing) -> RenderableType:
        bars = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for header in ("", "finished, and to do", "has", "finished"):
            bars.add_column(header, no_wrap=True, justify="right" if header in ("has", "finished") else "left")
        for worker, share in picture.shares().items():
            dead = picture.killed is not None and picture.killed.worker == worker
            mark = f" {self._signs.killed}" if dead else "  "
            bar = Text.assemble(
                (self._signs.held * share.finished, "green"),
                (self._signs.waits * share.has, "red" if dead else "yellow"),
            )
            name = Text(f"worker-{worker}{mark}", style="bold red" if dead else "")
            bars.add_row(name, bar, str(share.has), str(share.finished))
        return bars

    def _events(self, picture: Sharing) -> Text:
        lines = Text(no_wrap=True, overflow="ellipsis")
        for at, mood, text in self._told:
            lines.append(f"{(at - picture.begun) / 1e9:6.2f} s  ", style="dim")
            lines.append(f"{self._signs.marks[mood]} {text}\n", style=STYLES[mood])
        lines.append("\n" * (_LINES - len(self._told)))
        lines.rstrip()
        return lines

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown is not None and kind is None:
            self._live.update(self.picture(self._shown))
        self._live.stop()


def task_summary(console: Console, seen: Sharing, wrong: Sequence[str]) -> None:
    """The result: the shares before and after, who finished what, and the verdict."""
    plain = not console.is_terminal
    table = Table(box=box.ASCII if plain else box.SIMPLE_HEAD, header_style="bold", show_footer=True)
    table.add_column("", "total")
    columns = [("share", {worker: share.has + share.finished for worker, share in (seen.first or {}).items()})]
    if seen.killed is not None:
        columns += [
            (f"had when worker-{seen.killed.worker} died", _has(seen.then)),
            ("took over", seen.heirs),
        ]
    columns.append(("finished", {worker: share.finished for worker, share in seen.shares().items()}))
    for header, counts in columns:
        table.add_column(header, str(sum(counts.values())), justify="right")
    for worker in range(1, seen.processes + 1):
        dead = seen.killed is not None and seen.killed.worker == worker
        cells = [
            "killed" if dead and header == "took over" else str(counts.get(worker, 0)) for header, counts in columns
        ]
        table.add_row(f"worker-{worker}", *cells)
    console.print(table)
    if late := excused(seen.records):
        console.print(
            f"  tasks that a process was at still, when its time was over without its being run: {late} (this is not "
            "promised away)",
            style="yellow",
        )
    if wrong:
        console.print("FAILED", style="bold red")
        for line in wrong:
            console.print(f"  {line}", style="red", markup=False)
        return
    mark = f"{signs(console).marks['good']} " if not plain else ""
    moved = f"; {len(seen.left)} moved when a process died" if seen.killed is not None else ""
    text = f"{mark}{seen.count} tasks, each finished once, by its owner{moved}."
    console.print(text, style="bold green")


def _has(shares: Mapping[int, Share] | None) -> dict[int, int]:
    return {worker: share.has for worker, share in (shares or {}).items()}
