"""A process whose main thread uses the blocking twin and gets an interrupt at random instants.

Arguments: the URL, and how many interrupts. It says "holds nothing" when it has had them and is still open; told "go
on" it shows that all works, and closes. Each interrupt is of its own timer, which is set for a random moment of the
work that follows; after each, a fresh key is had by us and by nobody else.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Final

from pgconcert import AcquireTimeout
from pgconcert.blocking import Coordinator, Hold

PROGRAM: Final = Path(__file__)

_LONGEST: Final = 0.004


class Interrupted(BaseException):
    """What the handler raises: ours, so that no other interrupt is taken for it."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def jobs(c: Coordinator, other: Coordinator, give_back: SimpleQueue[Hold | None]) -> dict[str, Callable[[], object]]:
    """Everything that a thread can do, by name. No lock object that is entered is kept: see the theory of the test."""
    kept = c.lock("kept")

    def enter() -> None:
        with c.lock("a"), c.lock("own", timeout=30):
            pass

    def acquire() -> None:
        hold = kept.acquire()
        hold.release()

    def attempt() -> None:
        hold = kept.try_acquire()
        if hold is not None:
            with hold:
                pass

    def together() -> None:
        with c.lock_all(["a", "b", "d"]):
            pass

    def permit() -> None:
        with c.semaphore("s", 2):
            pass

    def read() -> None:
        with c.lock("a", shared=True):
            pass

    def in_vain() -> None:
        try:
            c.lock("theirs").acquire(timeout=0.002)
        except AcquireTimeout:
            return
        raise AssertionError("the lock of another process was granted")

    def hand_over() -> None:
        # another process has it, and gives it back while we wait
        give_back.put(other.lock("handed over").acquire())
        with c.lock("handed over"):
            pass

    return {job.__name__: job for job in (enter, acquire, attempt, together, permit, read, in_vain, hand_over)}


def release(holds: SimpleQueue[Hold | None]) -> None:
    """In a thread that is there already, because one that is interrupted while it is started stays half begun."""
    while (hold := holds.get()) is not None:
        hold.release()
        del hold


def check(c: Coordinator, other: Coordinator, number: int) -> None:
    """The answers are right: what we get nobody else gets, and what we gave back they do."""
    key = f"fresh {number}"
    hold = c.lock(key).try_acquire()
    assert hold is not None, "a fresh key was refused"
    assert hold.key == key
    assert other.lock(key).try_acquire() is None, "two hold one key"
    hold.release()
    theirs = other.lock(key).acquire(timeout=30)
    assert c.lock(key).try_acquire() is None, "two hold one key"
    theirs.release()


def compete(c: Coordinator, end: threading.Event) -> None:
    """Somebody else wants the same keys, so that some of the interrupts meet a wait."""
    while not end.is_set():
        with c.lock_all(["a", "b", "kept"]), c.semaphore("s", 2):
            pass
        end.wait(0.003)


def main(url: str, interrupts: int) -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # of holds that were dropped by an interrupt
    signal.signal(signal.SIGALRM, _interrupt)
    met: Counter[str] = Counter()
    end = threading.Event()
    with Coordinator(url, name="interrupted") as c, Coordinator(url, name="other") as other:
        give_back: SimpleQueue[Hold | None] = SimpleQueue()
        everything = [*jobs(c, other, give_back).items()]
        competitors = [threading.Thread(target=compete, args=(one, end)) for one in (c, other)]
        releaser = threading.Thread(target=release, args=(give_back,))
        releaser.start()
        with other.lock("theirs"):
            for competitor in competitors:
                competitor.start()
            number = 0
            while met.total() < interrupts or len(met) < len(everything):
                number += 1
                name, job = random.choice(everything)
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, _LONGEST))
                        job()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    met[name] += 1
                check(c, other, number)
        end.set()
        for competitor in competitors:
            competitor.join()
        print("holds nothing", json.dumps(met), flush=True)
        sys.stdin.readline()
        for _, job in everything:
            if job.__name__ != "in_vain":
                job()
        check(c, other, 0)
        give_back.put(None)
        releaser.join()
    print("closed", sum(thread.name == "pgconcert-engine" for thread in threading.enumerate()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
