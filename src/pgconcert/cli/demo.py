"""``pgconcert demo``: several processes, one lock, the holder killed now and then. Here the parts are put together.

``demo_worker`` is one process, ``demo_stage`` all of them from outside, ``demo_director`` the course of events,
``demo_display`` what is seen, ``demo_history`` what is proven. Signals that end a program become one exception, once:
whatever comes while things are being put away is ignored, so nothing is left half put away.
"""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import click
from rich.console import Console

from ..postgres.embedded import EmbeddedServer
from ..postgres.operator import Operator
from .demo_director import Director, Plan
from .demo_display import LiveView, PlainView, console_for, summary
from .demo_history import Kind, judge
from .demo_stage import Stage, WorkerFailed

__all__ = ["command"]

_SHORTEST_HOLD = 0.05
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """Somebody wants the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals_raise_once() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        for other in _ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise _Stopped(number)

    # What is ignored already (nohup, a job in the background) stays ignored.
    before = {number: signal.signal(number, stop) for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(
    epilog="""\b
Examples:
  pgconcert demo                                      a server of its own, 5 processes
  pgconcert demo --processes 8 --kills 5              more of both
  pgconcert demo --url postgresql://localhost/test    on your server
  pgconcert demo | tee demo.log                       plain lines

\b
Exit code: 0 if no two processes ever held the lock at one time, every take-over
succeeded and every process had its turn; 1 if not; 130 after Ctrl-C.
"""
)
@click.option(
    "--url",
    default="embedded://",
    show_default=True,
    metavar="ADDRESS",
    help="The server. embedded:// and embedded:///folder start one of its own.",
)
@click.option(
    "--processes", default=5, show_default=True, type=click.IntRange(2, 20), help="How many compete for the lock."
)
@click.option(
    "--kills", default=3, show_default=True, type=click.IntRange(0, 20), help="How often the holder is killed."
)
@click.option(
    "--seconds",
    default=18.0,
    show_default=True,
    type=click.FloatRange(2, 3600),
    help="How long they compete; up to 15 seconds more if a take-over or a turn is outstanding.",
)
def command(url: str, processes: int, kills: int, seconds: float) -> None:
    """Watch several processes compete for one lock while its holder is killed.

    Each process takes the lock, holds it for a moment and gives it back. Now and then the holder is killed with
    SIGKILL, and once its connection to the server is cut. At the end the recorded history is checked: no two
    processes may have held the lock at one time.
    """
    console = console_for(plain=not sys.stdout.isatty() or Console().is_dumb_terminal)
    plan = Plan(processes, seconds, kills)
    try:
        with _signals_raise_once():
            wrong = _run(console, url, plan)
    except _Stopped as stopped:
        console.print(f"\nstopped by {signal.Signals(stopped.number).name}; nothing is left running", style="yellow")
        sys.exit(128 + stopped.number)
    except WorkerFailed as failed:
        raise click.ClickException(str(failed)) from failed
    sys.exit(1 if wrong else 0)


def _run(console: Console, url: str, plan: Plan) -> list[str]:
    with ExitStack() as stack:
        if url.startswith("embedded:"):
            console.print(f"starting PostgreSQL for {url} (the first time takes some seconds)", markup=False)
            server = stack.enter_context(EmbeddedServer.start(url))
            url = server.url
        operator = stack.enter_context(Operator(url, name="pgconcert demo"))
        console.print(f"{operator.server}\n", markup=False)
        stage = stack.enter_context(
            Stage(url, f"demo:{secrets.token_hex(4)}", _SHORTEST_HOLD * plan.longest_hold / 0.3, plan.longest_hold)
        )
        view = LiveView(console) if console.is_terminal else PlainView(console)
        stack.enter_context(view)
        director = Director(stage, plan, operator.end_session, view)
        records = director.run()
        wrong = judge(records, stage.pids, plan.kills, plan.faults.count(Kind.CUT))
    summary(console, director.picture, wrong)
    return wrong
