"""Arguments that cannot be meant: refused at once, by name, where they were written.

Here live tests of what constructors and `subscribe` refuse. Theory: a wrong argument that is taken surfaces later, in
another task, as a hang.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError
from pgconcert.conninfo import AddressSource
from pgconcert.events import Event, EventStream, LinkClosed, LinkLost, LinkOpened
from pgconcert.memory.null import NullBackend

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *(("name", value) for value in (5, "a\0b", "", b"bytes")),
        *(("network_timeout", value) for value in (INFINITY, NAN, 0.1, 0, -1, "5", None, True, 86401)),
        *(("connect_timeout", value) for value in (INFINITY, NAN, 0, -1, "5", None, True, 86401)),
        *(("max_locks", value) for value in ("5", 1.5, 0, -1, True, NAN)),
        *(("engine", value) for value in ("process", "", None, 1, ["loop"])),
    ],
)
def test_a_wrong_argument_is_named(parameter: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{parameter} must be .*not {re.escape(repr(value))}$"):
        AsyncCoordinator("host=nowhere", **{parameter: value})


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("name", "é" * 200),
        ("network_timeout", 0.2),
        ("network_timeout", 86400),
        ("connect_timeout", 1),
        ("max_locks", 1),
        ("max_locks", None),
    ],
)
def test_what_is_just_right_is_taken(parameter: str, value: Any) -> None:
    AsyncCoordinator("host=nowhere", **{parameter: value})


def ignore(event: Event) -> None:
    """A reader."""


@pytest.mark.parametrize("kinds", [([LinkLost],), ((LinkLost, LinkOpened),), ("LinkLost",), (LinkLost, int), (None,)])
def test_what_is_no_kind_of_event(kinds: tuple[Any, ...]) -> None:
    """A list of kinds is the likely slip; it would fail in the middle of a loss."""
    stream = EventStream()
    with pytest.raises(ConfigurationError, match="no kind of event"):
        stream.subscribe(ignore, *kinds)
    assert stream.readers == []


@pytest.mark.parametrize("reader", [None, "ignore", LinkClosed(role="lock", server_pid=1)])
def test_what_cannot_be_called(reader: Any) -> None:
    stream = EventStream()
    with pytest.raises(ConfigurationError, match="must be callable"):
        stream.subscribe(reader, LinkLost)
    assert stream.readers == []


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
@pytest.mark.parametrize("parameter", ["address", "direct_url"])
def test_an_empty_address_is_no_address(parameter: str, empty: str) -> None:
    """Libpq would take it for whatever listens on this machine; two machines would each lock on their own."""
    with pytest.raises(ConfigurationError, match=r"the address is the empty text .* leave it out"):
        AsyncCoordinator(**{"address": "host=nowhere", parameter: empty})


async def test_a_callable_that_returns_the_empty_text() -> None:
    with pytest.raises(ConfigurationError, match="the address is the empty text"):
        await AddressSource(lambda: "").parameters()


@pytest.mark.parametrize("shared", ["no", "exclusive", 1, 0, None, []])
async def test_shared_is_a_switch(shared: Any) -> None:
    """By truth value a writer would silently become a reader."""
    async with AsyncCoordinator("null://") as c:
        for make in (lambda: c.lock("k", shared=shared), lambda: c.lock_all(["k"], shared=shared)):
            with pytest.raises(
                ConfigurationError, match=rf"^shared must be True or False, not {re.escape(repr(shared))}"
            ):
                make()


def test_a_backend_needs_no_address() -> None:
    with pytest.raises(ConfigurationError, match="leave address and direct_url out"):
        AsyncCoordinator("host=nowhere", backend=NullBackend())


def test_a_way_around_a_pooler_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"memory:// has none, leave it out"):
        AsyncCoordinator("memory://w", direct_url="host=nowhere")
