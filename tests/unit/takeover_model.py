"""A search through every interleaving of the take-over protocol, for ``test_takeover_model.py``.

Here live scenarios, the search, and what must be true in each state. How one state follows from another stands in
``takeover_world.py``. Theory: the search looks at every state that can be reached, each once, those that are reached by
fewer steps first. So what it finds is the shortest way to something wrong; and if it finds nothing, there is nothing
to be found in this scenario.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from tests.unit.takeover_statements import (
    RIGHT,
    Commit,
    Entry,
    Insert,
    Lock,
    Passed,
    Rules,
    Seen,
    Session,
    Snapshot,
    Write,
)
from tests.unit.takeover_world import Client, Script, State, Step, World, Wrong, in_the_way, next_act

_LATE: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What there is at first, and what clients do. ``owners``: the client of each session. ``losses``: how many answers
    each client may lose. ``until``: the last tick."""

    sessions: tuple[Session | None, ...]
    entries: tuple[Entry | None, ...]
    scripts: tuple[Script, ...]
    owners: tuple[int, ...]
    losses: tuple[int, ...] = ()
    until: int = 4

    def first(self) -> State:
        """Clients know at first what they have."""
        clients = [Client(losses=losses) for losses in self.losses or [0] * len(self.scripts)]
        for number, owner in enumerate(self.owners):
            client, session = clients[owner], self.sessions[number]
            held = tuple((e, number, row.token) for e, row in enumerate(self.entries) if row and row.session == number)
            if session is not None and not session.ended:
                clients[owner] = client._replace(
                    held=client.held + held,
                    trusts=(*client.trusts, (number, session.expires)),
                    revisions=(*client.revisions, (number, 0)),
                )
        highest = tuple(row.token if row else 0 for row in self.entries)
        return State(0, self.sessions, self.entries, frozenset(), (), (), tuple(clients), frozenset(), highest)


@dataclass(frozen=True)
class Found:
    """``wrong``: what was violated, with the shortest way there. ``states``: how many were looked at."""

    states: int
    wrong: str | None = None
    way: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.wrong} after {self.states} states:\n" + "\n".join(self.way)


def search(scenario: Scenario, rules: Rules = RIGHT, watched: str | None = None) -> Found:
    """Look at all states; stop at the first where something is wrong (or where ``watched`` is)."""
    world = World(rules, scenario.scripts, scenario.until)
    judge = Judge(rules)
    first = scenario.first()
    came_from: dict[State, tuple[State, Step] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        try:
            for step, successor in world.successors(state):
                if successor not in came_from:
                    came_from[successor] = (state, step)
                    try:
                        judge.check(successor)
                    except Wrong as wrong:
                        if watched in (None, wrong.what):
                            return Found(len(came_from), wrong.what, _way(came_from, successor))
                    queue.append(successor)
        except Wrong as wrong:
            if watched in (None, wrong.what):
                return Found(len(came_from), wrong.what, (*_way(came_from, state), str(world.last_step)))
    return Found(len(came_from))


def _way(came_from: dict[State, tuple[State, Step] | None], state: State) -> tuple[str, ...]:
    steps: list[str] = []
    while before := came_from[state]:
        state, step = before
        steps.append(f"{state.now}: {' '.join(map(str, step))}")
    return tuple(reversed(steps))


class Judge:
    """What must be true of every state."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._takeable: dict[Any, bool] = {}

    def check(self, state: State) -> None:
        """Raise ``Wrong`` for what must not be true of any state."""
        sessions, now = state.sessions, state.now
        for number in state.stolen:
            row = sessions[number]
            if row and not row.ended and row.expires > now:
                raise Wrong("two holders")
        trusting: list[tuple[int, int]] = []
        for client in state.clients:
            for session, deadline in client.trusts:
                if deadline > now:
                    row = sessions[session]
                    if row is None or row.ended or row.expires <= now:
                        raise Wrong("trusts a session that is over")
                    if session not in [excused for excused, _ in state.excused]:
                        trusting += [(entry, session) for entry, its, _ in client.held if its == session]
        if any(one[0] == two[0] for one, two in combinations(trusting, 2)):
            raise Wrong("two trust")
        if len(state.running) > 1:
            self._check_waits(state)
        if all(running.op[0] == "guard" for running in state.running):
            self._check_quiet(state)

    def _check_waits(self, state: State) -> None:
        waits: dict[int, set[int]] = {}
        for place, running in enumerate(state.running):
            act = next_act(self._rules, running.op, running.seen)
            if (isinstance(act, Insert) or (isinstance(act, Lock) and not act.skip)) and (
                by := in_the_way(state, place, act)
            ):
                waits[place] = by
        for place in waits:
            reached: set[int] = set()
            todo = {place}
            while todo:
                todo = {other for one in todo for other in waits.get(one, ())} - reached
                reached |= todo
            if place in reached:
                raise Wrong("a deadlock")
        for place in waits:
            running = state.running[place]
            if isinstance(next_act(self._rules, running.op, running.seen), Lock):
                raise Wrong("somebody waits for a lock")

    def _check_quiet(self, state: State) -> None:
        """Nobody is at it (but guards): what is free, and what will be, can be taken."""
        guarded = frozenset(key for table, key, _, _ in state.locks if table == "entry")
        what = (state.now, state.sessions, state.entries, guarded)
        if what not in self._takeable:
            self._takeable[what] = self._all_takeable(state, guarded)
        if not self._takeable[what]:
            raise Wrong("can never be taken")
        if not state.running and all(not any(op[0] == "look" for op in client.owes) for client in state.clients):
            for client in state.clients:
                if client.asleep is not None and (row := state.entries[client.asleep]) and row.session is None:
                    raise Wrong("sleeps although it is free")

    def _all_takeable(self, state: State, guarded: frozenset[int]) -> bool:
        stranger = len(state.sessions)
        later = (*state.sessions, Session(2 * _LATE))
        for key, row in enumerate(state.entries):
            if key in guarded:
                continue
            if not self._take_alone(_LATE, later, state.entries, (key, stranger)):
                return False
            if row is None or row.session is None:
                continue
            owner = state.sessions[row.session]
            lives = owner is not None and not owner.ended and owner.expires > state.now
            if lives and not self._take_alone(state.now, state.sessions, state.entries, (key, row.session)):
                return False
        return True

    def _take_alone(
        self, now: int, sessions: tuple[Session | None, ...], entries: tuple[Entry | None, ...], wish: tuple[int, int]
    ) -> bool:
        op, seen = ("take", (wish,), False), list[Any]()
        while True:
            act = next_act(self._rules, op, tuple(seen))
            if isinstance(act, Commit):
                return isinstance(act.answer[0][1], int)
            if isinstance(act, Lock):
                seen.append((sessions if act.table == "session" else entries)[act.key])
            elif isinstance(act, Insert | Write):
                seen.append(0)
            else:
                assert isinstance(act, Snapshot | Passed)
                seen.append(Seen(sessions, entries, frozenset()) if isinstance(act, Snapshot) else act.time <= now)
