"""The fair share, and the way to it: pure functions, told what each session has.

Theory. At pick-up a session takes what it lacks to ``share``, so tasks that nobody has are shared fairly without a
word. What that cannot mend is a session that comes when all tasks have been given out: it is then up to the session
that lacks something to *move* tasks here that others have and have not begun. ``moves`` says from whom and how many.

Think of water. The *level* is the largest number to which everybody could have at least, if only tasks that are not
started flow: whoever started more keeps that, and the others share the rest. The tasks above it are fewer than the
sessions under which they could be spread; they stay with those that have more than the level anyhow, and only if these
are too few, one of them goes to whoever asks first. A session takes what it lacks to the level, from those that have
most, so it never takes from one that would have to take it back. Hence, if all apply it, one after the other, in
whatever order: after everybody's turn nobody who could give has two more than anybody who may take, no task has moved
twice, and none needlessly. Sessions that apply it in the same instant may take too much from one; it takes that back at
its next turn.

The cap bounds what the asker takes; the level is computed as if the caps of the others were not smaller than it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..taskstore import Held

__all__ = ["moves", "share"]


def share(outstanding: int, sessions: int, most: int | None) -> int:
    """How many tasks a session may have: its part of those outstanding, rounded up, at most ``most``. ``sessions`` 0:
    we are not counted (yet), and count as one."""
    part = -(-outstanding // max(sessions, 1))
    return part if most is None else min(part, most)


def moves(mine: int, others: Mapping[int, Held], most: int | None) -> dict[int, int]:
    """How many tasks to move here, by session: of each at most what it has assigned. ``mine``: what we have, started or
    not; ``others``: what each other session that shares has; ``most``: our cap. Empty if all is fair."""
    held = {session: one.assigned + one.started for session, one in others.items()}
    total = mine + sum(held.values())

    def needed(level: int) -> int:
        return level + sum(max(one.started, level) for one in others.values())

    level = _last(lambda level: needed(level) <= total, 0, total)
    keep_one_more = sum(one.started <= level < held[session] for session, one in others.items())
    target = level + (total - needed(level) > keep_one_more)
    wanted = (target if most is None else min(target, most)) - mine
    return _from_the_top(others, held, wanted) if wanted > 0 else {}


def _from_the_top(others: Mapping[int, Held], held: Mapping[int, int], wanted: int) -> dict[int, int]:
    """Take so many where most is: cut all to one height, and what is missing then, one each, by number."""

    def above(height: int) -> dict[int, int]:
        cut = {session: held[session] - max(one.started, height) for session, one in others.items()}
        return {session: number for session, number in sorted(cut.items()) if number > 0}

    top = max(held.values(), default=0)
    height = top - _last(lambda depth: sum(above(top - depth).values()) <= wanted, 0, top)
    taken = above(height)
    can_give = [session for session, number in above(height - 1).items() if number > taken.get(session, 0)]
    for session in can_give[: wanted - sum(taken.values())]:
        taken[session] = taken.get(session, 0) + 1
    return dict(sorted(taken.items()))


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last number from ``low`` to ``high`` for which it holds; it holds for ``low``, and up to some number."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
