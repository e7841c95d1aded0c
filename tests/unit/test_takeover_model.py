"""The take-over protocol holds in every interleaving of these scenarios, and no way to be wrong does."""

from __future__ import annotations

from typing import Final

import pytest

from tests.unit.takeover_model import Scenario, search
from tests.unit.takeover_statements import RIGHT, Entry, Op, Rules, Session

ALIVE: Final = Session(99)
SOON: Final = Session(2)
OVER: Final = Session(0)
ENDED: Final = Session(0, ended=True)
PURGE: Final = ("purge", False)


def take(*wishes: tuple[int, int]) -> Op:
    return ("take", wishes, False)


def wait(*wish: int) -> Op:
    return ("take", (wish,), True)


def each(*ops: Op | tuple[Op | None, ...]) -> tuple[tuple[Op | None, ...], ...]:
    """A script: one thing after the other, or one of several."""
    return tuple(op if op and not isinstance(op[0], str) else (op,) for op in ops)


SCENARIOS: Final = {
    # one holds, and renews late or not at all; two want it; answers are lost
    "late renewal": Scenario(
        sessions=(SOON, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        scripts=(each(("renew", (0,)), ("renew", (0,))), each(take((0, 1)))),
        until=3,
    ),
    "late renewals": Scenario(
        sessions=(SOON, ALIVE, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(("renew", (0,)), ("renew", (0,))), each(take((0, 1))), each(take((0, 2)))),
    ),
    "lost heartbeats": Scenario(
        sessions=(SOON, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        losses=(1, 0),
        scripts=(each(("renew", (0,)), ("renew", (0,))), each(take((0, 1)))),
        until=3,
    ),
    "lost answers": Scenario(
        sessions=(Session(1), ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        losses=(1, 0),
        scripts=(each(("give", (0, 0))), each(take((0, 1)), take((0, 1)))),
        until=2,
    ),
    "lost answers on both sides": Scenario(
        sessions=(Session(1), ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        losses=(1, 1),
        scripts=(each(("give", (0, 0))), each(take((0, 1)), take((0, 1)))),
        until=2,
    ),
    "lost takes": Scenario(
        sessions=(Session(1), ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        losses=(0, 1),
        scripts=(each(("give", (0, 0))), each(take((0, 1)), ("give", (0, 1)))),
        until=2,
    ),
    "two that expire": Scenario(
        sessions=(SOON, Session(3)),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        scripts=(each(("renew", (0,)), take((0, 0))), each(take((0, 1)), ("renew", (1,)), take((0, 1)))),
        until=5,
    ),
    # two sessions of one process and two names, wanted by two others in one statement each, in another order
    "batches": Scenario(
        sessions=(SOON, SOON, ALIVE, ALIVE),
        entries=(Entry(1, 1), Entry(0, 1)),
        owners=(0, 0, 1, 2),
        scripts=(each(("renew", (0,))), each(take((0, 2), (1, 2))), each(take((1, 3), (0, 3)))),
        until=2,
    ),
    "batches in disorder": Scenario(
        sessions=(ALIVE, ALIVE),
        entries=(Entry(None, 1), Entry(None, 1)),
        owners=(0, 1),
        scripts=(each(take((0, 0), (1, 0))), each(take((1, 1), (0, 1)))),
        until=0,
    ),
    "batches of two sessions": Scenario(
        sessions=(SOON, SOON, ALIVE, Session(1)),
        entries=(Entry(1, 1), Entry(0, 1)),
        owners=(0, 0, 1, 1),
        losses=(0, 1),
        scripts=(each(("renew", (1, 0))), each(take((0, 2), (1, 3)))),
        until=2,
    ),
    "new names": Scenario(
        sessions=(ALIVE, ALIVE, ALIVE),
        entries=(None, None),
        owners=(0, 1, 2),
        losses=(1, 0, 0),
        scripts=(each(take((0, 0), (1, 0))), each(take((1, 1), (0, 1))), each(take((1, 2)))),
        until=0,
    ),
    "new names that come and go": Scenario(
        sessions=(ALIVE, ALIVE, ALIVE),
        entries=(None, None),
        owners=(0, 1, 2),
        scripts=(each(take((0, 0), (1, 0))), each(take((0, 1), (1, 1))), each(take((1, 2)), ("give", (1, 2)))),
        until=0,
    ),
    "late end": Scenario(
        sessions=(SOON, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        losses=(1, 0),
        scripts=(each(("end", 0), ("renew", (0,))), each(take((0, 1)))),
        until=1,
    ),
    "ends": Scenario(
        sessions=(SOON, ALIVE),
        entries=(Entry(0, 1), Entry(0, 1)),
        owners=(0, 1),
        losses=(1, 0),
        scripts=(each(("renew", (0,)), ("end", 0)), each(take((0, 1)), take((1, 1)))),
        until=3,
    ),
    # the session that dies is succeeded by a new one, which the snapshots of others do not have
    "new sessions": Scenario(
        sessions=(OVER, ALIVE, None),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(("end", 0)), each(take((0, 1))), each(("start", 2), take((0, 2)))),
        until=2,
    ),
    "purge": Scenario(
        sessions=(SOON, Session(1), ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(("renew", (0,))), each(take((0, 1))), each(take((0, 2)), PURGE, PURGE)),
        until=3,
    ),
    "purge beside a take": Scenario(
        sessions=(ENDED, SOON, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(PURGE, PURGE), each(take((0, 1))), each(take((0, 2)))),
        until=2,
    ),
    "purge beside a renewal": Scenario(
        sessions=(Session(1), SOON),
        entries=(Entry(0, 1),),
        owners=(0, 1),
        scripts=(each(("renew", (0,))), each(PURGE, PURGE)),
        until=2,
    ),
    "purge that forgets": Scenario(
        sessions=(OVER, ALIVE, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(("purge", True), ("purge", True)), each(take((0, 1)), ("end", 1)), each(take((0, 2)))),
        until=0,
    ),
    "revocation": Scenario(
        sessions=(SOON, ALIVE, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(("renew", (0,)), ("renew", (0,))), each(take((0, 1))), each(("revoke", 0))),
        until=2,
    ),
    "revocation of a new session": Scenario(
        sessions=(OVER, None, ALIVE, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 0, 1, 2),
        scripts=(
            each(("start", 1), take((0, 1)), ("renew", (1,))),
            each(take((0, 2))),
            each(("revoke", 0)),
        ),
        until=1,
    ),
    "guard": Scenario(
        sessions=(Session(1), ALIVE),
        entries=(Entry(0, 1), Entry(0, 1)),
        owners=(0, 1),
        scripts=(each(("guard", (0, 0))), each(take((0, 1), (1, 1)), take((0, 1))), each(("revoke", 0))),
        until=2,
    ),
    "hand-over": Scenario(
        sessions=(ALIVE, ALIVE, ALIVE),
        entries=(Entry(0, 1),),
        owners=(0, 1, 2),
        scripts=(each(("give", (0, 0))), each(wait(0, 1), ("give", (0, 1))), each(wait(0, 2))),
        until=0,
    ),
}

WRONG: Final = {
    "looks expired is free": ("late renewal", Rules(take_ends=False), "two holders"),
    "ends without the lock": ("late renewal", Rules(locks_session=False), "a session came back after its end"),
    "ends without looking again": ("late renewal", Rules(looks_again=False), "trusts a session that is over"),
    "missing is free": ("new sessions", Rules(missing="free"), "two holders"),
    "missing is taken": ("purge beside a take", Rules(missing="taken"), "can never be taken"),
    "one's own is refused": ("lost takes", Rules(takes_again=False), "can never be taken"),
    "takes for the dead": ("two that expire", Rules(own_alive=False), "taken for a session that is over"),
    "renews what has expired": ("two that expire", Rules(renews_expired=True), "a session came back after its time"),
    "renews what was ended": ("late end", Rules(renews_ended=True), "a session came back after its end"),
    "waits": ("late renewal", Rules(skips=False), "somebody waits for a lock"),
    "waits in any order": ("batches in disorder", Rules(skips=False, ordered=False), "a deadlock"),
    "inserts in any order": ("new names", Rules(ordered=False), "a deadlock"),
    "inserts after changes": ("new names that come and go", Rules(inserts_first=False), "a deadlock"),
    "forgets the count": ("purge that forgets", Rules(token_kept=False), "a token does not grow"),
    "keeps the token": ("late renewal", Rules(token_grows=False), "a token does not grow"),
    "revokes silently": ("revocation", Rules(revokes_loudly=False), "two trust"),
    "revokes from whom it does not see": ("revocation of a new session", Rules(revokes_unseen=True), "two trust"),
    "clears without looking again": ("purge beside a take", Rules(purge_looks_again=False), "two holders"),
    "ends overdue ones without looking again": (
        "purge beside a renewal",
        Rules(purge_looks_again=False),
        "trusts a session that is over",
    ),
    "guards without a lock": ("guard", Rules(guard_locks=False), "a guard let through what is another's"),
    "gives by name": ("lost answers", Rules(gives_by_session=False), "two holders"),
    "trusts from the answer": ("late renewal", Rules(trusts_from_send=False), "trusts a session that is over"),
    "counts its mark too early": ("hand-over", Rules(marks_first=False), "sleeps although it is free"),
    "looks at marks before it gives": ("hand-over", Rules(gives_first=False), "sleeps although it is free"),
}


MANY_STATES: Final = (
    "late renewals",
    "purge",
    "lost heartbeats",
    "lost answers on both sides",
    "two that expire",
    "batches of two sessions",
    "ends",
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in MANY_STATES else ()) for name in SCENARIOS]
)
def test_nothing_goes_wrong(name: str) -> None:
    found = search(SCENARIOS[name])
    assert found.wrong is None, str(found)
    assert found.states > 50, "nothing has happened"


@pytest.mark.parametrize("name", WRONG)
def test_each_way_to_be_wrong_is_found(name: str) -> None:
    scenario, rules, what = WRONG[name]
    found = search(SCENARIOS[scenario], rules, what)
    assert found.wrong == what, str(found)


def test_every_rule_is_broken_once() -> None:
    broken = {
        field
        for _, rules, _ in WRONG.values()
        for field in Rules._fields
        if rules != Rules(**rules._asdict() | {field: getattr(RIGHT, field)})
    }
    assert broken == {*Rules._fields}


def test_the_way_to_what_is_wrong_can_be_read() -> None:
    found = search(SCENARIOS["late renewal"], Rules(take_ends=False))
    assert found.way[0].startswith("0: ")
    assert "two holders" in str(found)
