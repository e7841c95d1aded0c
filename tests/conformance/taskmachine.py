"""The port for tasks against a model of it: one machine, for every backend.

Here live the machine and what it asks of a backend; the model stands in `taskmodel.py`. `test_task_model.py` runs the
machine over `memory://`. After each step everything that anybody can see of the queues is compared with the model.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from random import Random
from typing import Final, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgconcert.store import EndSession, Request, StartSession, Subject, Take, Taken
from pgconcert.taskstore import (
    DiscardTasks,
    Enqueue,
    Failure,
    Held,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    NewTask,
    Pick,
    QueuePlace,
    Recall,
    ReleaseTasks,
    RetryTasks,
    Turn,
    Turned,
)
from tests.conformance.taskmodel import FAR, Model, Modelled

T = TypeVar("T")

LONG: Final = 3600.0


class Ground(Protocol):
    """Where the machine stands: a backend, asked one thing at a time."""

    def ask(self, request: Request[T]) -> T:
        """The answer."""
        ...

    def expire(self, session: int) -> None:
        """The time of a session is over; nobody has ended it."""
        ...


def _shuffled(ours: Mapping[int, str], more: Mapping[int, str], random: Random) -> Mapping[int, str]:
    said = [*({**more, **ours}.items())]
    random.shuffle(said)
    return dict(said)


class Tasks(Model, RuleBasedStateMachine):
    """Two queues, runners of two names."""

    def __init__(self, ground: Ground) -> None:
        RuleBasedStateMachine.__init__(self)
        Model.__init__(self)
        self.ground = ground

    which = st.integers(0, 1)

    def somebody(self, data: st.DataObject) -> int:
        """A session; rarely one that is over."""
        known = [*sorted(self.alive), *sorted(self.runners.keys() - self.alive)]
        last = len(self.alive) - 1
        alive = st.integers(0, last)
        return known[data.draw(st.one_of(alive, alive, alive, st.integers(last, len(known) - 1)))]

    # what happens to sessions

    @initialize()
    def begin(self) -> None:
        for name in ("x", "x", "y"):
            self.join(name)
        for which in range(2):
            self.enqueue(which, [1, 2, 1, 2, 3, 3], False)

    @precondition(lambda self: len(self.runners) < 8)
    @rule(name=st.sampled_from(["x", "x", "y"]))
    def join(self, name: str) -> None:
        runner = Subject("runner", self.places[0].namespace, name, secrets.token_hex(8))
        session = self.ground.ask(StartSession(uuid=runner.member, ttl=LONG, host="h", pid=1, application="model"))
        assert isinstance(self.ground.ask(Take(subject=runner, session=session)), Taken)
        self.runners[session] = runner
        self.alive.add(session)

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data(), end=st.booleans())
    def leave(self, data: st.DataObject, end: bool) -> None:
        session = sorted(self.alive)[data.draw(st.integers(0, len(self.alive) - 1))]
        if end:
            assert self.ground.ask(EndSession(session))
        else:
            self.ground.expire(session)
        self.alive.remove(session)

    # what happens to tasks

    @rule(which=which, attempts=st.lists(st.integers(1, 3), max_size=5), later=st.booleans())
    def enqueue(self, which: int, attempts: list[int], later: bool) -> None:
        place = self.places[which]
        new = tuple(NewTask(b"p", run_in=LONG if later else None, attempts=most) for most in attempts)
        put = self.ground.ask(Enqueue(place=place, tasks=new))
        assert len({*put}) == len(attempts)
        for one, most in zip(put, attempts, strict=True):
            task = Modelled(one, len(self.tasks[place.name]), 0, most)
            task.free(self.step + (FAR if later else 0))
            self.tasks[place.name].append(task)

    @rule(
        which=which,
        data=st.data(),
        most=st.none() | st.integers(0, 6),
        start=st.integers(0, 4),
        resting=st.sampled_from([0, 0, 0, 1, 3]),
    )
    def pick_up(self, which: int, data: st.DataObject, most: int | None, start: int, resting: int) -> None:
        self.turn(which, data, Pick(most, start, resting))

    @rule(which=which, data=st.data())
    def report(self, which: int, data: st.DataObject) -> None:
        self.turn(which, data, None)

    def turn(self, which: int, data: st.DataObject, pick: Pick | None) -> None:
        place, me = self.places[which], self.somebody(data)
        known = self.tasks[place.name]
        said = {
            "no task" if number == len(known) else known[number].id: what
            for number, what in data.draw(self.reports(place, me)).items()
        }
        turn = Turn(
            place=place,
            runner=self.runners[me],
            session=me,
            finished=tuple(one for one, what in said.items() if what == "finished"),
            failed=tuple(
                Failure(one, "error", LONG if what == "failed for long" else 0.0)
                for one, what in said.items()
                if what.startswith("failed")
            ),
            released=tuple(one for one, what in said.items() if what == "released"),
            start=tuple(one for one, what in said.items() if what == "start"),
            pick=pick,
        )
        turned = self.ground.ask(turn)
        if me not in self.alive:
            assert turned == Turned(over=True)
            return
        rested = self.of(place, None, "scheduled")
        free = self.of(place, None, "waiting")
        died = self.reported(turn, turned)
        begun = self.begun(turn, turned)
        assert not turned.over
        if pick is None:
            nothing = (turned.assigned, turned.sessions, turned.outstanding, turned.share, turned.next_in)
            assert (len(turned.started), nothing) == (begun, ((), 0, 0, 0, None))
            assert sorted(turned.died) == sorted(died)
        else:
            self.picked(turn, pick, turned, begun, died, free)
            # what failed in this turn and may be run again at once is due next, too
            if rested or {"failed", "failed for long"} & {*said.values()}:
                assert turned.next_in is None or 0 <= turned.next_in <= LONG
                assert not rested or turned.next_in is not None
            else:
                assert turned.next_in is None

    def reports(self, place: QueuePlace, me: int) -> st.SearchStrategy[Mapping[int, str]]:
        """What is said of tasks, by their places in the model: mostly of ours, what we may say."""
        known = self.tasks[place.name]
        begun = st.sampled_from(["finished", "failed", "failed", "failed for long", "released", "start", "nothing"])
        kept = st.sampled_from(["start", "start", "start", "nothing", "nothing", "finished"])
        ours = {
            number: begun if task.state == "started" else kept
            for number, task in enumerate(known)
            if task.held and task.session == me
        }
        words = st.sampled_from(["finished", "failed", "released", "start"])
        nothing: Mapping[int, str] = {}
        more = st.just(nothing) | st.dictionaries(st.integers(0, len(known)), words, max_size=2)
        return st.builds(_shuffled, st.fixed_dictionaries(ours), more, st.randoms(use_true_random=False))

    @rule(which=which, data=st.data())
    def recall(self, which: int, data: st.DataObject) -> None:
        place, me = self.places[which], self.somebody(data)
        mine = self.of(place, me, "assigned", "started")
        kept = data.draw(st.lists(st.integers(0, len(mine)), max_size=3))
        keep = ["no task" if number == len(mine) else mine[number].id for number in kept]
        recalled = [task for task in mine if task.id not in keep] if me in self.alive else []
        assert self.ground.ask(Recall(place=place, session=me, keep=tuple(keep))) == tuple(t.id for t in recalled)
        for task in recalled:
            task.take_back()

    @rule(which=which, data=st.data())
    def move(self, which: int, data: st.DataObject) -> None:
        place, me = self.places[which], self.somebody(data)
        known, some = sorted(self.runners), st.integers(0, len(self.runners) - 1)
        moves = {
            known[number]: count
            for number, count in data.draw(st.dictionaries(some, st.integers(0, 3), max_size=3)).items()
        }
        can = {giver: self.of(place, giver, "assigned") for giver in moves if giver != me and me in self.alive}
        wanted = [task for giver, tasks in can.items() for task in tasks[::-1][: moves[giver]]]
        moved = self.ground.ask(Move(place=place, session=me, moves=tuple(moves.items())))
        wanted = [task for task in wanted if task.session in self.alive or task.id in moved]
        assert moved == tuple(task.id for task in sorted(wanted, key=lambda task: task.order))
        for task in wanted:
            task.session = me

    @rule(which=which, data=st.data())
    def release(self, which: int, data: st.DataObject) -> None:
        place, me = self.places[which], self.somebody(data)
        mine = self.of(place, me, "assigned", "started")
        assert self.ground.ask(ReleaseTasks(place=place, session=me)) == len(mine)
        for task in mine:
            task.take_back()
            task.free(task.due)

    @rule(which=which, data=st.data(), retry=st.booleans())
    def attend_to_the_dead(self, which: int, data: st.DataObject, retry: bool) -> None:
        place = self.places[which]
        known = [*(task.id for task in self.of(place)), "no task"]
        numbers = data.draw(st.none() | st.lists(st.integers(0, len(known) - 1), max_size=4))
        ids = None if numbers is None else tuple(known[number] for number in numbers)
        dead = [task for task in self.of(place, None, "dead") if ids is None or task.id in ids]
        kind = RetryTasks if retry else DiscardTasks
        assert self.ground.ask(kind(place=place, ids=ids)) == len(dead)
        for task in dead:
            if retry:
                task.attempt = 0
                task.free(self.step)
            else:
                self.tasks[place.name].remove(task)

    # what can be seen

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        for place in self.places:
            seen = self.ground.ask(LookAtTasks(place=place, limit=10_000))
            found = {
                task.id: (task.state, task.session, task.attempt, task.attempts, task.error is not None)
                for task in seen
            }
            known = {task.id: task for task in self.of(place)}
            assert found == {
                name: (task.state, task.session, task.attempt, task.attempts, task.error)
                for name, task in known.items()
            }
            # the order of the dead is nobody's business, nor is that of what failed in one turn
            in_order = [known[name] for name in found if known[name].state != "dead"]
            assert in_order == sorted(in_order, key=lambda task: task.due)
            for number, task in enumerate(in_order):
                task.number = number
        self.step += 1

    @rule(which=which)
    def look(self, which: int) -> None:
        place = self.places[which]
        for me in self.runners:
            expected = [
                Held(one, len(self.of(place, one, "assigned")), len(self.of(place, one, "started")))
                for one in self.sharing(me)
            ]
            assert sorted(self.ground.ask(LookAtShares(place=place, runner=self.runners[me]))) == expected
        infos = self.ground.ask(LookAtQueues(namespace=place.namespace))
        assert [info.name for info in infos] == [one.name for one in self.places if self.tasks[one.name]]
        for info in infos:
            self.counted(info)

    def teardown(self) -> None:
        for session in self.alive:
            self.ground.ask(EndSession(session))
