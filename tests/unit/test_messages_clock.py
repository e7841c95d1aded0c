"""The wall clock steps back: gaps do not end before they begin, and what is told now and then goes on being told.

Here live tests of messages and time. Theory: ``received`` and the ends of gaps are of the wall clock, which people can
compare; how long something is ago is of the monotonic one.
"""

from __future__ import annotations

import pytest

from pgconcert import Gap, Message
from pgconcert.events import Event, EventStream, MessageMalformed
from pgconcert.pubsub import route
from pgconcert.pubsub.overflow import Inbox
from tests.unit.playedmessages import played


class Clock:
    """Both clocks, as the test sets them."""

    wall = 1000.0
    steady = 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clocks of routes."""
    clock = Clock()
    monkeypatch.setattr(route, "time", clock)
    return clock


async def test_a_gap_ends_no_earlier_than_it_begins(clock: Clock) -> None:
    c, port = played("a")
    async with c, c.subscribe("a", gaps="yield") as messages:
        port.deafened()
        clock.wall -= 3600
        port.hears("a")
        gap = await messages.get(10)
        assert isinstance(gap, Gap)
        assert (gap.since, gap.until) == (1000, 1000)


async def test_what_is_told_once_in_a_while_is_told_again(clock: Clock) -> None:
    """After a second, whatever the wall clock says."""
    c, port = played("a")
    async with c, c.subscribe("a"):
        told: list[Event] = []
        c.events.subscribe(told.append, MessageMalformed)
        for _ in range(3):
            port.arrives("a", b"pgconcert:9 {}\nx")
        assert len(told) == 1
        clock.wall -= 3600
        clock.steady += 1
        port.arrives("a", b"pgconcert:9 {}\nx")
        assert len(told) == 2


def test_messages_that_come_in_another_order_than_their_times() -> None:
    """One that was held up behind a large one is older than what another channel had brought before it."""
    box = Inbox[Message](("a", "b"), EventStream(), 1, "drop_oldest", "yield")
    box.put(Message("a", b"", 1, False, 20.0))
    box.put(Message("b", b"", 1, False, 10.0))
    gap = box.take()
    assert isinstance(gap, Gap)
    assert (gap.count, gap.since, gap.until) == (1, 20, 20)
