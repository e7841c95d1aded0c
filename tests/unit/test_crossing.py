"""Calls that cross to the engine: their order, who is woken, and what becomes of those that come at its end.

Here lives what `crossing.py` promises to threads that are interrupted and to an engine that ends; what crosses in daily
use is seen in `test_enginethread.py`. Theory: the loop is turned by the test, so every order can be made to happen.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator

import pytest

from pgconcert.crossing import EngineCrossing


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs when the test turns it."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def crossing(loop: asyncio.AbstractEventLoop) -> Iterator[EngineCrossing]:
    made = EngineCrossing(loop)
    yield made
    made.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop look once at its descriptors, and run what is due."""
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_later_comes_before_the_next_post_and_wakes_nobody(
    loop: asyncio.AbstractEventLoop, crossing: EngineCrossing
) -> None:
    seen: list[int] = []
    crossing.later(lambda: seen.append(1))
    crossing.later(lambda: seen.append(2))
    turn(loop)
    assert seen == []
    assert crossing.post(lambda: seen.append(3))
    turn(loop)
    assert seen == [1, 2, 3]


def test_an_interrupted_ring_is_rung_again(
    loop: asyncio.AbstractEventLoop, crossing: EngineCrossing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is interrupted between the posting and the ring leaves no call behind that nobody hears of."""
    seen: list[int] = []
    ring = EngineCrossing._ring
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(self: EngineCrossing) -> None:
        for interrupt in interrupts:
            raise interrupt
        ring(self)

    monkeypatch.setattr(EngineCrossing, "_ring", interrupted)
    with pytest.raises(KeyboardInterrupt):
        crossing.post(lambda: seen.append(1))
    turn(loop)
    assert seen == [1]


def test_who_comes_too_late_takes_nobody_along(crossing: EngineCrossing) -> None:
    """At the end of the engine: a call that was posted in time is run, even if another came too late before that."""
    seen: list[int] = []
    assert crossing.post(lambda: seen.append(1))
    crossing.closed = True  # as `close` does, before it runs what is there
    assert not crossing.post(lambda: seen.append(2))
    crossing.later(lambda: seen.append(3))
    crossing._run()
    assert seen == [1]


def test_what_comes_too_late_is_forgotten(crossing: EngineCrossing) -> None:
    class Call:
        def __call__(self) -> None:
            """Never run."""

    crossing.close()
    call = Call()
    known = weakref.ref(call)
    assert not crossing.post(call)
    crossing.later(call)
    del call
    assert known() is None
