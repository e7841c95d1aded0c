"""The queue of one subscriber: nothing is lost that is not told, and everything comes in order."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import BrokerClosed, ConfigurationError, ListenerOverflow
from pgconcert.events import Event, EventStream, MessagesMissed
from pgconcert.pubsub.message import Gap, Message
from pgconcert.pubsub.overflow import Gaps, Inbox, Overflow


def message(number: int, channel: str = "c", at: float | None = None) -> Message:
    return Message(channel, str(number).encode(), 1, False, float(number) if at is None else at)


def inbox(
    capacity: int = 3, overflow: Overflow = "drop_newest", gaps: Gaps = "yield", events: EventStream | None = None
) -> Inbox[Message]:
    return Inbox(("c",), events or EventStream(), capacity, overflow, gaps)


def drained(box: Inbox[Message]) -> list[int | str]:
    """Numbers of messages, and for a gap its count and reason."""
    found: list[int | str] = []
    while (item := box.take()) is not None:
        found.append(f"{item.count} {item.reason}" if isinstance(item, Gap) else int(item.payload))
    return found


def reconnect(at: float) -> Gap:
    return Gap(reason="reconnect", count=None, since=at, until=at + 1, channels=("c",))


def test_the_newest_are_dropped_behind_what_is_queued() -> None:
    box = inbox()
    for number in range(5):
        box.put(message(number))
    assert drained(box) == [0, 1, 2, "2 overflow"]
    box.put(message(5))
    assert drained(box) == [5]


def test_a_gap_stands_where_the_messages_are_missing() -> None:
    box = inbox()
    for number in range(5):
        box.put(message(number))
    assert box.take() == message(0)
    box.put(message(5))
    # the gap took no room: one was taken, one was put
    box.put(message(6))
    assert drained(box) == [1, 2, "2 overflow", 5, "1 overflow"]


def test_the_oldest_are_dropped_before_the_head() -> None:
    box = inbox(overflow="drop_oldest")
    for number in range(5):
        box.put(message(number))
    assert drained(box) == ["2 overflow", 2, 3, 4]


def test_capacity_1_with_drop_oldest_is_the_latest_value() -> None:
    box = inbox(1, "drop_oldest", "count")
    for number in range(100):
        box.put(message(number))
    assert drained(box) == [99]
    assert box.statistics().dropped == 99


def test_error_ends_behind_what_is_queued() -> None:
    box = inbox(overflow="error")
    for number in range(6):
        box.put(message(number))
    assert [box.take() for _ in range(3)] == [message(n) for n in range(3)]
    with pytest.raises(ListenerOverflow, match="3 messages were queued"):
        box.take()
    with pytest.raises(ListenerOverflow):
        box.take()


def test_the_end_comes_behind_what_is_queued() -> None:
    box = inbox()
    box.put(message(0))
    box.fail(BrokerClosed("the coordinator was closed"))
    box.put(message(1))
    box.gap(reconnect(2))
    assert box.take() == message(0)
    with pytest.raises(BrokerClosed):
        box.take()


def test_gaps_that_meet_become_one() -> None:
    box = inbox()
    box.put(message(0))
    for at in range(1, 50):
        box.gap(reconnect(at))
    first, gap = box.take(), box.take()
    assert first == message(0)
    assert isinstance(gap, Gap)
    assert (gap.since, gap.until) == (1, 50)
    assert box.take() is None


def test_a_stuck_subscriber_costs_its_capacity_whatever_happens() -> None:
    policies: tuple[Overflow, ...] = ("drop_newest", "drop_oldest")
    for overflow in policies:
        box = inbox(2, overflow)
        for number in range(1000):
            box.put(message(number))
            box.gap(reconnect(number))
        assert len(box.items) <= 5


def test_counted_gaps_are_not_queued() -> None:
    box = inbox(gaps="count")
    box.put(message(0))
    box.gap(reconnect(1))
    for number in range(1, 10):
        box.put(message(number))
    assert drained(box) == [0, 1, 2]
    seen = box.statistics()
    assert (seen.received, seen.dropped, seen.queued) == (3, 7, 0)
    assert seen.gaps == {"reconnect": 1, "overflow": 1}
    assert seen.last_gap is not None
    assert (seen.last_gap.reason, seen.last_gap.count) == ("overflow", 7)


def test_a_running_overflow_is_in_the_statistics_already() -> None:
    box = inbox(1)
    box.put(message(0))
    box.put(message(1))
    assert box.statistics().gaps == {"overflow": 1}
    assert box.statistics().last_gap is not None


def test_an_overflow_is_told_at_once_and_then_not_more_than_once_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pgconcert.pubsub.overflow.monotonic", lambda: now[0])
    events = EventStream()
    told: list[Event] = []
    events.subscribe(told.append, MessagesMissed)
    box = inbox(1, events=events)

    def counts() -> list[int | None]:
        return [event.count for event in told if isinstance(event, MessagesMissed)]

    for number in range(100):
        box.put(message(number))
        now[0] += 0.009
    assert counts() == [1]
    now[0] += 1
    box.put(message(100))
    assert counts() == [1, 99]
    box.put(message(101))
    box.fail(BrokerClosed("closed"))
    assert counts() == [1, 99, 1]


def test_who_waits_is_woken_by_a_message_a_gap_and_the_end() -> None:
    woken: list[str] = []
    box = inbox()
    box.wake = lambda: woken.append("woken")
    box.put(message(0))
    box.gap(reconnect(1))
    box.fail(BrokerClosed("closed"))
    assert len(woken) == 3
    quiet = inbox(gaps="count")
    quiet.wake = lambda: woken.append("woken")
    quiet.gap(reconnect(1))
    assert len(woken) == 3


def test_the_messages_of_one_channel_can_be_dropped() -> None:
    box = inbox(10)
    for number in range(6):
        box.put(message(number, "ab"[number % 2]))
    assert box.drop("a") == 3
    assert drained(box) == [1, 3, 5]


@pytest.mark.parametrize(
    ("capacity", "overflow", "gaps"),
    [(0, "error", "count"), (True, "error", "count"), (1.5, "error", "count"), (1, "drop", "count"), (1, "error", "")],
)
def test_wrong_policies_are_refused(capacity: int, overflow: Overflow, gaps: Gaps) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        inbox(capacity, overflow, gaps)


Step = Literal["put", "take", "reconnect"]


@given(st.lists(st.sampled_from(get_args(Step)), max_size=60), st.integers(1, 4), st.sampled_from(["newest", "oldest"]))
def test_every_message_is_taken_or_told(steps: list[Step], capacity: int, dropped: str) -> None:
    """What was put is taken in order, or stands in a gap at its place with its count."""
    overflow: Overflow = "drop_newest" if dropped == "newest" else "drop_oldest"
    box = inbox(capacity, overflow)
    taken: list[Message | Gap] = []
    put = 0
    for step in steps:
        if step == "put":
            box.put(message(put))
            put += 1
        elif step == "reconnect":
            box.gap(reconnect(put))
        elif (item := box.take()) is not None:
            taken.append(item)
        assert box.queued <= capacity
    while (item := box.take()) is not None:
        taken.append(item)
    expected = 0
    unknown = False
    for item in taken:
        if isinstance(item, Gap):
            unknown = unknown or item.count is None
            expected += item.count or 0
        else:
            number = int(item.payload)
            assert number == expected or (unknown and number > expected)
            expected = number + 1
            unknown = False
    assert expected == put or unknown
    seen = box.statistics()
    assert seen.received + (seen.dropped if overflow == "drop_newest" else 0) == put
