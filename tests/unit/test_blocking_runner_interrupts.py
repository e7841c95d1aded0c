"""Ctrl-C at every step of a runner in the blocking twin: nothing goes on, and every task is free or done.

The theory of the injector is that of `tests/faults/interrupts.py`; signals that are real are at the end.
"""

from __future__ import annotations

import _thread
import gc
import logging
import secrets
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from pgconcert import QueueTasks, Task
from pgconcert.blocking import Coordinator
from pgconcert.testing import eventually
from tests.faults.interrupts import everywhere

SOURCE = QueueTasks("queue")
FAR = 3600.0

at_every_step = pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on sys.settrace leaves opcodes out")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Runners that an interrupt drops are reported, hundreds of them. And no collector: the interpreter cannot bear an
    injected interrupt in a finaliser that it calls."""
    logging.disable(logging.ERROR)
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def nothing(tasks: list[Task]) -> None:
    """A tasker that completes what it gets."""


def with_block(c: Coordinator) -> None:
    with c.runner("runner", nothing, SOURCE, tick=FAR) as runner:
        runner.wake()


def with_group(c: Coordinator) -> None:
    with c.runners(*(c.runner(name, nothing, SOURCE, tick=FAR) for name in ("a", "b"))):
        pass


def run(c: Coordinator) -> None:
    def stop(tasks: list[Task]) -> None:
        runner.stop()

    runner = c.runner("runner", stop, SOURCE, tick=FAR)
    runner.run()


def start(c: Coordinator) -> None:
    c.runner("runner", nothing, SOURCE, tick=FAR).start()


@at_every_step
@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:<Runner.* was dropped without stop:ResourceWarning")
@pytest.mark.parametrize("work", [with_block, with_group, run], ids=lambda work: work.__name__)
def test_an_interrupt_at_every_step(work: Callable[[Coordinator], object]) -> None:
    world = f"memory://{secrets.token_hex(8)}"
    with Coordinator(world, name="mine") as c, Coordinator(world) as other:
        queue = other.queue("queue")

        def nothing_is_left() -> bool:
            threads = [thread.name for thread in threading.enumerate() if thread.name == "pgconcert-tasker"]
            there = queue.statistics()
            living = [session for session in other.sessions() if session.application == "mine"]
            return not (threads or living or there.assigned or there.started)

        places = 0
        queue.enqueue("a")
        for where in everywhere(lambda: work(c)):
            places += 1
            eventually(nothing_is_left, what=f"nothing is left after an interrupt in {where}")
            queue.enqueue("a")
        assert places > 30


@at_every_step
@pytest.mark.faults
@pytest.mark.timeout(120)
def test_an_interrupted_start_is_one_or_none() -> None:
    """Whoever is interrupted on the way has nothing that runs; only at the very end it may have been started."""
    with Coordinator(f"memory://{secrets.token_hex(8)}", name="mine") as c:
        for where in everywhere(lambda: start(c)):

            def over() -> bool:
                return not c.sessions()

            eventually(over, what=f"nothing goes on after an interrupt in {where}")
        assert len(c.sessions()) == 1


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_ctrl_c_in_run(again: bool) -> None:
    """It waits for the calls that are under way; interrupted again, it leaves at once and frees their tasks."""
    entered, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work(task: Task) -> None:
        entered.set()
        assert go_on.wait(30)
        done.append(task.id)

    world = f"memory://{secrets.token_hex(8)}"
    with Coordinator(world) as c, Coordinator(world) as other:
        queue = other.queue("queue")
        put = queue.enqueue_many(["a"] * 3)
        runner = c.runner("runner", work, SOURCE, tick=FAR, per_task=True)

        def interrupt() -> None:
            assert entered.wait(30)
            _thread.interrupt_main()
            eventually(lambda: runner.state == "stopping", what="it is being stopped")
            if again:
                _thread.interrupt_main()
            else:
                go_on.set()

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            runner.run()
        eventually(lambda: runner.state == "stopped")
        assert done == ([] if again else [*put[:1]])
        assert queue.statistics().waiting == (3 if again else 2)
        go_on.set()
