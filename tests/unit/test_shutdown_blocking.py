"""``graceful_shutdown`` for threads and without a block: what it interrupts and closes, and what it refuses.

Theory: signals are raised in this very process, so those of the tests are two that nobody else uses; the second signal,
which ends a process, is the business of ``tests/faults/test_shutdown.py``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pgconcert import ConfigurationError, CoordinatorClosed
from pgconcert.blocking import Coordinator
from pgconcert.shutdown import SIGNALS, graceful_shutdown
from pgconcert.testing import eventually
from tests.postgres.threads import Running
from tests.unit.shutdowns import ONE, TWO, AsyncThing, Thing, nobody, shutdown


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """They are there again after every test."""
    before = {number: signal.signal(number, nobody) for number in (ONE, TWO)}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(after.values()) == {nobody}


def test_a_signal_leaves_the_block() -> None:
    story: list[str] = []
    with shutdown(Thing(story, "first"), lambda: story.append("second")) as stop:
        try:
            os.kill(os.getpid(), ONE)
            threading.Event().wait(30)
        finally:
            story.append("body")
        story.append("not reached")
    assert story == ["body", "first", "second"]
    assert (stop.stopping, stop.cause) == (True, ONE)


def test_only_its_own_exit_is_taken() -> None:
    story: list[str] = []
    with pytest.raises(SystemExit) as raised, shutdown(Thing(story, "closed")):
        raise SystemExit(3)
    assert raised.value.code == 3
    assert story == ["closed"]


def test_an_error_of_a_blocking_body_goes_on() -> None:
    story: list[str] = []
    with pytest.raises(KeyError) as raised, shutdown(Thing(story, "bad", OSError("no")), Thing(story, "good")):
        raise KeyError("body")
    assert story == ["bad", "good"]
    assert raised.value.__notes__ == ["another failure, in closing: OSError: no"]


def test_an_error_of_a_blocking_closing_is_raised() -> None:
    story: list[str] = []
    with pytest.raises(OSError, match="no"), shutdown(Thing(story, "bad", OSError("no")), Thing(story, "good")):
        os.kill(os.getpid(), ONE)
    assert story == ["bad", "good"]


def test_a_blocking_body_that_asks() -> None:
    story: list[str] = []
    with shutdown(Thing(story, "closed"), cancel=False) as stop:
        os.kill(os.getpid(), ONE)
        assert stop.stopping
        story.append("body")
    assert story == ["body", "closed"]


def test_nested_blocks_end_together() -> None:
    story: list[str] = []
    outer, inner = shutdown(Thing(story, "outer")), shutdown(Thing(story, "inner"))
    with outer:
        with inner, shutdown(Thing(story, "innermost"), signals=()):
            os.kill(os.getpid(), ONE)
            story.append("not reached")
        story.append("not reached either")
    assert story == ["innermost", "inner", "outer"]
    assert (outer.cause, inner.cause) == (ONE, ONE)


def test_a_signal_on_the_way_in_closes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends there, for the body cannot be left before it has begun; what was opened for it is closed."""
    story: list[str] = []
    install = signal.signal

    def interrupted(number: int, handler: Any) -> Any:
        before = install(number, handler)
        if number == ONE and before is nobody:
            os.kill(os.getpid(), ONE)
        return before

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(SystemExit) as raised, shutdown(Thing(story, "first"), Thing(story, "second")) as stop:
        pytest.fail(f"the body ran, though {stop.cause} had come")
    assert raised.value.code == 0
    assert story == ["first", "second"]


def test_a_signal_while_closing_interrupts_nothing() -> None:
    story: list[str] = []
    with shutdown(lambda: os.kill(os.getpid(), ONE), Thing(story, "next")) as stop:
        story.append("body")
    assert story == ["body", "next"]
    assert stop.cause is ONE


def test_a_coordinator_of_threads() -> None:
    address = f"memory://{secrets.token_hex(8)}"
    with Coordinator(address) as c, Coordinator(address) as other:
        kept = c.lock("x").acquire()
        waits = Running(lambda: other.lock("x").acquire(timeout=20))
        eventually(lambda: other.health().locks_waited_for == 1)
        with shutdown(c), c.lock("y"):
            os.kill(os.getpid(), ONE)
            threading.Event().wait(30)
        waits.result().release()
        assert kept.lost
        with pytest.raises(CoordinatorClosed):
            c.lock("x")


def test_in_another_thread() -> None:
    """There are no handlers; whoever wants it calls ``stop``."""

    def refused() -> None:
        with shutdown():
            pass

    error = Running(refused, name="other").error()
    assert isinstance(error, ConfigurationError)
    assert "in the main thread only, and this is other" in str(error)
    assert "signals=()" in str(error)

    story: list[str] = []
    stop = shutdown(Thing(story, "closed"), signals=())

    def work() -> None:
        with stop:
            eventually(lambda: stop.stopping)

    running = Running(work)
    stop.stop()
    running.result()
    assert story == ["closed"]


def test_an_event_loop_in_another_thread() -> None:
    story: list[str] = []
    stop = shutdown(AsyncThing(story, "closed"), signals=())
    inside = threading.Event()

    async def work() -> None:
        async with stop:
            inside.set()
            await asyncio.Event().wait()

    running = Running(lambda: asyncio.run(work()))
    assert inside.wait(30)
    stop.stop()
    running.result()
    assert story == ["closed"]


async def test_installed_by_hand() -> None:
    stop = shutdown(lambda: pytest.fail("nothing is closed"))
    remove = stop.install()
    assert stop.install() == remove
    waiting = asyncio.create_task(stop.wait())
    os.kill(os.getpid(), ONE)
    await waiting
    assert stop.cause is ONE
    remove()
    remove()


def test_installed_without_a_loop() -> None:
    stop = shutdown()
    remove = stop.install()
    os.kill(os.getpid(), ONE)
    assert stop.stopping
    remove()
    asyncio.run(stop.wait())


def test_removed_in_another_order() -> None:
    """Whoever is removed first leaves nothing behind in the handlers of the other."""
    first, second = shutdown(), shutdown()
    first.install()
    second.install()
    first.remove()
    second.remove()
    with pytest.raises(AssertionError, match="came to where it was before"):
        os.kill(os.getpid(), ONE)
    assert not first.stopping
    assert not second.stopping
    signal.signal(TWO, nobody)


def test_a_forked_child_has_the_handlers_of_before() -> None:
    """It does not close what belongs to its parent."""
    story: list[str] = []
    with shutdown(Thing(story, "closed")):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                os.kill(os.getpid(), ONE)
            except AssertionError:
                code = 7
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert story == ["closed"]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(ONE, signal.SIG_IGN)
    try:
        with shutdown(signals=(ONE,)) as stop:
            os.kill(os.getpid(), ONE)
            assert signal.getsignal(ONE) is signal.SIG_IGN
        assert not stop.stopping
    finally:
        signal.signal(ONE, before)


def test_it_is_used_once() -> None:
    stop = shutdown()
    with stop:
        pass
    with pytest.raises(RuntimeError, match="was used already"), stop:
        pass


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "10", None, True])
def test_a_bad_timeout(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout must be"):
        graceful_shutdown(timeout=timeout)


@pytest.mark.parametrize("signals", [(signal.SIGKILL,), (0,), ("SIGTERM",), 15, (signal.SIGTERM, signal.SIGSTOP)])
def test_bad_signals(signals: Any) -> None:
    with pytest.raises(ConfigurationError, match="signals must"):
        graceful_shutdown(signals=signals)


@pytest.mark.parametrize("thing", [None, "c", 3])
def test_what_cannot_be_closed(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="closes objects with close"):
        graceful_shutdown(thing)


def test_closed_asynchronously_in_a_blocking_program() -> None:
    """It is said on the way in where that can be known, and at the end where it cannot."""
    story: list[str] = []
    thing = AsyncThing(story, "closed")

    def hidden() -> object:
        return thing.close()

    with pytest.raises(ConfigurationError, match="async with"), shutdown(thing):
        pytest.fail("the body ran")
    with pytest.raises(ConfigurationError, match="async with"), shutdown(hidden):
        story.append("body")
    assert story == ["body"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_signals_by_default(number: signal.Signals) -> None:
    """SIGABRT is left to the processes of the other file: this one's ``faulthandler`` would lose it."""
    before = signal.getsignal(number)
    with graceful_shutdown(signals={*SIGNALS} - {signal.SIGABRT}) as stop:
        os.kill(os.getpid(), number)
        pytest.fail("it went on")
    assert {*SIGNALS} == {signal.SIGINT, signal.SIGTERM, signal.SIGABRT}
    assert stop.cause is number
    assert signal.getsignal(number) is before
