"""``pgconcert demo``: several processes, one lock, the holder killed now and then, messages between them, and a leader,
who is killed as well; then tasks that they share. Here the parts are put together.

``demo_worker`` is one process, ``demo_process`` what all have in common, ``demo_stage`` all of them from outside,
``demo_director`` the course of events, ``demo_display`` what is seen, ``demo_tables`` where elections and tasks are.
``demo_history``, ``demo_messages``, ``demo_election`` say what is proven of lock, messages, terms; ``demo_tasks`` of
tasks, whose process, course and look are ``demo_tasks_worker``, ``demo_tasks_act`` and ``demo_tasks_display``.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from .demo_tables import DemoQueue, made_tables, noted_terms
from .demo_tasks import judge_tasks
from .demo_tasks_act import TaskDirector
from .demo_tasks_display import LiveTaskView, PlainTaskView, task_summary
from .demo_tasks_worker import TaskOrders
from .demo_worker import Orders
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
take-over succeeded, every process had its turn, no message was lost without
being reported, and every task was finished once, by its owner; 1 if not; 130
after Ctrl-C.
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
    help="How often the holder is killed; the leader half as often; once a process that has tasks.",
)
@click.option(
    "--seconds",
    default=18.0,
    show_default=True,
    type=click.FloatRange(2, 3600),
    help="How long they compete for the lock; up to a minute more if a take-over or a turn is outstanding.",
)
def command(url: str, processes: int, kills: int, seconds: float) -> None:
    """Watch several processes compete for one lock, elect a leader, talk, and share tasks, while some are killed.

    Each process takes the lock, holds it for a moment and gives it back. Now and then the holder is killed with
    SIGKILL, and once its connection to the server is cut. All the while each sends numbered messages to all; once the
    connection of a listener is cut. And all are candidates: a leader resigns after some seconds, or is killed. At the
    end the recorded history is checked: no two processes may have held the lock at one time, no two terms may overlap,
    tokens must have grown, and whatever message was not heard must have been told as a gap.

    Then as many processes share tasks, and one of them is killed, so that its share moves to the others.

    Election and tasks need tables. They are made in a schema of their own, which is removed at the end; where this role
    may not make one there is neither.
    """
    console = make_console()
    plan = Plan(processes, seconds, kills)
    try:
        with Ending() as ending:
            right = _run(console, url, plan, ending)
    except Stopped as stopped:
        console.print(f"\nstopped by {stopped.name}; nothing is left running", style="yellow")
        sys.exit(stopped.code)
    except WorkerFailed as failed:
        raise click.ClickException(str(failed)) from failed
    sys.exit(0 if right else 1)


def _run(console: Console, url: str, plan: Plan, ending: Ending) -> bool:
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
            text = "there is no election, and no tasks: this role may not make a schema for the tables\n"
            console.print(text, markup=False)
        stack.callback(ending.finish)
        right = _compete(console, url, plan, ending, operator, namespace, schema)
        if schema is not None:
            right = _share(console, url, plan, ending, namespace, schema) and right
    return right


def _compete(
    console: Console, url: str, plan: Plan, ending: Ending, operator: Operator, namespace: str, schema: str | None
) -> bool:
    """The first part: a lock, messages, an election."""

    def orders(worker: int, pipe: int) -> bytes:
        return Orders(url, namespace, worker, plan.shortest_hold, plan.longest_hold, plan.pause, pipe, schema).line()

    view = LiveView(console) if console.is_terminal else PlainView(console)
    with Stage("demo_worker", orders, ending.shielded) as stage, view, _putting_away(ending):
        director = Director(stage, plan, operator.end_session, view)
        records = director.run()
        wrong = judge(records, stage.pids, plan.kills, plan.faults.count(Kind.CUT))
        if schema is not None:
            terms = noted_terms(url, schema, namespace)
            wrong += judge_terms(director.picture.election.records, terms, plan.leader_kills)
        mail = director.picture.mail.records
        wrong += judge_mail(mail, stage.pids, stage.killed, plan.faults.count(Kind.SILENCED))
    summary(console, director.picture, wrong)
    return not wrong


def _share(console: Console, url: str, plan: Plan, ending: Ending, namespace: str, schema: str) -> bool:
    """The second part: tasks."""
    console.print()

    def orders(worker: int, pipe: int) -> bytes:
        return TaskOrders(url, namespace, worker, pipe, schema).line()

    view = LiveTaskView(console) if console.is_terminal else PlainTaskView(console)
    kill = plan.kills > 0
    with (
        DemoQueue(url, schema, namespace) as queue,
        Stage("demo_tasks_worker", orders, ending.shielded) as stage,
        view,
        _putting_away(ending),
    ):
        seen = TaskDirector(stage, plan.processes, kill, queue.enqueue, queue.look, view).run()
        wrong = judge_tasks(seen, killed=kill)
    task_summary(console, seen, wrong)
    return not wrong


@contextmanager
def _putting_away(ending: Ending) -> Iterator[None]:
    """What fails inside is put away without being interrupted."""
    try:
        yield
    except BaseException:
        ending.finish()
        raise
