"""How the world of the take-over protocol goes on, for ``takeover_model.py``: rows, locks, a clock, clients.

Here live what a state is, what follows from it, and what clients make of answers. The statements stand in
``takeover_statements.py``.

Theory. A state is everything that the future depends on. From each, these may happen, and the search tries all:

* the clock goes on by one tick (so every pause, of anybody, anywhere, is among them);
* a statement does its next act. What it will do next follows from what it has seen; so that is its state;
* a client that waits for nothing does the next thing of its script, or another of those it may choose from there;
* a client loses the answer of a statement that is under way. The statement goes on alone, or is undone at once. The
  client asks again, while the first may still be under way.

An answer comes at the instant of the commit: one that comes later makes the client trust for a shorter time, and a
client that does nothing for a while is among the states anyway.

A client trusts a session until ``TTL`` after it sent the last heartbeat that was answered, without any margin. It
trusts that it has an entry while it trusts the session, and was neither told otherwise nor gives it back. After a
revocation it may be wrong until it has an answer of a heartbeat that it sent later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, Literal, NamedTuple

from tests.unit.takeover_statements import (
    STATEMENTS,
    TTL,
    Act,
    Clock,
    Commit,
    Entry,
    Insert,
    Lock,
    Op,
    Passed,
    Rules,
    Seen,
    Session,
    Snapshot,
    Work,
    Write,
)

Step = tuple[Any, ...]
"""Who does what, for people."""
How = Literal["shared", "locked", "written"]
NOBODY: Final = -1
Script = tuple[tuple[Op | None, ...], ...]
"""A row of choices; ``None`` is to do nothing."""


class Running(NamedTuple):
    """A statement that the server carries out. ``client`` gets its answer, or ``NOBODY``. ``sent``: when, if it
    matters. ``over``: the sessions that were over then."""

    client: int
    op: Op
    sent: int
    over: tuple[int, ...]
    seen: tuple[Any, ...] = ()


class Client(NamedTuple):
    """``owes``: what it does before it goes on with its script. ``asleep``: for which entry it waits to be woken."""

    place: int = 0
    held: tuple[tuple[int, int, int], ...] = ()
    trusts: tuple[tuple[int, int], ...] = ()
    revisions: tuple[tuple[int, int], ...] = ()
    losses: int = 0
    owes: tuple[Op, ...] = ()
    asleep: int | None = None
    woken: bool = False


class State(NamedTuple):
    """``locks``: table, key, by whom (a place among ``running``), how. The rest is what only the judge knows: from
    which sessions something was ``stolen``, the ``highest`` token of each entry, and ``excused``: the sessions that
    need not know of a revocation yet (``True``: they have sent the heartbeat that tells them)."""

    now: int
    sessions: tuple[Session | None, ...]
    entries: tuple[Entry | None, ...]
    marks: frozenset[tuple[int, int]]
    running: tuple[Running, ...]
    locks: tuple[tuple[str, int, int, How], ...]
    clients: tuple[Client, ...]
    stolen: frozenset[int]
    highest: tuple[int, ...]
    excused: tuple[tuple[int, bool], ...] = ()


class Wrong(Exception):
    """Something that must not be. ``what`` is what is wrong."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@cache
def next_act(rules: Rules, op: Op, seen: tuple[Any, ...]) -> Act:
    """What a statement does after it has seen this."""
    statement = STATEMENTS[op[0]](rules, *op[1:])
    act: Act = next(statement)
    for sight in seen:
        act = statement.send(sight)
    return act


class World:
    """How one state follows from another."""

    def __init__(self, rules: Rules, scripts: Sequence[Script], until: int) -> None:
        self._rules = rules
        self._scripts = scripts
        self._last = until
        self.last_step: Step = ()

    def successors(self, state: State) -> Iterator[tuple[Step, State]]:
        if state.now < self._last:
            yield ("tick",), self._tick(state)
        for place, running in enumerate(state.running):
            act = next_act(self._rules, running.op, running.seen)
            self.last_step = (running.client, *running.op, "does", act)
            if (successor := self._act(state, place, running, act)) is not None:
                yield self.last_step, self._hurry(successor, running.client)
            if running.client != NOBODY and state.clients[running.client].losses:
                lost = _one_loss(state, running.client)
                alone = lost._replace(running=_put(state.running, place, running._replace(client=NOBODY)))
                yield (running.client, *running.op, "loses its answer"), alone
                yield (running.client, *running.op, "is undone"), _gone(lost, place)
        busy = {running.client for running in state.running}
        for number, client in enumerate(state.clients):
            if number not in busy:
                yield from self._client_acts(state, number, client)

    def _client_acts(self, state: State, number: int, client: Client) -> Iterator[tuple[Step, State]]:
        if client.owes:
            yield from self._send(state, number, client, client.owes[0])
            return
        script = self._scripts[number]
        if client.asleep is not None or client.place == len(script):
            return
        for op in script[client.place]:
            if op is None:
                skipping = client._replace(place=client.place + 1)
                yield (number, "does nothing"), state._replace(clients=_put(state.clients, number, skipping))
                continue
            if op[0] == "guard":
                tokens = [token for entry, session, token in client.held if (entry, session) == op[1]]
                if not tokens:
                    continue
                op = (*op, tokens[0])
            yield from self._send(state, number, client, op)

    def _send(self, state: State, number: int, client: Client, op: Op) -> Iterator[tuple[Step, State]]:
        excused = state.excused
        if op[0] == "give":
            client = client._replace(held=tuple(h for h in client.held if h[:2] != op[1]))
        elif op[0] == "end":
            client = _forget(client, op[1])
        elif op[0] == "renew":
            excused = tuple((session, sent or session in op[1]) for session, sent in excused)
        over = tuple(
            n for n, row in enumerate(state.sessions) if not (row and not row.ended and row.expires > state.now)
        )
        running = Running(number, op, state.now if op[0] in ("start", "renew") else 0, over)
        clients = _put(state.clients, number, client)
        after = state._replace(clients=clients, excused=excused)
        # what is on its way is as good as not sent yet, unless the client believes that it was lost
        sight = Seen(state.sessions, state.entries, state.marks)
        began = after._replace(running=(*state.running, running._replace(seen=(sight,))))
        yield (number, *op, "is sent"), self._hurry(began, number)
        if client.losses:
            late = after._replace(running=(*state.running, running._replace(client=NOBODY)))
            yield (number, *op, "is sent, and late"), _one_loss(late, number)

    def _tick(self, state: State) -> State:
        now = state.now + 1
        clients = state.clients
        for number, client in enumerate(clients):
            for session, deadline in client.trusts:
                if deadline <= now:  # what is lost stays lost, whatever becomes of a heartbeat that is under way
                    clients = _put(clients, number, _forget(clients[number], session))
        return state._replace(now=now, clients=clients)

    def _hurry(self, state: State, client: int) -> State:
        """Do at once what the last statement of this client does next, if it makes no difference when it does it."""
        while client != NOBODY:
            places = [place for place, running in enumerate(state.running) if running.client == client]
            if not places:
                break
            running = state.running[places[0]]
            act = next_act(self._rules, running.op, running.seen)
            if isinstance(act, Passed):
                if state.now < act.time <= self._last:
                    break
            elif (
                not isinstance(act, Commit)
                or act[1:] != Commit(0)[1:]
                or places[0] in [lock[2] for lock in state.locks]
            ):
                break
            done = self._act(state, places[0], running, act)
            assert done is not None
            state = done
        return state

    def _act(self, state: State, place: int, running: Running, act: Act) -> State | None:
        """The state after it; ``None`` while it waits for a lock."""
        if isinstance(act, Commit):
            return self._commit(state, place, running, act)
        locks = state.locks
        sight: Any
        if isinstance(act, Snapshot):
            sight = Seen(state.sessions, state.entries, state.marks)
        elif isinstance(act, Passed):
            sight = act.time <= state.now
        elif isinstance(act, Clock | Work):
            sight = state.now if isinstance(act, Clock) else None
        elif isinstance(act, Lock):
            sight = (state.sessions if act.table == "session" else state.entries)[act.key]
            if in_the_way(state, place, act):
                if not act.skip:
                    return None
                sight = None
            elif sight is not None:
                locks = (*locks, (act.table, act.key, place, "shared" if act.shared else "locked"))
        elif isinstance(act, Write):
            sight = None
            locks = tuple((*lock[:3], "written") if lock[:3] == ("entry", act.key, place) else lock for lock in locks)
        else:
            if in_the_way(state, place, act):
                return None
            sight = None
            if state.entries[act.key] is None:
                sight = state.highest[act.key]
                locks = (*locks, ("entry", act.key, place, "written"))
        advanced = running._replace(seen=(*running.seen, sight))
        return state._replace(running=_put(state.running, place, advanced), locks=tuple(sorted(locks)))

    def _commit(self, state: State, place: int, running: Running, commit: Commit) -> State:
        sessions, entries = list(state.sessions), list(state.entries)
        highest, stolen, excused = list(state.highest), state.stolen, state.excused
        for number, row in commit.sessions:
            old = sessions[number]
            if old and row:
                if old.ended and not row.ended:
                    raise Wrong("a session came back after its end")
                if row.expires > old.expires and number in running.over:
                    raise Wrong("a session came back after its time")
            sessions[number] = row
        for key, entry in commit.entries:
            before = entries[key]
            if entry and entry.session is not None:
                if entry.token <= highest[key]:
                    raise Wrong("a token does not grow")
                highest[key] = entry.token
                if entry.session in running.over:
                    raise Wrong("taken for a session that is over")
            if before and before.session is not None and (entry is None or entry.session != before.session):
                if running.op[0] == "revoke":
                    excused = (*(e for e in excused if e[0] != before.session), (before.session, False))
                elif not (running.op[0] == "give" and running.op[1] == (key, before.session)):
                    stolen |= {before.session}
            entries[key] = entry
        if running.op[0] == "guard" and commit.answer:
            (key, session), token = running.op[1:]
            if entries[key] != Entry(session, token):
                raise Wrong("a guard let through what is another's")
        after = state._replace(
            sessions=tuple(sessions),
            entries=tuple(entries),
            marks=(state.marks | {*commit.marked}) - {*commit.unmarked},
            stolen=stolen,
            highest=tuple(highest),
            excused=excused,
        )
        return _gone(self._answer(after, running, commit.answer), place)

    def _answer(self, state: State, running: Running, answer: Any) -> State:
        """What the client makes of it."""
        if running.client == NOBODY:
            return state
        client = state.clients[running.client]
        kind = running.op[0]
        excused = state.excused
        again = answer == "again"
        owed = bool(client.owes)
        if kind == "start":
            session = running.op[1]
            client = client._replace(
                trusts=(*client.trusts, (session, running.sent + TTL)), revisions=(*client.revisions, (session, 0))
            )
        elif kind == "renew":
            begins = running.sent if self._rules.trusts_from_send else state.now
            trusts, revisions = dict(client.trusts), dict(client.revisions)
            for session, revision in answer:
                if revision is None:
                    client = _forget(client, session)
                    trusts.pop(session, None)
                elif session in revisions:
                    trusts[session] = begins + TTL
                    if revision != revisions[session]:
                        revisions[session] = revision
                        client = client._replace(owes=(*client.owes, ("own", session)))
                    else:
                        excused = tuple(e for e in excused if e != (session, True))
            client = client._replace(trusts=tuple(trusts.items()), revisions=tuple(revisions.items()))
        elif kind == "own":
            has = {(entry, running.op[1], token) for entry, token in answer}
            client = client._replace(held=tuple(h for h in client.held if h[1] != running.op[1] or h in has))
            excused = tuple(e for e in excused if e != (running.op[1], True))
        elif kind == "take":
            taken = [(entry, session, what) for (entry, session), what in answer if isinstance(what, int)]
            kept = [h for h in client.held if h[:2] not in [one[:2] for one in taken]]
            client = client._replace(held=tuple(sorted(kept + taken)))
            rest = tuple(wish for wish, what in answer if what == "again")
            if running.op[2] and not rest and not taken:
                asleep = "marked" in dict(answer).values() and not client.woken
                client = client._replace(asleep=running.op[1][0][0] if asleep else None, woken=False)
                again = not asleep
            if rest and len(rest) < len(answer):
                client = client._replace(owes=(*client.owes, ("take", rest, running.op[2])))
            again = again or len(rest) == len(answer)
        elif kind == "give" and answer is None:
            client = client._replace(owes=(("look", running.op[1][0]),))
            owed = False
        clients = _put(state.clients, running.client, client)
        if kind in ("give", "look") and answer is True:
            entry = running.op[1][0] if kind == "give" else running.op[1]
            waiting = {session for marked, session in state.marks if marked == entry}
            clients = tuple(
                one._replace(asleep=None, woken=one.asleep is None)
                if waiting & {session for session, _ in one.revisions}
                else one
                for one in clients
            )
        if not again:
            client = clients[running.client]
            client = client._replace(owes=client.owes[1:]) if owed else client._replace(place=client.place + 1)
            clients = _put(clients, running.client, client)
        return state._replace(clients=clients, excused=excused)


def in_the_way(state: State, place: int, act: Lock | Insert) -> set[int]:
    """Whose locks are."""
    table = act.table if isinstance(act, Lock) else "entry"
    return {
        by
        for locked, key, by, how in state.locks
        if locked == table
        and key == act.key
        and by != place
        and (how == "written" if isinstance(act, Insert) else not (act.shared and how == "shared"))
    }


def _one_loss(state: State, number: int) -> State:
    client = state.clients[number]
    return state._replace(clients=_put(state.clients, number, client._replace(losses=client.losses - 1)))


def _forget(client: Client, session: int) -> Client:
    return client._replace(
        held=tuple(h for h in client.held if h[1] != session), trusts=tuple(t for t in client.trusts if t[0] != session)
    )


def _gone(state: State, place: int) -> State:
    """Without a statement, and without its locks."""
    running = state.running[:place] + state.running[place + 1 :]
    locks = tuple((t, k, by - (by > place), s) for t, k, by, s in state.locks if by != place)
    return state._replace(running=running, locks=locks)


def _put(items: tuple[Any, ...], place: int, item: Any) -> tuple[Any, ...]:
    return (*items[:place], item, *items[place + 1 :])
