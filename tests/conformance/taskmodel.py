"""The model of the port for tasks: what every backend must answer, and what is then true.

Here live the rules and what is checked of an answer; `taskmachine.py` says what happens, and in which order.

Theory. The model is the rules of `taskstore.py`, written as naively as possible: a list of tasks, looked through from
its beginning to its end. Requests come one after the other, so everything is decided by the rules, but for one thing:
which of the tasks that the dead have left are taken first. There the answer is checked, and believed.

Time is what the machine makes of it: a task is due now or in an hour, and a session is over when it was ended, or when
the ground on which the machine stands lets its time be over.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from pgconcert.store import Subject
from pgconcert.taskstore import Pick, QueueInfo, QueuePlace, TaskState, Turn, Turned

FAR: Final = 10**6
"""The steps after which something is due that is due in an hour."""
_STATES: Final[tuple[TaskState, ...]] = ("waiting", "scheduled", "assigned", "started", "dead", "finished")


@dataclass(eq=False)
class Modelled:
    """A task. ``due``: the step from which on it may be run. ``session``: whose it is, or who finished it."""

    id: str
    number: int
    due: int
    attempts: int
    state: TaskState = "waiting"
    attempt: int = 0
    session: int | None = None
    error: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.due, self.number

    @property
    def held(self) -> bool:
        return self.state in ("assigned", "started")

    def free(self, due: int) -> None:
        self.session, self.due = None, due
        self.state = "scheduled" if due >= FAR else "waiting"

    def start(self) -> None:
        self.state = "started"
        self.attempt += 1

    def take_back(self) -> None:
        """It was not begun after all."""
        self.attempt -= self.state == "started"
        self.state = "assigned"


class Model:
    """Two queues, and who works there. ``step``: how often everything was looked at."""

    def __init__(self) -> None:
        namespace = secrets.token_hex(8)
        self.places = [QueuePlace(namespace, "a"), QueuePlace(namespace, "b", 3600.0)]
        self.tasks: dict[str, list[Modelled]] = {place.name: [] for place in self.places}
        self.runners: dict[int, Subject] = {}
        self.alive: set[int] = set()
        self.step = 0

    def of(self, place: QueuePlace, session: int | None = None, *states: TaskState) -> list[Modelled]:
        """Tasks of a place, in order: those of a session, in these states."""
        return sorted(
            (
                task
                for task in self.tasks[place.name]
                if (session is None or task.session == session) and (not states or task.state in states)
            ),
            key=lambda task: task.order,
        )

    def ours(self, place: QueuePlace, session: int, id: str, state: TaskState) -> Modelled | None:  # noqa: A002
        return next((task for task in self.of(place, session, state) if task.id == id), None)

    def sharing(self, session: int) -> list[int]:
        name = self.runners[session].name
        return sorted(one for one in self.alive if self.runners[one].name == name)

    def reported(self, turn: Turn, turned: Turned) -> tuple[str, ...]:
        """What the reports do: which died of it."""
        refused: list[str] = []
        died: list[str] = []
        assert isinstance(turn.place, QueuePlace)
        for what, ids in (
            ("finished", turn.finished),
            ("failed", tuple(failure.id for failure in turn.failed)),
            ("released", turn.released),
        ):
            for one in ids:
                task = self.ours(turn.place, turn.session, one, "started")
                if task is None:
                    refused.append(one)
                elif what == "finished":
                    task.state = "finished"
                    if not turn.place.retention:
                        self.tasks[turn.place.name].remove(task)
                elif what == "released":
                    task.attempt -= 1
                    task.free(task.due)
                else:
                    (rest,) = [failure.retry_in for failure in turn.failed if failure.id == one]
                    task.error = True
                    if task.attempt < task.attempts:
                        task.free(self.step + (FAR if rest else 0))
                    else:
                        task.session, task.state = None, "dead"
                        died.append(one)
        assert turned.refused == tuple(refused)
        assert {*died} <= {*turned.died}
        return tuple(died)

    def begun(self, turn: Turn, turned: Turned) -> int:
        """What is started of what was assigned: how many."""
        assert isinstance(turn.place, QueuePlace)
        mine = [task for one in turn.start if (task := self.ours(turn.place, turn.session, one, "assigned"))]
        for task in mine:
            task.start()
        rows = [(task.id, task.attempt, b"p") for task in mine]
        assert [*turned.started[: len(rows)]] == rows
        return len(rows)

    def picked(
        self, turn: Turn, pick: Pick, turned: Turned, begun: int, died: tuple[str, ...], free: list[Modelled]
    ) -> None:
        """What is picked up of what was ``free`` before, and of what the dead have left."""
        place, me = turn.place, turn.session
        assert isinstance(place, QueuePlace)
        sessions = len(self.sharing(me))
        left = [task for task in self.of(place) if task.held and task.session not in self.alive]
        outstanding = len(free) + len([task for task in self.of(place) if task.held])
        if pick.most is not None:
            outstanding = min(outstanding, sessions * pick.most)
        share = -(-outstanding // sessions)
        assert (turned.sessions, turned.outstanding, turned.share) == (sessions, outstanding, share)
        has = len(self.of(place, me, "assigned", "started"))
        need = max(share - max(has - pick.resting, 0), 0)

        got = [*(row.id for row in turned.started[begun:]), *turned.assigned]
        killed = [one for one in turned.died if one not in died]
        assert len(turned.started) - begun == min(pick.start, len(got))
        known = {task.id: task for task in [*left, *free]}
        assert len({*got, *killed}) == len(got) + len(killed)
        assert {*got, *killed} <= {*known}
        assert len(got) <= need
        assert len(got) + len(killed) >= min(need, len(known))
        assert all(known[one] in left for one in killed)
        fresh = [known[one] for one in got if known[one] in free]
        assert fresh == free[: len(fresh)]
        if not left:
            assert killed == []
        for one in killed:
            task = known[one]
            assert task.attempt >= task.attempts
            task.state, task.session, task.error = "dead", None, True
        for one in got:
            task = known[one]
            assert task.attempt < task.attempts
            task.state, task.session = "assigned", me
        for row in turned.started[begun:]:
            known[row.id].start()
            assert row == (row.id, known[row.id].attempt, b"p")

    def counted(self, info: QueueInfo) -> None:
        tasks = self.tasks[info.name]
        assert {state: getattr(info, state) for state in _STATES} == {
            state: sum(task.state == state for task in tasks) for state in _STATES
        }
        assert (info.oldest is not None) == any(task.state == "waiting" for task in tasks)
