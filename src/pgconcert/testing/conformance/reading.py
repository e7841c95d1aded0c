"""What cases of messages read with: texts, gaps and events, and the judge of numbered messages. No case stands here.

Theory. That a message does *not* come is shown by a fence: a later message of the same sender on the same channel has
come, and the earlier one would have come before it. What a slow subscriber has missed is seen by a *witness*, another
subscriber of the same coordinator: when the witness has got a message, so has every queue beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ... import AsyncCoordinator, Gap, Message, PublishError, Unavailable
from ...events import Event
from ..leaks import eventually_async
from .suite import turns

__all__ = ["Heard", "everything", "insist", "judge", "seen", "texts", "up_to"]

E = TypeVar("E", bound=Event)
Item = Message | Gap


def seen(coordinator: AsyncCoordinator, kind: type[E]) -> list[E]:
    """A list that grows with every event of one kind."""
    events: list[E] = []
    coordinator.events.subscribe(events.append, kind)
    return events


class Heard:
    """Handlers that remember; ``until`` waits for the message that says so."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> None:
        """The plain handler."""
        self.messages.append(message)
        self.texts.append(message.text)

    async def slowly(self, message: Message) -> None:
        """The async handler."""
        await turns(len(self.texts) % 3)
        self(message)

    async def until(self, text: str, times: int = 1) -> list[str]:
        """Wait until it has come so often: all texts."""
        await eventually_async(lambda: self.texts.count(text) >= times, 20, what=f"handlers got {text!r} {times} times")
        return self.texts


async def texts(messages: Any, count: int) -> list[str]:
    """The texts of the next messages."""
    return [(await messages.get()).text for _ in range(count)]


async def up_to(messages: Any, last: str) -> list[str]:
    """The texts of the messages before the one that says ``last``, without it; gaps are left out."""
    return [item.text for item in await everything(messages, last) if isinstance(item, Message)]


async def everything(messages: Any, last: str) -> list[Item]:
    """Messages and gaps before the message that says ``last``, without it."""
    found: list[Item] = []
    while True:
        item: Item = await messages.get()
        if isinstance(item, Message) and item.text == last:
            return found
        found.append(item)


def judge(items: Sequence[Item], first: int, end: int) -> None:
    """Show that of the messages ``first`` to ``end`` (without it), numbered, each came once and in order, or is missing
    where a gap says so, which, if it knows how many, says the truth."""
    expected = first
    gap: Gap | None = None
    for item in items:
        if isinstance(item, Gap):
            gap = item if gap is None else gap.joined(item)
            continue
        number = int(item.text)
        _judge_missing(number - expected, f"before {number}", gap)
        expected, gap = number + 1, None
    _judge_missing(end - expected, "at the end", gap)


def _judge_missing(count: int, where: str, gap: Gap | None) -> None:
    assert count >= 0, f"{where}: {-count} messages came twice, or out of order"
    assert count == 0 or gap is not None, f"{where}: {count} messages are missing, and no gap says so"
    if gap is not None and gap.count is not None:
        assert gap.count == count, f"{where}: {count} messages are missing, and the gap says {gap.count}"


async def insist(what: Callable[[], Any]) -> Any:
    """Do something again and again, until a connection is there on which it can be done."""
    while True:
        try:
            return await what()
        except (Unavailable, PublishError):
            await turns(1)
