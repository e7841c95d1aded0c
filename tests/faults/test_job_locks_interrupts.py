"""Ctrl-C at every step of a job lock in the blocking twin: nothing stays held, and nobody is noted as waiting.

The theory is that of `test_blocking_interrupts.py`.
"""

from __future__ import annotations

import gc
import logging
import secrets
import sys
from collections.abc import Callable, Iterator

import pytest

from pgconcert import AcquireTimeout
from pgconcert.blocking import Coordinator
from pgconcert.testing import eventually
from tests.faults.interrupts import everywhere

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:the hold of .* was dropped without release:ResourceWarning"),
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on sys.settrace leaves opcodes out"),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Holds that an interrupt drops are reported, hundreds of them. And no collector: the interpreter cannot bear an
    injected interrupt in a finaliser that it calls."""
    logging.disable(logging.WARNING)
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def with_block(c: Coordinator) -> None:
    with c.job_lock("job") as hold:
        hold.check()


def with_hold(c: Coordinator) -> None:
    hold = c.job_lock("job").acquire(timeout=30)
    with hold:
        pass


def run(c: Coordinator) -> None:
    c.job_lock("job").run(lambda hold: hold.check())


def attempt(c: Coordinator) -> None:
    hold = c.job_lock("job").try_acquire()
    assert hold is not None
    hold.release()


def in_vain(c: Coordinator) -> None:
    with pytest.raises(AcquireTimeout):
        c.job_lock("theirs").acquire(timeout=0.001)


def stopped(c: Coordinator) -> None:
    lock = c.job_lock("job")
    lock.acquire()
    lock.stop()


@pytest.mark.parametrize(
    "work", [with_block, with_hold, run, attempt, in_vain, stopped], ids=lambda work: work.__name__
)
def test_an_interrupt_at_every_step(work: Callable[[Coordinator], object]) -> None:
    world = f"memory://{secrets.token_hex(8)}"
    with Coordinator(world) as c, Coordinator(world) as other, other.job_lock("theirs"):
        register = c._holding().register

        def nothing_is_left() -> bool:
            hold = other.job_lock("job").try_acquire()
            if hold is None:
                return False
            hold.release()
            scopes = register.scopes
            return not (scopes.held or scopes._inside or scopes._waits)

        places = 0
        for where in everywhere(lambda: work(c)):
            places += 1
            eventually(nothing_is_left, what=f"nothing is left after an interrupt in {where}")
        assert places > 30
