"""What happened to job locks, elections, groups and runners between two looks. Pure.

An entry keeps its token as long as one holder has it, and each holder gets a larger one; so one that has another token
than a moment ago was held by somebody else meanwhile, even if that one is gone again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..store import Entry, SessionInfo

__all__ = ["EntryChange", "entry_changes"]


class EntryChange(NamedTuple):
    """``session`` is the one that has it, or had it. ``lost``: it was not given back, its session is over. ``gone``: a
    runner, which leaves by ending its session, so that its end and its loss look alike."""

    what: Literal["taken", "released", "lost", "gone"]
    entry: Entry
    session: SessionInfo


def entry_changes(before: Iterable[Entry], after: Iterable[Entry]) -> list[EntryChange]:
    """What happened: endings first, then beginnings."""
    old, new = ({entry.subject: entry for entry in each} for each in (before, after))
    ended: list[EntryChange] = []
    begun: list[EntryChange] = []
    for subject, was in old.items():
        now = new.get(subject)
        if was.session is not None and not _same_holder(was, now):
            ended.append(EntryChange(_end(was, now), was, was.session))
    for subject, now in new.items():
        if now.session is not None and not _same_holder(now, old.get(subject)):
            begun.append(EntryChange("taken", now, now.session))
    return ended + begun


def _end(was: Entry, now: Entry | None) -> Literal["released", "lost", "gone"]:
    if was.subject.kind == "runner":
        return "gone"
    return "lost" if now is not None and now.token == was.token and not now.given else "released"


def _same_holder(one: Entry, other: Entry | None) -> bool:
    return other is not None and other.session is not None and other.token == one.token
