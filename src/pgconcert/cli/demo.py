"""``pgconcert demo``: several processes, one lock, the holder killed now and then, messages between them, and a leader,
who is killed as well. Here the parts are put together.

``demo_worker`` is one process, ``demo_stage`` all of them from outside, ``demo_director`` the course of events,
``demo_display`` what is seen, ``demo_tables`` where the election is kept, ``demo_history`` what is proven of the lock,
``demo_messages`` of the messages, ``demo_election`` of the terms.
"""

from __future__ import annotations

import secrets
import sys
from contextlib import ExitStack
from dataclasses import replace

import click
from rich.console import Console

from ..postgres.embedded import EmbeddedServer
from ..postgres.operator import Operator
from .console import make_console
from .demo_director import Director, Plan
from .demo_display import LiveView, PlainView, summary
from .demo_election import judge_terms
from .demo_history import Kind, judge
from .demo_messages import judge_mail
from .demo_stage import Stage, WorkerFailed
from .demo_tables import made_tables, noted_terms
from .ending import Ending, Stopped

__all__ = ["command"]


@click.command(
    epilog="""\b
Examples:
  pgconcert demo                                      a server of its own, 5 processes
  pgconcert demo --processes 8 --kills 5              more of both
  pgconcert demo --url postgresql://localhost/test    on your server
  pgconcert demo | tee demo.log                       plain lines

\b
Exit code: 0 if no two processes ever held the lock or led at one time, every
take-over succeeded, every process had its turn, and no message was lost without
being reported; 1 if not; 130 after Ctrl-C.
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
    "--kills",
    default=3,
    show_default=True,
    type=click.IntRange(0, 20),
    help="How often the holder is killed; the leader half as often.",
)
@click.option(
    "--seconds",
    default=18.0,
    show_default=True,
    type=click.FloatRange(2, 3600),
    help="How long they compete; up to 15 seconds more if a take-over or a turn is outstanding.",
)
def command(url: str, processes: int, kills: int, seconds: float) -> None:
    """Watch several processes compete for one lock, elect a leader, and talk, while holder and leader are killed.

    Each process takes the lock, holds it for a moment and gives it back. Now and then the holder is killed with
    SIGKILL, and once its connection to the server is cut. All the while each sends numbered messages to all; once the
    connection of a listener is cut. And all are candidates: a leader resigns after some seconds, or is killed. At the
    end the recorded history is checked: no two processes may have held the lock at one time, no two terms may overlap,
    tokens must have grown, and whatever message was not heard must have been told as a gap.

    The election needs tables. They are made in a schema of their own, which is removed at the end; where this role may
    not make one there is no election.
    """
    console = make_console()
    plan = Plan(processes, seconds, kills)
    try:
        with Ending() as ending:
            wrong = _run(console, url, plan, ending)
    except Stopped as stopped:
        console.print(f"\nstopped by {stopped.name}; nothing is left running", style="yellow")
        sys.exit(stopped.code)
    except WorkerFailed as failed:
        raise click.ClickException(str(failed)) from failed
    sys.exit(1 if wrong else 0)


def _run(console: Console, url: str, plan: Plan, ending: Ending) -> list[str]:
    with ExitStack() as stack:
        if url.startswith("embedded:"):
            console.print(f"starting PostgreSQL for {url} (the first time takes some seconds)", markup=False)
            server = stack.enter_context(EmbeddedServer.start(url))
            url = server.url
        operator = stack.enter_context(Operator(url, name="pgconcert demo"))
        console.print(f"{operator.server}\n", markup=False)
        namespace = f"demo:{secrets.token_hex(4)}"  # two demos on one server do not compete with each other
        schema = stack.enter_context(made_tables(url))
        if schema is None:
            plan = replace(plan, election=False)
            console.print("there is no election: this role may not make a schema for its tables\n", markup=False)
        stage = stack.enter_context(
            Stage(url, namespace, plan.shortest_hold, plan.longest_hold, plan.pause, schema, ending.shielded)
        )
        view = LiveView(console) if console.is_terminal else PlainView(console)
        stack.enter_context(view)
        stack.callback(ending.finish)
        director = Director(stage, plan, operator.end_session, view)
        records = director.run()
        wrong = judge(records, stage.pids, plan.kills, plan.faults.count(Kind.CUT))
        mail = director.picture.mail.records
        if schema is not None:
            terms = noted_terms(url, schema, namespace)
            wrong += judge_terms(director.picture.election.records, terms, plan.leader_kills)
        wrong += judge_mail(mail, stage.pids, stage.killed, plan.faults.count(Kind.SILENCED))
    summary(console, director.picture, wrong)
    return wrong
