"""Arguments that cannot be meant: refused at once, by name, where they were written.

Here live tests of what constructors and `subscribe` refuse; what locks and holds refuse stands in
`test_wrong_calls.py`, what keys may be in `test_keys.py`. Theory: a wrong argument that is taken surfaces later, in
another task, as a hang.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
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
    arguments: dict[str, Any] = {"address": "host=nowhere", parameter: empty}
    with pytest.raises(ConfigurationError, match=r"the address is the empty text .* leave it out"):
        AsyncCoordinator(**arguments)


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


@pytest.mark.parametrize("namespace", [None, 5, b"billing"])
def test_a_namespace_is_text(namespace: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^namespace must be text, not {type(namespace).__name__}$"):
        AsyncCoordinator("null://", namespace=namespace)


@pytest.mark.parametrize("parameter", ["address", "direct_url"])
def test_a_backend_needs_no_address(parameter: str) -> None:
    arguments: dict[str, Any] = {"backend": NullBackend(), parameter: "host=nowhere"}
    with pytest.raises(
        ConfigurationError, match=r"^a backend= was given, so no address is used: leave address and direct_url out$"
    ):
        AsyncCoordinator(**arguments)


@pytest.mark.parametrize("backend", ["memory://w", 5, object(), NullBackend])
def test_a_backend_is_an_object_with_the_ports(backend: Any) -> None:
    """An address at the wrong place and the class itself are the likely slips."""
    with pytest.raises(
        ConfigurationError,
        match=rf"^backend must be an object with the ports of pgconcert.Backend, not {re.escape(repr(backend))}; "
        "an address is the first argument$",
    ):
        AsyncCoordinator(backend=backend)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **factories: str) -> None:
    """Distributions that bring backends: each by its name, with the factory that its metadata names for `toy://`."""
    for name, factory in factories.items():
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[pgconcert.backends]\ntoy = {factory}\n")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("address", ["mysql://ann:hunter2@db/app", " MySQL://ann:hunter2@db/app"])
def test_a_scheme_that_nobody_knows(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, theirs="somewhere:make")
    with pytest.raises(ConfigurationError) as caught:
        AsyncCoordinator(address)
    assert str(caught.value) == (
        "no backend is installed for mysql://; known are postgresql, embedded, memory, null, toy"
    )


def test_a_scheme_that_two_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ours="toys.ours:make", theirs="toys.theirs:make")
    with pytest.raises(
        ConfigurationError,
        match=r"^toy:// is claimed by several backends: toys\.ours:make, toys\.theirs:make; uninstall one$",
    ):
        AsyncCoordinator("toy://w")


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("pgconcert.memory:no_such_name", "module 'pgconcert.memory' has no attribute 'no_such_name'"),
    ],
)
def test_a_backend_that_cannot_be_imported(
    factory: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, theirs=factory)
    with pytest.raises(ConfigurationError) as caught:
        AsyncCoordinator("toy://w")
    assert str(caught.value) == f"the backend for toy:// ({factory}) cannot be imported: {why}"


def test_a_way_around_a_pooler_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"memory:// has none, leave it out"):
        AsyncCoordinator("memory://w", direct_url="host=nowhere")


@pytest.mark.parametrize("huge", [10**5000, -(10**5000)], ids=["positive", "negative"])
async def test_a_number_that_python_would_not_write(huge: int) -> None:
    """`repr` refuses it, and the message must not die of that."""
    bits = f"an int of {huge.bit_length()} bits"
    wrong: tuple[dict[str, Any], ...] = (
        {"network_timeout": huge},
        {"engine": huge},
        {"name": huge},
        {"max_locks": -abs(huge)},
    )
    for arguments in wrong:
        with pytest.raises(ConfigurationError, match=bits):
            AsyncCoordinator("null://", **arguments)
    async with AsyncCoordinator("null://") as c:
        anything: Any = c
        calls: tuple[Callable[[], object], ...] = (
            lambda: anything.lock("k", timeout=-abs(huge)),
            lambda: anything.lock("k", on_lost=huge),
            lambda: anything.lock("k", shared=huge),
            lambda: anything.lock_all(huge),
            lambda: anything.semaphore("s", huge),
        )
        for call in calls:
            with pytest.raises(ConfigurationError, match=bits):
                call()


def test_a_hold_stays_on_its_loop(unique: str) -> None:
    """Its messages would not cross to the other loop by themselves."""
    with asyncio.Runner() as here, asyncio.Runner() as there:
        c = AsyncCoordinator(f"memory://{unique}")
        here.run(c.open())
        hold = here.run(c.lock("k").acquire())
        there_too = pytest.raises(RuntimeError, match=r"^the hold of 'k' belongs to another event loop$")
        with there_too:
            there.run(hold.release())
        with there_too:
            there.run(hold.wait_lost())
        with there_too:
            there.run(hold.__aenter__())
        assert not hold.released
        here.run(hold.release())
        here.run(c.close())
