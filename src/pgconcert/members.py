"""Members of a group, and what is seen of them: who is there, and how that changes. Pure.

Theory. A watcher compares what it sees with what it saw before. A *membership* has one token: a member that has left
and come back between two looks has another one, so both are told. Of one that went the store says whether it has left
or was lost. If its id belongs to a later membership it has left, for a watcher looks when the time of a member is over;
if nothing is known of it any more, it was lost. Who joined and left between two looks is not seen.

Of one look those who went are told first, then updates, then those who came, in the order in which they joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .sessions.register import from_json
from .store import Entry, Look, Subject

__all__ = ["GroupView", "Member", "MemberChange", "Seen", "changes_between", "look_at_members", "seen_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a group. ``capabilities`` is what it gave to ``join`` or ``update_capabilities``; ``identity`` the
    uuid and host of its coordinator; ``since``: when it joined, by the server's clock, in seconds since 1970; ``token``
    grows with each membership of one id; ``mine``: it is a member by the coordinator that was asked."""

    member_id: str
    capabilities: Any
    identity: str
    host: str
    pid: int
    application: str
    since: float
    token: int
    mine: bool

    def __str__(self) -> str:
        return f"{self.member_id}: {self.application or 'an unnamed program'} (pid {self.pid} on {self.host})"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChange:
    """A member has joined, has other capabilities, has left, or was lost: its session was not renewed in time, or it
    was revoked. ``member`` is as it is now; of one that is not there any more, as it was seen last."""

    kind: Literal["joined", "updated", "left", "lost"]
    member: Member


class Seen(NamedTuple):
    """A member and its row. Texts are compared and not values, for ``True`` equals 1 and is something else."""

    member: Member
    data: str | None


def seen_in(entries: Sequence[Entry], identity: str) -> dict[str, Seen]:
    """The members among the entries of a group, by their ids; ``identity`` asks."""
    seen: dict[str, Seen] = {}
    for entry in entries:
        session = entry.session
        if session is None or entry.since is None:
            continue
        member = Member(
            member_id=entry.subject.member,
            capabilities=from_json(entry.data),
            identity=session.identity,
            host=session.host,
            pid=session.pid,
            application=session.application,
            since=entry.since,
            token=entry.token,
            mine=session.identity == identity,
        )
        seen[member.member_id] = Seen(member, entry.data)
    return seen


def changes_between(
    before: Mapping[str, Seen], now: Mapping[str, Seen], entries: Sequence[Entry]
) -> list[MemberChange]:
    """What has happened between two looks; ``entries`` is what was seen at the second."""
    rows = {entry.subject.member: entry for entry in entries}
    gone: list[MemberChange] = []
    updated: list[MemberChange] = []
    for member_id, (member, data) in before.items():
        present = now.get(member_id)
        if present is None or present.member.token != member.token:
            gone.append(MemberChange(kind=_how_it_went(member, rows.get(member_id)), member=member))
        elif present.data != data:
            updated.append(MemberChange(kind="updated", member=present.member))
    came = [
        member
        for member_id, (member, _) in now.items()
        if member_id not in before or before[member_id].member.token != member.token
    ]
    came.sort(key=lambda member: (member.since, member.member_id))
    return [*gone, *updated, *(MemberChange(kind="joined", member=member) for member in came)]


def _how_it_went(member: Member, row: Entry | None) -> Literal["left", "lost"]:
    if row is None:
        return "lost"
    return "left" if row.token != member.token or row.given else "lost"


def look_at_members(group: Subject) -> Look:
    """The question who is there."""
    return Look(kind="member", namespace=group.namespace, name=group.name)


class GroupView:
    """What a watcher knows. Pure; see the theory of the module, and ``watching.View``."""

    def __init__(self, group: Subject, identity: str) -> None:
        self._group = group
        self._identity = identity
        self._known: dict[str, Seen] = {}

    def request(self) -> Look:
        """All members, and those who went not long ago."""
        return look_at_members(self._group)

    def seen(self, entries: Sequence[Entry]) -> tuple[list[MemberChange], float | None]:
        """What has changed, and in how many seconds the time of the first of them is over."""
        now = seen_in(entries, self._identity)
        changes = changes_between(self._known, now, entries)
        self._known = now
        times = [entry.session.expires_in for entry in entries if entry.session is not None]
        return changes, max(min(times), 0.0) if times else None
