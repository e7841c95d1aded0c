"""How a demo looks: a live picture on a terminal, plain lines elsewhere, the same table at the end of both.

The picture is one lane for each worker, the newest moment on the right. A cell is lit if the worker held the lock at
that instant (the instants lie on a fixed grid, so that cells move and never flicker): two lit cells in one column would
be two holders at one time. Everything shown is computed from the records alone.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from types import TracebackType
from typing import Final, NamedTuple, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .demo_director import Mood, Picture
from .demo_election import successions
from .demo_history import History, Interval, Kind, find_overlaps, read_history, tally
from .demo_messages import Mail, accounts

__all__ = ["FRAME", "STATUS", "STYLES", "LiveView", "PlainView", "Signs", "signs", "summary"]

_CELL: Final = 50_000_000
FRAME: Final = 0.08
STATUS: Final = 1.0
_LINES: Final = 7
_BESIDE_LANE: Final = 54
STYLES: Final[dict[Mood, str]] = {
    "plain": "dim",
    "killed": "bold red",
    "cut": "yellow",
    "deaf": "magenta",
    "good": "green",
}


class Signs(NamedTuple):
    """What stands for what on a terminal."""

    held: str
    waits: str
    killed: str
    cut: str
    deaf: str
    holder: str
    leader: str
    marks: dict[Mood, str]


_DRAWN: Final = Signs(
    "█", "─", "✖", "◆", "○", "▶", "★", {"plain": "·", "killed": "✖", "cut": "◆", "deaf": "○", "good": "●"}
)
_TYPED: Final = Signs(
    "#", "-", "X", "!", "o", ">", "*", {"plain": ".", "killed": "X", "cut": "!", "deaf": "o", "good": "+"}
)


def signs(console: Console) -> Signs:
    """Those that the terminal has."""
    return _DRAWN if console.encoding.startswith("utf") else _TYPED


def _seconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e9:.2f} s"


def _talk(mail: Mail) -> str:
    return f"{mail.sent.total()} messages sent, {mail.heard.total()} times heard"


class PlainView:
    """One line for each event, and one each second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = STATUS
        self._begun = 0

    def tell(self, at: int, mood: Mood, text: str) -> None:
        self._begun = self._begun or at
        self._console.print(f"{(at - self._begun) / 1e9:6.2f} s  {text}", markup=False)

    def show(self, picture: Picture) -> None:
        now = time.monotonic_ns()
        elapsed = picture.since_begun(now)
        if elapsed < self._next:
            return
        self._next = elapsed - elapsed % STATUS + STATUS
        turns = ", ".join(str(tally(picture.records, n).turns) for n in range(1, picture.plan.processes + 1))
        holder = f"worker-{picture.inside.worker} holds the lock" if picture.inside else "nobody holds the lock"
        leader = picture.election.leader
        leads = f"; worker-{leader.worker} leads with token {leader.number}" if leader else ""
        talk = _talk(picture.mail)
        self._console.print(f"{elapsed:6.2f} s  {holder}{leads}; turns so far: {turns}; {talk}", markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class LiveView:
    """The moving picture. Use it as ``with``; the last one stays on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._signs = signs(console)
        self._told: deque[tuple[int, Mood, str]] = deque(maxlen=_LINES)
        self._live = Live(console=console, auto_refresh=False)
        self._drawn = 0.0
        self._shown: Picture | None = None

    def tell(self, at: int, mood: Mood, text: str) -> None:
        self._told.append((at, mood, text))

    def show(self, picture: Picture) -> None:
        self._shown = picture
        if time.monotonic() - self._drawn >= FRAME:
            self._live.update(self.picture(picture, time.monotonic_ns()), refresh=True)
            self._drawn = time.monotonic()

    def picture(self, picture: Picture, now: int) -> RenderableType:
        """One frame."""
        if not picture.begun:
            ready = sum(record.kind is Kind.READY for record in picture.records)
            return Text(f"starting processes: {ready} of {picture.plan.processes}", style="dim")
        elapsed = picture.since_begun(now)
        clock = f"{elapsed:.1f} of {picture.plan.seconds:g} s"
        if elapsed > picture.plan.seconds + 1:
            clock = f"{elapsed:.1f} s: waiting until everybody has had a turn"
        talk = Text(f"  {_talk(picture.mail)}", style="dim")
        heads = [self._headline(picture), *([self._leads(picture)] if picture.plan.election else [])]
        body = Group(*heads, talk, Text(), self._lanes(picture, now), Text(), self._events(picture))
        return Panel(
            body,
            title="[bold]pgconcert demo[/]",
            title_align="left",
            subtitle=clock,
            subtitle_align="right",
            box=box.ROUNDED,
            border_style="dim",
            padding=(1, 2, 0, 2),
        )

    def _headline(self, picture: Picture) -> Text:
        inside = picture.inside
        if inside is not None:
            line = Text(f"{self._signs.holder} worker-{inside.worker} holds the lock", style="bold green")
            line.append(f"   pid {inside.pid}, server process {inside.backend}", style="dim")
            return line
        return Text("  the lock is free", style="dim")

    def _leads(self, picture: Picture) -> Text:
        leader = picture.election.leader
        if leader is not None:
            line = Text(f"{self._signs.leader} worker-{leader.worker} leads", style="bold yellow")
            line.append(f"   term {picture.election.terms}, token {leader.number}", style="dim")
            return line
        return Text("  nobody leads", style="dim")

    def _lanes(self, picture: Picture, now: int) -> RenderableType:
        history = read_history(picture.records)
        cells = max(10, min(100, self._console.width - _BESIDE_LANE))
        lanes = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        lanes.add_column()
        lanes.add_column(f"the last {cells * _CELL / 1e9:.1f} seconds", no_wrap=True)
        lanes.add_column("turns", justify="right")
        lanes.add_column("median wait", justify="right")
        lanes.add_column("longest", justify="right")
        lanes.add_column("heard", justify="right")
        for worker in range(1, picture.plan.processes + 1):
            holds = picture.inside is not None and picture.inside.worker == worker
            leader = picture.election.leader
            mark = f" {self._signs.leader}" if leader is not None and leader.worker == worker else "  "
            got = tally(picture.records, worker)
            lanes.add_row(
                Text(f"worker-{worker}{mark}", style="bold green" if holds else ""),
                self._lane(picture, history, worker, now, cells),
                str(got.turns),
                _seconds(got.median_wait),
                _seconds(got.longest_wait),
                str(picture.mail.heard[worker]),
            )
        return lanes

    def _lane(self, picture: Picture, history: History, worker: int, now: int, cells: int) -> Text:
        holds = [hold for hold in history.intervals if hold.worker == worker]
        marks = {
            fault.at // _CELL: (self._signs.killed, "bold red")
            if fault.kind is Kind.KILLED
            else (self._signs.cut, "bold yellow")
            for fault in history.faults
            if fault.worker == worker
        }
        marks |= {
            link.at // _CELL: (self._signs.deaf, "bold magenta") for link in picture.mail.cuts if link.worker == worker
        }
        away = _absences(picture, worker)
        newest = now // _CELL

        def look(cell: int) -> tuple[str, str]:
            instant = cell * _CELL
            if cell in marks:
                return marks[cell]
            if any(_covers(hold, instant) for hold in holds):
                return self._signs.held, "green"
            if instant < picture.begun or any(start <= instant < end for start, end in away):
                return " ", ""
            return self._signs.waits, "bright_black"

        looks = map(look, range(newest - cells + 1, newest + 1))
        return Text.assemble(*((sign * len([*run]), style) for (sign, style), run in groupby(looks)))

    def _events(self, picture: Picture) -> Text:
        lines = Text(no_wrap=True, overflow="ellipsis")
        for at, mood, text in self._told:
            lines.append(f"{picture.since_begun(at):6.2f} s  ", style="dim")
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
            self._live.update(self.picture(self._shown, time.monotonic_ns()))
        self._live.stop()


def _covers(hold: Interval, instant: int) -> bool:
    return hold.start <= instant and (hold.end is None or instant < hold.end)


def _absences(picture: Picture, worker: int) -> list[tuple[int, int]]:
    """From each kill of a worker until its next process is ready."""
    ready = [record.at for record in picture.records if record.worker == worker and record.kind is Kind.READY]
    killed = [record.at for record in picture.records if record.worker == worker and record.kind is Kind.KILLED]
    return [(at, min((back for back in ready if back > at), default=sys.maxsize)) for at in killed]


def summary(console: Console, picture: Picture, wrong: Sequence[str]) -> None:
    """The result: who got what, how long every take-over took, and the verdict."""
    history = read_history(picture.records)
    plain = not console.is_terminal
    table = Table(box=box.ASCII if plain else box.SIMPLE_HEAD, header_style="bold", show_footer=True)
    turns = len(history.intervals)
    table.add_column("", "total")
    table.add_column("acquisitions", str(turns), justify="right")
    waits = sorted(record.waited for record in picture.records if record.kind is Kind.ENTERED)
    table.add_column("median wait", _seconds(waits[len(waits) // 2]) if waits else "", justify="right")
    table.add_column("longest wait", _seconds(waits[-1]) if waits else "", justify="right")
    killed = sum(fault.kind is Kind.KILLED for fault in history.faults)
    table.add_column("killed", str(killed), justify="right")
    mail = picture.mail
    table.add_column("sent", str(mail.sent.total()), justify="right")
    table.add_column("heard", str(mail.heard.total()), justify="right")
    for worker in range(1, picture.plan.processes + 1):
        got = tally(picture.records, worker)
        table.add_row(
            f"worker-{worker}",
            str(got.turns),
            _seconds(got.median_wait),
            _seconds(got.longest_wait),
            str(got.killed) if got.killed else "-",
            str(mail.sent[worker]),
            str(mail.heard[worker]),
        )
    console.print(table)
    for what, kind in (("SIGKILL", Kind.KILLED), ("cut connection", Kind.CUT)):
        times = [f.takeover / 1e6 for f in history.faults if f.kind is kind and f.takeover is not None]
        if times:
            console.print(f"  take-over after {what}: " + ", ".join(f"{took:.0f} ms" for took in times))
    takeovers = [s.takeover / 1e6 for s in successions(picture.election.records) if s.takeover is not None]
    if takeovers:
        console.print("  new leader after SIGKILL: " + ", ".join(f"{took:.0f} ms" for took in takeovers))
    kept = accounts(mail.records)
    told = sum(len(account.told) for account in kept)
    lost = sum(len(account.lost) for account in kept)
    console.print(f"  gaps told to listeners: {mail.gaps.total()}, with {told} messages in them")
    overlaps = find_overlaps(history.intervals)
    excused = [overlap for overlap in overlaps if overlap.excused]
    for overlap in excused:
        console.print(
            f"  worker-{overlap.second.worker} entered before worker-{overlap.first.worker} had learnt of its cut "
            "connection (this is not promised away)",
            style="yellow",
        )
    console.print(f"  overlaps: {len(overlaps) - len(excused)}\n")
    if wrong:
        console.print("FAILED", style="bold red")
        for line in wrong:
            console.print(f"  {line}", style="red", markup=False)
        return
    mark = f"{signs(console).marks['good']} " if not plain else ""
    console.print(f"{mark}{turns} holds, never two at one time; every take-over succeeded.", style="bold green")
    if picture.plan.election:
        terms = picture.election.terms
        text = f"{mark}{terms} terms of leaders, never two at one time, each with a larger token."
        console.print(text, style="bold green")
    console.print(f"{mark}{mail.sent.total()} messages, {lost} lost without being reported.", style="bold green")
