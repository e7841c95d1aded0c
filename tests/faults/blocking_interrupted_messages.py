"""A process whose main thread publishes and receives with the blocking twin, and gets an interrupt at random instants.

Arguments: the URL, and how many interrupts. Another coordinator sends numbers all the time, and one subscription takes
them, interrupted again and again: every number must come, in order. It says "nothing is lost" when it has had its
interrupts; told "go on" it shows that all works, and closes.
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
from types import FrameType
from typing import Final

from pgconcert.blocking import Coordinator
from pgconcert.blocking.subscription import Subscription
from pgconcert.pubsub.message import Message

PROGRAM: Final = Path(__file__)

_LONGEST: Final = 0.004


class Interrupted(BaseException):
    """What the handler raises: ours, so that no other interrupt is taken for it."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def jobs(
    c: Coordinator, numbers: Subscription[Message], taken: list[Message | None]
) -> dict[str, Callable[[], object]]:
    """Everything that a thread can do, by name."""

    def get() -> None:
        # between the iterator and its place in the list there is no step at which a handler could run
        for taken[0] in numbers:
            break

    def publish() -> None:
        c.publish("elsewhere", "text")

    def publish_many() -> None:
        c.publish_many([("elsewhere", str(number)) for number in range(3)])

    def subscribe() -> None:
        with c.subscribe("own") as messages:
            c.publish("own", "1")
            assert messages.get(timeout=20).text == "1"

    def listen() -> None:
        with c.listen({"own": lambda message: None}):
            pass

    def request() -> None:
        assert c.request("echo", "text", timeout=20).text == "text"

    return {job.__name__: job for job in (get, publish, publish_many, subscribe, listen, request)}


def send(other: Coordinator, sent: list[int], end: threading.Event) -> None:
    """Numbers, for ever."""
    while not end.is_set():
        other.publish("numbers", str(sent[0]))
        sent[0] += 1
        end.wait(0.0005)


def main(url: str, interrupts: int) -> None:
    warnings.simplefilter("ignore", ResourceWarning)  # of subscriptions that were dropped by an interrupt
    signal.signal(signal.SIGALRM, _interrupt)
    met: Counter[str] = Counter()
    end = threading.Event()
    sent, expected = [0], 0
    taken: list[Message | None] = [None]
    with (
        Coordinator(url, name="interrupted") as c,
        Coordinator(url, name="other") as other,
        other.listen({"echo": lambda message: message.payload}),
        c.subscribe("numbers", capacity=1_000_000) as numbers,
    ):
        everything = [*jobs(c, numbers, taken).items()]
        sender = threading.Thread(target=send, args=(other, sent, end))
        sender.start()
        while met.total() < interrupts or len(met) < len(everything):
            name, job = random.choice(everything)
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, _LONGEST))
                    job()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                met[name] += 1
            message, taken[0] = taken[0], None
            if message is not None:
                assert message.text == str(expected), f"{message.text} came when {expected} was due"
                expected += 1
        end.set()
        sender.join()
        while expected < sent[0]:
            assert numbers.get(timeout=20).text == str(expected)
            expected += 1
        assert not numbers.statistics.dropped
        print("nothing is lost", json.dumps(met), flush=True)
        sys.stdin.readline()
        other.publish("numbers", "the last")
        for _, job in everything:
            job()
        assert taken[0] is not None
        assert taken[0].text == "the last"
    print("closed", sum(thread.name.startswith("pgconcert-") for thread in threading.enumerate()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
