"""The publisher's batches: no statement carries one (channel, payload) twice, and nothing changes the order.

The link is played by hand, as in `test_groupcommit.py`; what needs a server stands below `postgres/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from pgconcert.conninfo import AddressSource
from pgconcert.errors import LinkLost, PgconcertError, PublishUncertain, StatementFailed, Unavailable
from pgconcert.events import EventStream
from pgconcert.postgres.keeper import Context
from pgconcert.postgres.link import Reply, Statement
from pgconcert.postgres.messages import Publisher
from pgconcert.postgres.statements import NOTIFY, NOTIFY_MANY


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


class Wire:
    def __init__(self) -> None:
        self.batches: list[list[tuple[str, str]]] = []
        self.owed: list[Reply] = []
        self.dead: str | None = None

    def send(self, sent: Statement, params: Sequence[bytes | None], reply: Reply) -> None:
        if sent == NOTIFY:
            channel, payload = params
            self.batches.append([((channel or b"").decode(), (payload or b"").decode())])
        else:
            assert sent == NOTIFY_MANY
            self.batches.append(list(zip(elements(params[0]), elements(params[1]), strict=True)))
        self.owed.append(reply)

    def answer(self, error: Exception | None = None) -> None:
        self.owed.pop(0)([], error)


class Fates:
    """The publisher on a played link, and what became of each message."""

    def __init__(self) -> None:
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
        self.wire = Wire()
        self.publisher.keeper.link = cast(Any, self.wire)
        self.publisher.link_up(cast(Any, self.wire), cast(Any, None))
        self.fates: list[tuple[str, Exception | None]] = []

    def publish(self, channel: str, payload: str) -> None:
        self.publisher.publish(channel, payload, lambda error: self.fates.append((payload, error)))

    async def answer_all(self, error: Exception | None = None) -> None:
        while self.wire.owed:
            self.wire.answer(error)
            await asyncio.sleep(0)


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["a", 'b"', "c,d"]),
        st.sampled_from(["", "x", "NULL", '"', "\\", "{,}", "é \N{ELEPHANT}\n", " "]),
    ),
    max_size=30,
)


@given(MESSAGES)
async def test_equal_messages_leave_apart_and_in_order(messages: list[tuple[str, str]]) -> None:
    play = Fates()
    for channel, payload in messages:
        play.publish(channel, payload)
    await play.answer_all()
    assert [message for batch in play.wire.batches for message in batch] == messages
    assert all(len(set(batch)) == len(batch) for batch in play.wire.batches)
    assert [payload for payload, _ in play.fates] == [payload for _, payload in messages]
    assert all(error is None for _, error in play.fates)
    assert play.publisher.idle


async def test_the_second_of_two_equal_messages_opens_the_next_batch() -> None:
    play = Fates()
    for payload in ("first", "x", "y", "x", "z"):
        play.publish("c", payload)
    await play.answer_all()
    assert [[payload for _, payload in batch] for batch in play.wire.batches] == [["first"], ["x", "y"], ["x", "z"]]


async def test_a_failed_batch_is_sent_again_singly_and_each_learns_its_own() -> None:
    play, refused = Fates(), StatementFailed("payload string too long", "22023")
    for payload in ("first", "x", "y"):
        play.publish("c", payload)
    play.wire.answer()
    await asyncio.sleep(0)
    play.wire.answer(refused)
    play.wire.answer()
    play.wire.answer(refused)
    assert [[payload for _, payload in batch] for batch in play.wire.batches] == [["first"], ["x", "y"], ["x"], ["y"]]
    assert play.fates == [("first", None), ("x", None), ("y", refused)]


async def test_messages_that_are_sent_again_are_not_idle() -> None:
    play = Fates()
    for payload in ("first", "x", "y"):
        play.publish("c", payload)
    play.wire.answer()
    await asyncio.sleep(0)
    play.wire.answer(StatementFailed("failed"))
    assert len(play.wire.owed) == 2
    assert not play.publisher.idle


async def test_death_tells_uncertain_from_unsent() -> None:
    play = Fates()
    for payload in ("sent", "unsent"):
        play.publish("c", payload)
    play.wire.answer(LinkLost("gone"))
    play.publisher.link_down("gone")
    kinds: list[tuple[str, type[PgconcertError]]] = [("sent", PublishUncertain), ("unsent", Unavailable)]
    assert [(payload, type(error)) for payload, error in play.fates] == kinds
    assert len(play.wire.batches) == 1
    assert play.publisher.idle
