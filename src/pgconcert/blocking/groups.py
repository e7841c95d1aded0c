"""Groups for threads: the twins of those in ``pgconcert.groups``, whose joins run on the engine."""

from __future__ import annotations

import threading
from typing import Any

from ..acquiring import check_timeout
from ..errors import MemberExists
from ..groups import CAPABILITIES, deleted, join, member_key, members_in, not_ours, update_of
from ..groups import group_names as names_there
from ..members import GroupView, Member, MemberChange, look_at_members
from ..sessions.claims import SessionClaim, SessionKey, of_session
from ..sessions.register import SessionRegister, as_json, from_json, subject_of
from ..sessions.timing import Timing
from ..store import CreateGroup, DeleteGroup
from ..watching import AsyncChanges
from .acquiring import Acquirable, Register
from .engine import not_in_a_loop
from .sessionhold import SessionHold
from .watching import Changes, ask, on_engine, run

__all__ = ["Group", "Joining", "Membership", "group_names"]


class Membership(SessionHold):
    """What a member has. ``token`` grows with each membership of one id.

    Use it as ``with membership:`` to have the group left at the end, and ``SessionLost`` raised there if the membership
    was lost meanwhile. A thread cannot be interrupted, so a loss does not stop the body: it asks with ``check`` before
    every side effect, or waits with ``wait_lost``. A membership that is dropped is left with a ``ResourceWarning``.
    """

    __slots__ = ("_capabilities", "_of")

    def __init__(self, claim: SessionClaim, of: SessionRegister[Register]) -> None:
        register = of.register
        self._of = of
        self._capabilities = from_json(claim.data)
        super().__init__(claim, register.release, register.drop, register.scoped)

    @property
    def member_id(self) -> str:
        """The id of the member."""
        return of_session(self._grant).key.subject.member

    @property
    def group(self) -> str:
        """The name of the group."""
        return of_session(self._grant).key.subject.name

    @property
    def capabilities(self) -> Any:
        """What all can see of this member, as it was given last."""
        return self._capabilities

    def update_capabilities(self, capabilities: Any) -> None:
        """Show something else: anything with a JSON form, or ``None``. When this returns, everybody sees it.

        Raises ``SessionLost`` if the membership is lost, ``NotHeld`` after leaving, and ``Unavailable`` while there is
        no connection, or if that dies before the answer: then nobody knows, and doing it again does no harm.
        """
        text = as_json(capabilities, CAPABILITIES)
        if not ask(self._of, update_of(self, text)):
            raise not_ours(self)
        self._capabilities = from_json(text)

    def leave(self) -> None:
        """Leave the group, as ``release`` does."""
        self.release()


class Joining(Acquirable):
    """The wish to be a member. Made by ``Group.join``.

    ``with joining as membership:`` joins, runs the body, and leaves; if the membership is lost meanwhile
    ``membership.check()`` raises ``SessionLost``, and so does the end of the block. It never waits for another member.
    """

    __slots__ = ("_key", "_of")

    def __init__(self, of: SessionRegister[Register], key: SessionKey) -> None:
        super().__init__(of.register, None)
        self._of = of
        self._key = key

    @property
    def key(self) -> str:
        """The id of the member."""
        return self._key.subject.member

    def acquire(self, timeout: float | None = None) -> Membership:
        """Join and return the ``Membership``.

        Raises ``MemberExists`` if a living session is a member with this id, which is found out at once, whatever the
        ``timeout``; ``Unavailable`` while there is no connection; ``SchemaMissing``, or ``CoordinatorClosed``.
        Interrupted, it leaves at once and is no member.
        """
        check_timeout(timeout)
        return self._acquire(None)

    def try_acquire(self) -> Membership | None:
        """Join and return the ``Membership``, or ``None`` if a living session is a member with this id. Raises
        what ``acquire`` raises besides."""
        try:
            return self._acquire(None)
        except MemberExists:
            return None

    def __enter__(self) -> Membership:
        membership = super().__enter__()
        assert isinstance(membership, Membership)
        return membership

    def _acquire(self, timeout: float | None) -> Membership:
        not_in_a_loop("AsyncCoordinator")
        who = threading.current_thread()
        there = on_engine(self._of)
        locker = self._register.locker

        def undo(claim: SessionClaim) -> None:
            claim.over = True
            locker.release(claim, None)

        return self._register.engine.run(lambda: join(there, self._key, who), undo=undo, then=self._join)

    def _join(self, claim: SessionClaim) -> Membership:
        membership = Membership(claim, self._of)
        membership.check()
        return membership

    def _kind(self) -> str:
        return "membership"


class Group:
    """A group by name, for all processes that use the same database. Made by ``Coordinator.group``.

    A member is there while its session lives. The object itself holds nothing: it may be shared by threads.
    """

    def __init__(self, of: SessionRegister[Register], name: str, timing: Timing) -> None:
        self._of = of
        self._subject = subject_of("group", of.keys, name)
        self._timing = timing

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._subject.name

    def create(self) -> bool:
        """Make the group; False if it was there. Raises ``Unavailable`` while there is no connection."""
        return ask(self._of, CreateGroup(self._subject))

    def delete(self) -> bool:
        """Delete the group; False if it was not there. Raises ``GroupNotEmpty`` if it has members that live, and
        ``Unavailable`` while there is no connection."""
        return deleted(self.name, ask(self._of, DeleteGroup(self._subject)))

    def exists(self) -> bool:
        """Whether the group is there. Raises ``Unavailable`` while there is no connection."""
        there = on_engine(self._of)
        return self.name in run(self._of, lambda: names_there(there, self.name))

    def join(self, *, member_id: str | None = None, capabilities: Any = None) -> Joining:
        """The wish to be a member. Nothing is sent before it is entered or acquired; a group that is not there is made.

        :param member_id: a text of 1 to 200 encoded bytes, of one living member at a time; by default one that nobody
            else has.
        :param capabilities: anything with a JSON form, shown to all as ``Member.capabilities``.
        """
        return Joining(self._of, member_key(self._of.keys, self._subject, self._timing, member_id, capabilities))

    def members(self) -> tuple[Member, ...]:
        """Who is there now, in the order of their ids. Raises ``Unavailable`` while there is no connection."""
        return members_in(ask(self._of, look_at_members(self._subject)), self._of.sessions.identity)

    def watch(self) -> Changes[MemberChange]:
        """Who joins, shows other capabilities, leaves, or is lost; also for who is no member. Entered, it has looked:

            with group.watch() as changes:
                for change in changes: ...

        Those who are there come first, as joined. Changes of other processes are told at once by notification, and
        ``check`` seconds later without; who died, exactly when its time is over. Capabilities that were replaced
        between two looks are not told, nor is who joined and left between them. A connection that is lost is no change.
        A slow consumer gets everything that was seen.
        """
        view = GroupView(self._subject, self._of.sessions.identity)
        inner = AsyncChanges(on_engine(self._of), self._subject, self._timing.check, view)
        return Changes(self._of.register.engine, inner)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def group_names(of: SessionRegister[Register]) -> list[str]:
    """The names of all groups of this namespace, sorted."""
    there = on_engine(of)
    return run(of, lambda: names_there(there))
