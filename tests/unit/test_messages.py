"""The publisher's turns and runs: no statement carries one (channel, payload) twice, and nothing changes the order.

The link is played by hand, as in `test_groupcommit.py`; what needs a server stands below `postgres/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.conninfo import AddressSource
from pgconcert.errors import (
    BrokerClosed,
    LinkLost,
    NotifyQueueFull,
    PublishUncertain,
    StatementFailed,
    Unavailable,
)
from pgconcert.events import EventStream
from pgconcert.postgres.keeper import Context
from pgconcert.postgres.link import Reply, Statement
from pgconcert.postgres.messages import Publisher
from pgconcert.postgres.statements import NOTIFY, NOTIFY_MANY, NOTIFY_MANY_ON_ONE, QUEUE_BLOCKER


def elements(array: bytes | None) -> list[str]:
    """Read a text array as the server does."""
    assert array is not None
    text, found, value, quoted = array.decode(), list[str](), "", False
    assert text[0] == "{"
    letters = iter(text[1:-1])
    for letter in letters:
        if letter == "\\" and quoted:
            value += next(letters)
        elif letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            found.append(value)
            value = ""
        else:
            value += letter
    assert not quoted
    return [*found, value]


Batch = list[tuple[str, str]]


class Wire:
    def __init__(self, utf8: bool) -> None:
        self.utf8 = utf8
        self.named = True
        self.batches: list[list[tuple[str, str]]] = []
        self.owed: list[Reply] = []
        self.dead: str | None = None
        self.queue_held_by: tuple[int, float] | None = None
        self.loop = asyncio.get_running_loop()

    def send(self, sent: Statement, params: Sequence[bytes | None], reply: Reply) -> None:
        if sent == QUEUE_BLOCKER:
            self.loop.call_soon(reply, [], None)
            return
        channel, payload = ((param or b"") for param in params)
        if sent == NOTIFY:
            self.batches.append([(channel.decode(), payload.decode())])
        elif sent == NOTIFY_MANY_ON_ONE:
            self.batches.append([(channel.decode(), text) for text in elements(payload)])
        else:
            assert sent == NOTIFY_MANY
            self.batches.append(list(zip(elements(channel), elements(payload), strict=True)))
        self.owed.append(reply)

    def answer(self, error: Exception | None = None) -> None:
        self.owed.pop(0)([], error)

    @property
    def payloads(self) -> list[list[str]]:
        return [[payload for _, payload in batch] for batch in self.batches]


class Fate:
    """The answer to one message, told to a list."""

    def __init__(self, fates: list[tuple[str, Exception | None]], payload: str) -> None:
        self._fates = fates
        self._payload = payload
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: bool) -> None:
        assert result is True
        self._settle(None)

    def set_exception(self, exception: Exception) -> None:
        self._settle(exception)

    def _settle(self, error: Exception | None) -> None:
        assert not self._done
        self._done = True
        self._fates.append((self._payload, error))


class Play:
    """The publisher on a played link, and what became of each message."""

    def __init__(self, *, utf8: bool = False) -> None:
        context = Context(
            address=AddressSource("host=nowhere.invalid"),
            direct_address=None,
            name="test",
            network_timeout=1.0,
            connect_timeout=1.0,
            events=EventStream(),
            loop=asyncio.get_running_loop(),
        )
        self.publisher = Publisher(context)
        self.wire = Wire(utf8)
        self.publisher.keeper.link = cast(Any, self.wire)
        self.publisher.link_up(cast(Any, self.wire), cast(Any, None))
        self.fates: list[tuple[str, Exception | None]] = []

    def publish(self, channel: str, *payloads: str) -> None:
        for payload in payloads:
            self.publisher.publish(channel.encode(), payload.encode(), Fate(self.fates, payload))

    async def answer_all(
        self, refused: Callable[[list[tuple[str, str]]], Exception | None] = lambda batch: None
    ) -> None:
        """Answer in order until nothing is owed; ``refused`` says with which error, given what was sent."""
        await asyncio.sleep(0)
        while self.wire.owed:
            self.wire.answer(refused(self.wire.batches[-len(self.wire.owed)]))
            await asyncio.sleep(0)


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["a", 'b"', "c,d"]),
        st.sampled_from(["", "x", "NULL", '"', "\\", "{,}", "é \N{ELEPHANT}\n", " "]),
    ),
    max_size=30,
)


@given(MESSAGES, st.booleans())
async def test_equal_messages_leave_apart_and_in_order(messages: list[tuple[str, str]], utf8: bool) -> None:
    play = Play(utf8=utf8)
    for channel, payload in messages:
        play.publish(channel, payload)
    await play.answer_all()
    assert [message for batch in play.wire.batches for message in batch] == messages
    assert all(len(set(batch)) == len(batch) for batch in play.wire.batches)
    assert [payload for payload, _ in play.fates] == [payload for _, payload in messages]
    assert all(error is None for _, error in play.fates)
    assert play.publisher.idle


@given(MESSAGES)
async def test_messages_refused_for_what_they_say_change_no_order(messages: list[tuple[str, str]]) -> None:
    """Whatever fails, what is committed is what was handed in without the guilty, in its order."""
    play, refusal = Play(), StatementFailed("not to be had in this encoding", "22P05")
    guilty = {"x", "{,}"}
    committed: list[tuple[str, str]] = []

    def refused(batch: list[tuple[str, str]]) -> Exception | None:
        if any(payload in guilty for _, payload in batch):
            return refusal
        committed.extend(batch)
        return None

    for channel, payload in messages:
        play.publish(channel, payload)
    await play.answer_all(refused)
    assert committed == [message for message in messages if message[1] not in guilty]
    assert play.fates == [(payload, refusal if payload in guilty else None) for _, payload in messages]
    assert play.publisher.idle


async def test_the_second_of_two_equal_messages_opens_the_next_run() -> None:
    play = Play()
    play.publish("c", "first", "x", "y", "x", "z")
    await play.answer_all()
    assert play.wire.payloads == [["first"], ["x", "y"], ["x", "z"]]


async def test_runs_of_a_turn_do_not_wait_for_each_other_where_nothing_can_be_refused() -> None:
    play = Play(utf8=True)
    play.publish("c", "first", "x", "y", "x", "x")
    play.wire.answer()
    await asyncio.sleep(0)
    assert play.wire.payloads == [["first"], ["x", "y"], ["x"], ["x"]]
    assert len(play.wire.owed) == 3


async def test_a_turn_has_an_end() -> None:
    """Neither the number of messages in a statement nor its length grows without bound."""
    play = Play(utf8=True)
    play.publish("c", "first", *(str(n) for n in range(4500)))
    await play.answer_all()
    assert [len(batch) for batch in play.wire.batches] == [1, 2000, 2000, 500]
    long = [f"{n}" + "x" * 7000 for n in range(300)]
    play.publish("c", *long)
    await play.answer_all()
    assert all(sum(map(len, payloads)) <= 1_000_000 for payloads in play.wire.payloads)
    assert [payload for payloads in play.wire.payloads[4:] for payload in payloads] == long


async def test_a_failed_run_is_sent_again_singly_and_each_learns_its_own() -> None:
    play, refused = Play(), StatementFailed("payload string too long", "22023")
    play.publish("c", "first", "x", "y")
    play.wire.answer()
    await asyncio.sleep(0)
    play.publish("c", "behind")
    play.wire.answer(refused)
    play.wire.answer()
    play.wire.answer(refused)
    await play.answer_all()
    assert play.wire.payloads == [["first"], ["x", "y"], ["x"], ["y"], ["behind"]]
    assert play.fates == [("first", None), ("x", None), ("y", refused), ("behind", None)]


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (StatementFailed("too many notifications in the NOTIFY queue", "54000"), NotifyQueueFull),
        (StatementFailed("canceling statement due to lock timeout", "55P03"), Unavailable),
        (StatementFailed("permission denied for function pg_notify", "42501"), StatementFailed),
    ],
)
async def test_what_is_no_messages_fault_fails_all_of_them_once(refusal: Exception, told: type[Exception]) -> None:
    play = Play()
    play.publish("c", "first", "x", "y")
    play.wire.answer()
    await asyncio.sleep(0)
    play.wire.answer(refusal)
    await asyncio.sleep(0)
    assert [(payload, type(error)) for payload, error in play.fates[1:]] == [("x", told), ("y", told)]
    assert play.wire.payloads == [["first"], ["x", "y"]]
    assert play.publisher.idle


async def test_messages_that_are_sent_again_are_not_idle() -> None:
    play = Play()
    play.publish("c", "first", "x", "y")
    play.wire.answer()
    await asyncio.sleep(0)
    play.wire.answer(StatementFailed("failed", "22023"))
    assert len(play.wire.owed) == 1
    assert not play.publisher.idle
    play.wire.answer()
    play.wire.answer()
    assert play.publisher.idle


@pytest.mark.parametrize("utf8", [False, True])
async def test_death_tells_uncertain_from_unsent(utf8: bool) -> None:
    play = Play(utf8=utf8)
    play.publish("c", "first", "x", "x")
    play.wire.answer()
    await asyncio.sleep(0)
    play.publish("c", "queued")
    while play.wire.owed:
        play.wire.answer(LinkLost("gone"))
    play.publisher.link_down("gone")
    assert [(payload, type(error)) for payload, error in play.fates] == [
        ("first", type(None)),
        ("x", PublishUncertain),
        ("x", PublishUncertain if utf8 else Unavailable),
        ("queued", Unavailable),
    ]
    assert play.publisher.idle


async def test_publishing_after_the_end_is_told_so() -> None:
    play = Play()
    play.publisher.keeper.link = None
    play.publisher.link_down("the coordinator was closed")
    await play.publisher.close()
    play.publish("c", "late")
    assert [type(error) for _, error in play.fates] == [BrokerClosed]
