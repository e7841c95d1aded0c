"""The levels of the queue watch, on a link that we answer by hand, with a clock that we set.

Here lives `postgres/queuewatch.py` without a server; a queue that really fills stands in `tests/postgres`.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from pgconcert.errors import NotifyQueueFull, StatementFailed
from pgconcert.events import Event, EventStream, QueueFilling
from pgconcert.postgres.link import Reply, Rows, Statement
from pgconcert.postgres.queuewatch import QueueWatch
from pgconcert.postgres.statements import QUEUE_USAGE

GUILTY: Rows = [(b"report", b"4711", b"idle in transaction", b"ClientRead", b"12", None)]


class Clock:
    """The loop, as far as the watch looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


class Play:
    """A watch whose questions are answered with the usage and the blocker that are set."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.usage = 0.0
        self.blocker: Rows = GUILTY
        self.looks = 0
        self.events: list[QueueFilling] = []
        stream = EventStream()
        stream.subscribe(self._filling, QueueFilling)
        self.watch = QueueWatch(cast(asyncio.AbstractEventLoop, self.clock), stream)
        self.queue_held_by: tuple[int, float] | None = None
        self.watch.up(cast(Any, self))

    def _filling(self, event: Event) -> None:
        assert isinstance(event, QueueFilling)
        self.events.append(event)

    def send(self, sent: Statement, params: tuple[bytes, ...], reply: Reply) -> None:
        if sent is QUEUE_USAGE:
            self.looks += 1
            reply([(repr(self.usage).encode(),)], None)
        else:
            reply(self.blocker, None)

    def after(self, seconds: float, usage: float) -> None:
        """Time passes, the queue is so full, and something is published."""
        self.clock.now += seconds
        self.usage = usage
        self.watch.look(cast(Any, self))


def test_it_is_looked_at_seldom_and_when_it_fills_often() -> None:
    play = Play()
    for _ in range(100):
        play.after(0.5, 0.1)
    assert play.looks == 10
    play.after(5.0, 0.6)
    for _ in range(100):
        play.after(0.5, 0.6)
    assert play.looks == 11 + 50


def test_each_level_is_told_once_until_usage_has_fallen() -> None:
    play = Play()
    for usage in (0.49, 0.5, 0.6, 0.52, 0.49, 0.55, 0.81, 0.97, 0.93, 0.96, 0.2, 0.7):
        play.after(5.0, usage)
    assert [event.usage for event in play.events] == [0.5, 0.81, 0.97, 0.7]
    assert {event.blocker for event in play.events} == {"report (pid 4711, idle in transaction for 12 s)"}


def test_pauses_grow_while_it_is_nearly_full() -> None:
    play = Play()
    play.after(5.0, 0.79)
    assert play.watch.pause() == 0
    play.after(5.0, 0.8)
    pauses = [play.watch.pause() for _ in range(10)]
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1, 0.1]
    play.after(5.0, 0.5)
    assert play.watch.pause() == 0
    play.after(5.0, 0.9)
    assert play.watch.pause() == 0.001


def test_full_means_refused_until_it_has_fallen() -> None:
    play = Play()
    play.after(5.0, 0.96)
    before = play.looks
    for _ in range(10):
        play.clock.now += 0.1
        refusal = play.watch.refuse()
        assert isinstance(refusal, NotifyQueueFull)
        assert "96% full; held up by report (pid 4711, idle in transaction for 12 s)" in str(refusal)
    assert play.looks <= before + 1, "one look a second, however many ask"
    play.usage = 0.5
    play.clock.now += 1.0
    assert play.watch.refuse() is None
    assert play.watch.full is None


def test_a_blocker_that_cannot_be_seen() -> None:
    play = Play()
    play.blocker = []
    play.after(5.0, 0.97)
    assert play.events[0].blocker is None
    assert "a session that this role may not see" in str(play.watch.refuse())


def test_one_that_does_not_read_and_one_elsewhere() -> None:
    play = Play()
    play.blocker = [(b"", b"1", b"idle", b"ClientWrite", None, b"shop")]
    play.after(5.0, 0.6)
    assert play.events[0].blocker == "an unnamed session of database shop (pid 1, does not read what it is sent)"


def test_a_refusal_of_the_server_names_the_blocker_and_is_looked_into() -> None:
    play = Play()
    told: list[NotifyQueueFull] = []
    play.watch.explain(cast(Any, play), StatementFailed("too many notifications", "54000"), told.append)
    assert "report (pid 4711" in str(told[0])
    assert "too many notifications" in str(told[0])
    play.after(0.0, 0.99)
    assert play.looks == 1
    assert play.watch.full == 0.99


def test_a_new_link_begins_anew_and_looks_soon_if_it_was_full() -> None:
    play = Play()
    play.after(5.0, 0.99)
    play.watch.down()
    assert play.watch.full is None
    play.watch.up(cast(Any, play))
    play.after(0.0, 0.1)
    assert play.looks == 2
    assert play.watch.refuse() is None


def test_the_usage_is_told_for_a_minute() -> None:
    """Who does not publish does not look; what was true an hour ago is not told as a gauge."""
    play = Play()
    assert play.watch.known_usage is None
    play.after(5.0, 0.25)
    assert play.watch.known_usage == 0.25
    play.clock.now += 59
    assert play.watch.known_usage == 0.25
    play.clock.now += 1
    assert play.watch.known_usage is None
