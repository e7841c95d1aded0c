"""A crowd waits for one key and leaves: the work grows with the crowd, not with its square, and order is kept.

Here live tests of the queue of one key at sizes where a search of the queue for each who leaves stops the event loop
for seconds. Theory: time is noisy, so the looks at claims are counted instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from pgconcert.backend import DONE, Claim
from pgconcert.keys import LockKey
from pgconcert.postgres.keyowner import KeyOwner
from tests.unit.lockmodel import Answer, ServerKey, Shard

CROWD = 20_000
LOOKS_EACH = 25


class Looks:
    """How often claims were looked at, and how often they may be."""

    def __init__(self) -> None:
        self.count = 0
        self.limit = LOOKS_EACH * CROWD

    def look(self) -> None:
        self.count += 1
        assert self.count <= self.limit, "more work than a crowd of this size may cost"


class CountedClaim(Claim):
    """A claim that counts who reads its state or compares it."""

    __slots__ = ("looks",)
    __hash__ = object.__hash__

    def __init__(self, looks: Looks, answer: Answer) -> None:
        self.looks = looks
        super().__init__(LockKey(7, 7), answer, wait=True)

    def __eq__(self, other: object) -> bool:
        self.looks.look()
        return self is other

    def __getattribute__(self, name: str) -> Any:
        if name == "state":
            self.looks.look()
        return super().__getattribute__(name)


class Scene:
    """A key that is held here, and a crowd behind the one who holds it."""

    def __init__(self) -> None:
        self.looks = Looks()
        self.shard = Shard({7: ServerKey()}, up=True, heard=True)
        self.owner = self.shard.owners[7] = KeyOwner(cast(Any, self.shard), 7)
        self.answers: dict[Claim, Answer] = {}
        self.claims: list[Claim] = []
        for _ in range(CROWD):
            answer = Answer()
            claim = CountedClaim(self.looks, answer)
            self.claims.append(claim)
            self.answers[claim] = answer
            self.owner.acquire(claim)
            self.serve()

    def serve(self) -> None:
        """The server answers everything."""
        while self.shard.requests:
            request = self.shard.requests.pop()
            told = ord(self.shard.server[7].execute(request.verb))
            tell: dict[str, Callable[[int], None]] = {
                "try": self.owner.tried_with,
                "mark": self.owner.marked_with,
                "unlock": self.owner.unlocked_with,
                "unmark": self.owner.unmarked_with,
            }
            tell[request.verb](told)

    def granted(self) -> list[Claim]:
        return [claim for claim, answer in self.answers.items() if answer.told]


def _backwards(claims: list[Claim]) -> list[Claim]:
    return claims[::-1]


def _forwards(claims: list[Claim]) -> list[Claim]:
    return claims


def _mixed(claims: list[Claim]) -> list[Claim]:
    return random.sample(claims, len(claims))


@pytest.mark.parametrize("order", [_forwards, _backwards, _mixed])
def test_all_leave(order: Callable[[list[Claim]], list[Claim]]) -> None:
    scene = Scene()
    holder, *crowd = scene.claims
    for claim in order(crowd):
        scene.owner.withdraw(claim)
        scene.serve()
    assert not scene.owner.queue
    assert scene.granted() == [holder]
    scene.owner.release(holder, None)
    scene.serve()
    assert not scene.shard.owners, "the owner has retired"
    key = scene.shard.server[7]
    assert (key.exclusive, key.shared, key.marks, key.gates) == (0, 0, 0, 0)


@pytest.mark.parametrize("order", [_forwards, _backwards, _mixed])
def test_who_stays_keeps_the_order(order: Callable[[list[Claim]], list[Claim]]) -> None:
    scene = Scene()
    stay = scene.claims[1::100]
    leave = [claim for claim in scene.claims[1:] if claim not in set(stay)]
    for gone, claim in enumerate(order(leave), 1):
        scene.owner.withdraw(claim)
        scene.serve()
        assert len(scene.owner.queue) <= 2 * (CROWD - 1 - gone) + 1, "those who left are swept"
    served: list[Claim] = []
    while (current := scene.owner.claim) is not None:
        served.append(current)
        scene.owner.release(current, None)
        scene.serve()
    assert served == [scene.claims[0], *stay]
    assert all(claim.state == DONE for claim in scene.claims)
    assert not scene.shard.owners, "the owner has retired"
