"""What a channel may be called.

Here live the limits of names, and the names that are ours. Whether the server keeps such names apart is tested with
the server.
"""

from __future__ import annotations

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import ChannelInvalid, ConfigurationError
from pgconcert.pubsub import channels
from pgconcert.pubsub.channels import PING_CHANNEL, REPLY_PREFIX, RESERVED, check_channel, reply_channel

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=15)


@given(NAMES.filter(lambda name: not name.startswith(RESERVED)))
def test_a_name_is_its_encoded_text_the_first_time_and_the_second(name: str) -> None:
    assert check_channel(name) == check_channel(name) == name.encode()


@pytest.mark.parametrize("name", ["x" * 63, "ä" * 31 + "x", "€" * 21, " ", 'a"b', "Orders", PING_CHANNEL])
def test_names_that_may_be(name: str) -> None:
    assert check_channel(name) == name.encode()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "empty"),
        ("x" * 64, "64 bytes"),
        ("ä" * 32, "64 bytes"),
        ("x" * 100_000, "100000 bytes"),
        ("a\0b", "NUL"),
        ("a\ud800b", "lone surrogate at position 1"),
        (b"orders", "not bytes"),
        (7, "not int"),
        (None, "not NoneType"),
        (["orders"], "not list"),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_names_that_may_not_be(name: object, told: str, ours: bool) -> None:
    for _ in range(2):
        with pytest.raises(ChannelInvalid, match=told) as caught:
            check_channel(name, ours=ours)
        assert len(str(caught.value)) < 400
        assert isinstance(caught.value, ConfigurationError)


def test_our_names_are_ours() -> None:
    for name in ("pgconcert:pulse", reply_channel("4f"), "pgconcert:"):
        assert check_channel(name, ours=True) == name.encode()
        with pytest.raises(ChannelInvalid, match="kept for the library"):
            check_channel(name)
    assert reply_channel("4f") == REPLY_PREFIX + "4f" == "pgconcert:reply:4f"
    assert check_channel("pgconcert") == b"pgconcert"


class Channel(str, Enum):  # noqa: UP042 - its str() is its name, unlike that of a StrEnum
    ORDERS = "orders"


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"LOUD"


def test_of_a_subclass_the_text_itself() -> None:
    assert check_channel(Channel.ORDERS) == b"orders"
    assert check_channel(Loud("orders")) == b"orders"


def test_what_is_remembered_is_bounded() -> None:
    for number in range(25_000):
        check_channel(f"bounded-{number}")
    assert len(channels._known) <= 10_000
