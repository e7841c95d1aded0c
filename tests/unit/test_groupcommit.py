"""Group commit over a link that we answer by hand: what leaves together, in which order, and who gets which answer.

The link here is a list of what was sent. That is the unit's whole world: grouping needs `send` and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import LinkLost, StatementFailed
from pgconcert.postgres.groupcommit import Group, Turns, Verb
from pgconcert.postgres.link import Reply, Rows, Statement

FAILED = StatementFailed("failed", "XX000")


class Wire:
    """What was sent, and the answers that are still owed."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[bytes | None, ...]]] = []
        self.owed: list[Reply] = []
        self.most_under_way = 0

    def send(self, sent: Statement, params: Sequence[bytes | None], reply: Reply) -> None:
        self.sent.append((sent.name.decode(), tuple(params)))
        self.owed.append(reply)
        self.most_under_way = max(self.most_under_way, len(self.owed))

    def answer(self, error: Exception | None = None) -> None:
        self.owed.pop(0)([], error)


class Told:
    """What a verb was told, by request."""

    def __init__(self, name: str, most: int = 100) -> None:
        self.name = name
        self.answered: list[int] = []
        self.failed: list[tuple[list[int], Exception]] = []
        self.verb = Verb[int](
            name,
            one=Statement(f"{name}:one".encode(), b""),
            parameters_one=lambda request: (b"%d" % request,),
            many=Statement(f"{name}:many".encode(), b""),
            parameters_many=lambda batch: [b"%d" % request for request in batch],
            answered=self.on_answer,
            failed=lambda batch, error: self.failed.append((list(batch), error)),
            fit=lambda queue: most,
        )

    def on_answer(self, batch: Sequence[int], rows: Rows) -> None:
        self.answered.extend(batch)


def turns_of(*told: Told) -> tuple[Wire, Turns, list[Group[int]]]:
    wire = Wire()
    turns = Turns(cast(Any, wire), asyncio.get_running_loop())
    return wire, turns, [turns.group(one.verb) for one in told]


def world(*told: Told) -> tuple[Wire, list[Group[int]]]:
    wire, _, groups = turns_of(*told)
    return wire, groups


async def test_a_lone_request_leaves_at_once_and_plain() -> None:
    told = Told("try")
    wire, [group] = world(told)
    assert group.idle
    group.ask(1)
    assert wire.sent == [("try:one", (b"1",))]
    assert not group.idle
    wire.answer()
    assert told.answered == [1]
    assert group.idle
    group.ask(2)
    assert len(wire.sent) == 2, "the second lone request does not wait for the loop either"
    wire.answer()


async def test_what_arrives_meanwhile_leaves_together() -> None:
    told = Told("try")
    wire, [group] = world(told)
    for request in range(4):
        group.ask(request)
    assert wire.sent == [("try:one", (b"0",))]
    wire.answer()
    await asyncio.sleep(0)
    assert wire.sent[1:] == [("try:many", (b"1", b"2", b"3"))]
    wire.answer()
    assert told.answered == [0, 1, 2, 3]


async def test_after_a_batch_the_next_waits_for_the_end_of_the_turn() -> None:
    told = Told("try")
    wire, [group] = world(told)
    group.ask_all([1, 2])
    wire.answer()
    group.ask(3)
    group.ask(4)
    assert len(wire.sent) == 1
    await asyncio.sleep(0)
    assert wire.sent == [("try:many", (b"1", b"2")), ("try:many", (b"3", b"4"))]
    wire.answer()


async def test_what_does_not_fit_leaves_next() -> None:
    told = Told("try", most=2)
    wire, [group] = world(told)
    group.ask_all([1, 2, 3, 4, 5])
    while wire.owed:
        wire.answer()
        await asyncio.sleep(0)
    assert [params for _, params in wire.sent] == [(b"1", b"2"), (b"3", b"4"), (b"5",)]
    assert told.answered == [1, 2, 3, 4, 5]


async def test_groups_take_turns() -> None:
    """A group that always wants more waits for the others."""
    one, two = Told("try"), Told("unlock")
    wire, [first, second] = world(one, two)
    first.ask(1)
    first.ask_all([2, 3])
    second.ask(4)
    while wire.owed:
        first.ask(9) if len(wire.sent) == 2 else None
        wire.answer()
        await asyncio.sleep(0)
    assert [name for name, _ in wire.sent] == ["try:one", "try:many", "unlock:one", "try:one"]
    assert wire.most_under_way == 1


async def test_what_does_not_fit_lets_the_others_pass() -> None:
    one, two = Told("try", most=2), Told("unlock")
    wire, [first, second] = world(one, two)
    first.ask_all([1, 2, 3])
    second.ask(4)
    while wire.owed:
        wire.answer()
        await asyncio.sleep(0)
    assert [name for name, _ in wire.sent] == ["try:many", "try:one", "unlock:one"]


async def test_what_is_asked_together_leaves_together() -> None:
    """One statement for each group, and none before the end."""
    one, two = Told("try"), Told("unlock")
    wire, turns, [first, second] = turns_of(one, two)
    with turns.together():
        first.ask(1)
        second.ask(2)
        first.ask(3)
        assert not wire.sent
    while wire.owed:
        wire.answer()
        await asyncio.sleep(0)
    assert wire.sent == [("try:many", (b"1", b"3")), ("unlock:one", (b"2",))]
    assert wire.most_under_way == 1


async def test_together_within_together_is_one() -> None:
    told = Told("try")
    wire, turns, [group] = turns_of(told)
    with turns.together():
        group.ask(1)
        with turns.together():
            group.ask(2)
            group.ask_all([3, 4])
        assert not wire.sent
        group.ask(5)
    assert wire.sent == [("try:many", (b"1", b"2", b"3", b"4", b"5"))]
    wire.answer()
    assert told.answered == [1, 2, 3, 4, 5]


async def test_what_was_asked_before_an_error_leaves_all_the_same() -> None:
    told = Told("try")
    wire, turns, [group] = turns_of(told)

    def ask_and_raise() -> None:
        with turns.together():
            group.ask(1)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ask_and_raise()
    assert wire.sent == [("try:one", (b"1",))]
    wire.answer()
    assert group.idle


async def test_together_while_a_statement_is_under_way() -> None:
    told = Told("try")
    wire, turns, [group] = turns_of(told)
    group.ask(1)
    with turns.together():
        group.ask(2)
        group.ask(3)
    assert len(wire.sent) == 1
    wire.answer()
    await asyncio.sleep(0)
    assert wire.sent[1:] == [("try:many", (b"2", b"3"))]
    wire.answer()


async def test_nothing_together_is_nothing() -> None:
    told = Told("try")
    wire, turns, [group] = turns_of(told)
    with turns.together():
        pass
    group.ask_all([])
    assert not wire.sent
    group.ask(1)
    assert wire.sent == [("try:one", (b"1",))]
    wire.answer()


async def test_an_error_goes_to_the_whole_batch_and_the_group_goes_on() -> None:
    told = Told("try")
    wire, [group] = world(told)
    group.ask_all([1, 2])
    wire.answer(FAILED)
    assert told.failed == [([1, 2], FAILED)]
    group.ask(3)
    await asyncio.sleep(0)
    wire.answer()
    assert told.answered == [3]


async def test_take_back_tells_sent_from_unsent() -> None:
    told = Told("notify")
    wire, [group] = world(told)
    group.ask(1)
    group.ask_all([2, 3])
    wire.answer(LinkLost("gone"))
    sent, unsent = group.take_back()
    assert (list(sent), list(unsent)) == ([1], [2, 3])
    assert group.idle
    assert not told.answered
    assert not told.failed
    assert len(wire.sent) == 1


async def test_a_request_made_while_answers_are_told_leaves_next() -> None:
    wire = Wire()
    turns = Turns(cast(Any, wire), asyncio.get_running_loop())
    told = Told("try")
    told.verb.answered = lambda batch, rows: group.ask(7) if batch[0] != 7 else None
    group = turns.group(told.verb)
    group.ask(1)
    wire.answer()
    assert wire.sent == [("try:one", (b"1",)), ("try:one", (b"7",))]
    wire.answer()
    assert group.idle


async def test_what_a_reader_cannot_read_is_taken_back() -> None:
    """Its link dies of it. Until then nothing else is sent."""
    told = Told("try")
    wire, [group] = world(told)

    def broken(batch: Sequence[int], rows: Rows) -> None:
        raise RuntimeError("a defect of the owner")

    told.verb.answered = broken
    group.ask(1)
    group.ask(2)
    with pytest.raises(RuntimeError, match="a defect of the owner"):
        wire.answer()
    await asyncio.sleep(0)
    assert len(wire.sent) == 1
    sent, unsent = group.take_back()
    assert (list(sent), list(unsent)) == ([1], [2])
    assert group.idle


async def test_what_ends_a_program_passes_the_turn_on() -> None:
    told = Told("try")
    wire, [group] = world(told)

    def interrupted(batch: Sequence[int], rows: Rows) -> None:
        raise KeyboardInterrupt

    told.verb.answered = interrupted
    group.ask(1)
    group.ask(2)
    with pytest.raises(KeyboardInterrupt):
        wire.answer()
    assert len(wire.sent) == 2


KINDS = st.sampled_from(["ask", "many", "together", "answer", "answer", "fail", "turn"])
STEPS = st.lists(st.tuples(KINDS, st.integers(0, 2)), max_size=60)


@given(STEPS, st.integers(1, 5))
async def test_every_request_is_answered_once_and_in_order(steps: list[tuple[str, int]], most: int) -> None:
    verbs = [Told(name, most) for name in ("a", "b", "c")]
    wire, turns, groups = turns_of(*verbs)
    asked: list[list[int]] = [[], [], []]
    failures = 0
    for number, (step, which) in enumerate(steps):
        if step in ("ask", "many"):
            requests = [10 * number + extra for extra in range(1 if step == "ask" else 3)]
            asked[which].extend(requests)
            groups[which].ask_all(requests)
        elif step == "together":
            with turns.together():
                for other, group in enumerate(groups):
                    requests = [10 * number + other, 10 * number + other + 5]
                    asked[other].extend(requests)
                    for request in requests:
                        group.ask(request)
        elif step == "turn":
            await asyncio.sleep(0)
        elif wire.owed:
            failures += step == "fail"
            wire.answer(FAILED if step == "fail" else None)
    for _ in range(7 * len(steps) + 7):
        await asyncio.sleep(0)
        if wire.owed:
            wire.answer()
    assert wire.most_under_way <= 1
    for told, wanted, group in zip(verbs, asked, groups, strict=True):
        failed = [request for batch, _ in told.failed for request in batch]
        assert Counter(told.answered + failed) == Counter(wanted)
        assert told.answered == sorted(told.answered)
        assert failed == sorted(failed)
        assert group.idle
        sent = [int(value or b"") for name, values in wire.sent if name.startswith(told.name + ":") for value in values]
        assert sent == wanted
        assert all(len(values) <= most for name, values in wire.sent if name.endswith("many"))
    assert sum(len(told.failed) for told in verbs) == failures
