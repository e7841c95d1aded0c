"""The model of the server, on which the tests of owners rest, beside a server: verb by verb they must answer the same.

Here live random conversations of our session and others about a few keys. Theory: what an owner is proven to
do in ``tests/unit/test_keyowner.py`` and ``test_slotowner.py`` holds as far as the models there are true. After every
step the server is also asked what our session has, by the statement that is used after failures; so that reading is
tested too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import psycopg
import pytest

from pgconcert.backend import Claim
from pgconcert.keys import LockKey, agreement_pair, gate_pair, interest_pair, numbered_pair, slot_pair
from pgconcert.postgres.keyowner import KeyOwner
from pgconcert.postgres.link import Statement
from pgconcert.postgres.locktable import Ours, numbered_halves, read_row
from pgconcert.postgres.owner import Owner
from pgconcert.postgres.slotowner import SlotOwner
from pgconcert.postgres.statements import AGREED, HELD_BY_US
from pgconcert.postgres.verbs import VERBS
from tests.unit.lockmodel import AND_THEN, Answer, Served, ServerKey
from tests.unit.slotmodel import ServerSemaphore

Connection = psycopg.Connection[Any]

STEPS: Final = 250
KEYS: Final = (-7, 2**62 + 3, -(2**63))
SEMAPHORES: Final = (2**64 + 7, 2**64 - 2**62 - 1)
PERMITS: Final = 3
SLOT_VERBS: Final = {"agree", "take", "mark_slots", "give", "leave", "unmark"}
"""All others are those of locks; ``unmark`` is of both."""


@pytest.fixture
def sessions(database: str) -> Iterator[tuple[Connection, Connection, Connection]]:
    """Ours, another, and another whose transactions stay open."""
    with (
        psycopg.connect(database, autocommit=True) as ours,
        psycopg.connect(database, autocommit=True) as other,
        psycopg.connect(database) as looking,
    ):
        yield ours, other, looking


def rows_of(
    session: Connection, asked: Statement, parameters: Sequence[bytes | None]
) -> list[tuple[bytes | None, ...]]:
    """As a link has them: text in, text out."""
    texts = [None if parameter is None else parameter.decode() for parameter in parameters]
    result = psycopg.RawCursor(session).execute(asked.sql, texts).pgresult
    assert result is not None
    return [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]


def ask(session: Connection, verb: str, owners: Sequence[Owner]) -> list[str]:
    """One letter or list of slots for each owner; one owner is asked by the statement for one."""
    known = VERBS[verb]
    if len(owners) == 1:
        asked, parameters = known.one, known.one_parameters(owners[0])
    else:
        asked, parameters = known.many, known.many_parameters(owners)
    ((answer,),) = rows_of(session, asked, parameters)
    assert answer is not None
    return answer.decode().strip("{}").split(",")


def tried(session: Connection, kind: str, *numbers: int) -> bool:
    """Try to get an advisory lock, or to give it back."""
    ((answer,),) = session.execute(f"select pg_{kind}({','.join(map(str, numbers))})".encode()).fetchall()
    return bool(answer)


def compare(session: Connection, served: Mapping[int, Served]) -> None:
    ours = Ours([read_row(row) for row in rows_of(session, HELD_BY_US, ())])
    for value, known in served.items():
        assert ours.of(value) == known.found()


def allowed(verb: str, known: ServerKey) -> bool:
    """Whether an owner may ask this in this state. It never asks for what it has."""
    if verb in AND_THEN:
        return not known.marks and (known.looking or allowed(AND_THEN[verb], known))
    return {
        "try": not known.exclusive and not known.shared,
        "retry": not known.exclusive and not known.shared and not known.gates,
        "try_shared": not known.exclusive and not known.shared,
        "join": known.shared > 0,
        "close": not known.gates,
        "unmark": known.marks > 0,
    }.get(verb, True)


OTHERS: Final[dict[str, tuple[int, str, str, Callable[[int], tuple[int, ...]]]]] = {
    "writer": (0, "try_advisory_lock", "advisory_unlock", lambda value: (value,)),
    "readers": (1, "try_advisory_lock_shared", "advisory_unlock_shared", lambda value: (value,)),
    "other_mark": (1, "try_advisory_lock_shared", "advisory_unlock_shared", interest_pair),
    "other_gate": (0, "try_advisory_lock", "advisory_unlock", gate_pair),
    "passing": (1, "try_advisory_xact_lock_shared", "", gate_pair),
    "looking": (1, "try_advisory_xact_lock", "", interest_pair),
}
"""What others do: which of them, how it is tried and undone (or by the end of the transaction), and the numbers."""


def disturb(others: Sequence[Connection], known: Any, value: int, what: str) -> None:
    """Another session does it, if the server lets it, or undoes it."""
    who, attempt, undo, numbers = OTHERS[what]
    if not getattr(known, what):
        setattr(known, what, type(getattr(known, what))(tried(others[who], attempt, *numbers(value))))
    elif undo:
        assert tried(others[who], undo, *numbers(value))
        setattr(known, what, type(getattr(known, what))(0))


def end_transaction(others: Sequence[Connection], served: Mapping[int, Any]) -> None:
    others[1].rollback()
    for known in served.values():
        known.looking = False
        if isinstance(known, ServerKey):
            known.passing = False


@pytest.mark.parametrize("seed", range(3))
def test_locks(sessions: Sequence[Connection], seed: int) -> None:
    ours, *others = sessions
    rng = random.Random(seed)
    served = {value: ServerKey() for value in KEYS}
    owners = {value: KeyOwner(cast(Any, None), value) for value in KEYS}
    verbs = sorted(VERBS.keys() - SLOT_VERBS | {"unmark"})
    answers: set[str] = set()
    for _ in range(STEPS):
        verb = rng.choice(verbs)
        asked = [value for value in KEYS if allowed(verb, served[value]) and rng.random() < 0.7]
        if asked:
            expected = [served[value].execute(verb) for value in asked]
            assert ask(ours, verb, [owners[value] for value in asked]) == expected, f"{verb} of {asked}"
            answers.update(verb + ":" + answer for answer in expected)
        value = rng.choice(KEYS)
        disturb(others, served[value], value, rng.choice([*OTHERS]))
        if rng.random() < 0.3:
            end_transaction(others, served)
        compare(ours, served)
    assert len(answers) > 24, "the conversation was dull: there are 38 answers in all"


@pytest.mark.parametrize("seed", range(3))
def test_semaphores(sessions: Sequence[Connection], seed: int) -> None:
    ours, *others = sessions
    rng = random.Random(seed)
    served = {value: ServerSemaphore() for value in SEMAPHORES}
    owners = {value: SlotOwner(cast(Any, None), value, PERMITS) for value in SEMAPHORES}
    for _ in range(STEPS):
        verb = rng.choice(sorted(SLOT_VERBS))
        asked = [value for value in SEMAPHORES if slots_allowed(verb, served[value]) and rng.random() < 0.7]
        for value in asked:
            prepare(rng, owners[value], served[value])
        if asked:
            batch = [owners[value] for value in asked]
            state = rng.getstate()
            random.seed(seed)  # where an owner starts to look for slots
            parameters = [VERBS[verb].one_parameters(owner) for owner in batch]
            expected = [served[value].execute(verb, one) for value, one in zip(asked, parameters, strict=True)]
            random.seed(seed)
            assert ask(ours, verb, batch) == expected, f"{verb} of {asked}"
            rng.setstate(state)
        value = rng.choice(SEMAPHORES)
        disturb_semaphore(rng, others, served[value], value)
        if rng.random() < 0.3:
            end_transaction(others, served)
        compare(ours, served)
        assert who_agrees(ours, value) == sorted({*served[value].others.values()})


def slots_allowed(verb: str, known: ServerSemaphore) -> bool:
    return {
        "agree": not +known.agreements,
        "mark_slots": not known.marks,
        "give": bool(+known.ours),
        "leave": bool(+known.agreements) and not +known.ours,
        "unmark": known.marks > 0,
    }.get(verb, True)


def prepare(rng: random.Random, owner: SlotOwner, known: ServerSemaphore) -> None:
    """Its notes are true; it gives back some of its slots, and so many wait as there is room for, and more."""
    owner.agreed = max(+known.agreements, default=0)
    owner.slots = dict.fromkeys(+known.ours)
    owner.queue.clear()
    for _ in range(rng.randrange(PERMITS + 1)):
        owner.queue.append(Claim(LockKey("s", owner.value, PERMITS), Answer(), wait=True))


def disturb_semaphore(rng: random.Random, others: Sequence[Connection], known: ServerSemaphore, value: int) -> None:
    what = rng.choice(["slot", "slot", "agreement", "other_mark", "looking"])
    if what == "slot":
        slot = rng.randrange(PERMITS)
        if slot in known.theirs:
            assert tried(others[0], "advisory_unlock", *slot_pair(value, slot))
            known.theirs.remove(slot)
        elif tried(others[0], "try_advisory_lock", *slot_pair(value, slot)):
            known.theirs.add(slot)
    elif what == "agreement":
        permits = rng.randint(1, 1000)
        if known.others:
            (theirs,) = known.others.values()
            assert tried(others[0], "advisory_unlock_shared", *agreement_pair(value, theirs))
            known.others.clear()
        else:
            assert tried(others[0], "try_advisory_lock_shared", *agreement_pair(value, permits))
            known.others["another"] = permits
    else:
        disturb(others, known, value, what)


def who_agrees(session: Connection, value: int) -> list[int]:
    """The numbers of permits of the other sessions, as the shard reads them."""
    ((database,),) = session.execute("select oid::text from pg_database where datname = current_database()").fetchall()
    found = [read_row(row) for row in rows_of(session, AGREED, (str(database).encode(), *numbered_halves(value)))]
    numbers = [numbered_pair(row.pair) for row in found if row.pair is not None and row.pid != session.info.backend_pid]
    assert all(kind == 4 for kind, _, _ in numbers)
    return sorted(number for _, number, _ in numbers)
