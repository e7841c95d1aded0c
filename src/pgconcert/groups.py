"""Groups: who is there, and what each of them can do. No backend stands here.

Here live what is said of a group and what a member has; what is seen of members stands in ``members.py``.

Theory. A membership is a name that hangs on a session (``sessions/``): the group and the id of the member. It is never
waited for: an id that a living session has is refused. A group itself hangs on nothing; it is made by ``create`` or by
the first who joins, and stays until it is deleted, which it is not while it has members. Somebody who joins while
it is deleted is a member all the same, and the group is there as long as it has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Literal
from uuid import uuid4

from .acquiring import Acquirable, Register, check_timeout
from .backend import Claim
from .deadlock import Actor
from .errors import ConfigurationError, GroupNotEmpty, MemberExists, NotHeld, SessionLost, Unavailable, given
from .hold import OnLost
from .keys import KeySpace
from .members import GroupView, Member, MemberChange, look_at_members, seen_in
from .sessions.claims import SessionClaim, SessionKey, of_session, session_key
from .sessions.hold import AsyncSessionHold, SessionHeld
from .sessions.register import SessionRegister, as_json, from_json, subject_of
from .sessions.timing import Timing
from .store import CreateGroup, DeleteGroup, Entry, Look, Subject, Update
from .watching import AsyncChanges, ask

__all__ = ["AsyncGroup", "AsyncJoining", "AsyncMembership", "group_names"]

CAPABILITIES: Final = "the capabilities of a member"
_TRIES: Final = 5
_PAUSE: Final = 0.05


class AsyncMembership(AsyncSessionHold):
    """What a member has. ``token`` grows with each membership of one id.

    Use it as ``async with membership:`` to have the body cancelled on loss and the group left at the end. A membership
    that is dropped is left with a ``ResourceWarning``.
    """

    __slots__ = ("_capabilities", "_of")

    def __init__(self, claim: SessionClaim, of: SessionRegister[Register], on_lost: OnLost) -> None:
        register = of.register
        locker = register.locker
        super().__init__(claim, register.loop, locker.release, locker.drop, on_lost, register.scoped)
        self._of = of
        self._capabilities = from_json(claim.data)

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

    async def update_capabilities(self, capabilities: Any) -> None:
        """Show something else: anything with a JSON form, or ``None``. When this returns, everybody sees it.

        Raises ``SessionLost`` if the membership is lost, ``NotHeld`` after leaving, and ``Unavailable`` while there is
        no connection, or if that dies before the answer: then nobody knows, and doing it again does no harm.
        """
        self._here()
        text = as_json(capabilities, CAPABILITIES)
        if not await ask(self._of, update_of(self, text)):
            raise not_ours(self)
        self._capabilities = from_json(text)

    async def leave(self) -> None:
        """Leave the group, as ``release`` does; when this returns, nobody sees this member any more."""
        await self.release()


class AsyncJoining(Acquirable):
    """The wish to be a member. Made by ``AsyncGroup.join``.

    ``async with joining as membership:`` joins, runs the body, and leaves; if the membership is lost meanwhile the body
    is cancelled and ``SessionLost`` raised. It never waits for another member.
    """

    __slots__ = ("_key", "_of")

    def __init__(self, of: SessionRegister[Register], key: SessionKey, on_lost: OnLost) -> None:
        super().__init__(of.register, None, on_lost)
        self._of = of
        self._key = key

    @property
    def key(self) -> str:
        """The id of the member."""
        return self._key.subject.member

    async def acquire(self, timeout: float | None = None) -> AsyncMembership:
        """Join and return the ``AsyncMembership``.

        Raises ``MemberExists`` if a living session is a member with this id, which is found out at once, whatever the
        ``timeout``; ``Unavailable`` while there is no connection; ``SchemaMissing``, or ``CoordinatorClosed``.
        Cancelled, it leaves at once and is no member.
        """
        check_timeout(timeout)
        return await self._acquire(None)

    async def try_acquire(self) -> AsyncMembership | None:
        """Join and return the ``AsyncMembership``, or ``None`` if a living session is a member with this id. Raises
        what ``acquire`` raises besides."""
        try:
            return await self._acquire(None)
        except MemberExists:
            return None

    async def __aenter__(self) -> AsyncMembership:
        membership = await super().__aenter__()
        assert isinstance(membership, AsyncMembership)
        return membership

    async def _acquire(self, timeout: float | None) -> AsyncMembership:
        claim = await join(self._of, self._key, asyncio.current_task())
        membership = AsyncMembership(claim, self._of, self._on_lost)
        membership.check()
        return membership

    def _kind(self) -> str:
        return "membership"


class AsyncGroup:
    """A group by name, for all processes that use the same database. Made by ``AsyncCoordinator.group``.

    A member is there while its session lives. The object itself holds nothing: it may be shared by tasks.
    """

    def __init__(self, of: SessionRegister[Register], name: str, timing: Timing) -> None:
        self._of = of
        self._subject = subject_of("group", of.keys, name)
        self._timing = timing

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._subject.name

    async def create(self) -> bool:
        """Make the group; False if it was there. Raises ``Unavailable`` while there is no connection."""
        return await ask(self._of, CreateGroup(self._subject))

    async def delete(self) -> bool:
        """Delete the group; False if it was not there. Raises ``GroupNotEmpty`` if it has members that live, and
        ``Unavailable`` while there is no connection."""
        return deleted(self.name, await ask(self._of, DeleteGroup(self._subject)))

    async def exists(self) -> bool:
        """Whether the group is there. Raises ``Unavailable`` while there is no connection."""
        return self.name in await group_names(self._of, self.name)

    def join(
        self, *, member_id: str | None = None, capabilities: Any = None, on_lost: OnLost = "cancel"
    ) -> AsyncJoining:
        """The wish to be a member. Nothing is sent before it is entered or acquired; a group that is not there is made.

        :param member_id: a text of 1 to 200 encoded bytes, of one living member at a time; by default one that nobody
            else has.
        :param capabilities: anything with a JSON form, shown to all as ``Member.capabilities``.
        :param on_lost: ``"cancel"`` cancels the body when the membership is lost; ``"report"`` leaves it running. Both
            set ``membership.lost`` and raise ``SessionLost`` at the end of the block.
        """
        if on_lost not in ("cancel", "report"):
            raise ConfigurationError(f"on_lost must be 'cancel' or 'report', not {given(on_lost)}")
        return AsyncJoining(
            self._of, member_key(self._of.keys, self._subject, self._timing, member_id, capabilities), on_lost
        )

    async def members(self) -> tuple[Member, ...]:
        """Who is there now, in the order of their ids. Raises ``Unavailable`` while there is no connection."""
        return members_in(await ask(self._of, look_at_members(self._subject)), self._of.sessions.identity)

    def watch(self) -> AsyncChanges[MemberChange]:
        """Who joins, shows other capabilities, leaves, or is lost; also for who is no member. Entered, it has looked:

            async with group.watch() as changes:
                async for change in changes: ...

        Those who are there come first, as joined. Changes of other processes are told at once by notification, and
        ``check`` seconds later without; who died, exactly when its time is over. Capabilities that were replaced
        between two looks are not told, nor is who joined and left between them. A connection that is lost is no change.
        A slow consumer gets everything that was seen.
        """
        view = GroupView(self._subject, self._of.sessions.identity)
        return AsyncChanges(self._of, self._subject, self._timing.check, view)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


async def group_names(of: SessionRegister[Register], name: str | None = None) -> list[str]:
    """The names of all groups of this namespace, or of one if it is there, sorted. A group is there if it was made and
    not deleted, or has members."""
    namespace = of.keys.namespace
    made = await ask(of, Look(kind="group", namespace=namespace, name=name))
    members = await ask(of, Look(kind="member", namespace=namespace, name=name))
    names = {entry.subject.name for entry in made}
    names.update(entry.subject.name for entry in members if entry.session is not None)
    return sorted(names)


async def join(of: SessionRegister[Register], key: SessionKey, who: Actor) -> SessionClaim:
    """Become a member; ``who`` asks. Raises ``MemberExists``."""
    kind, namespace, name, member = key.subject
    await ask(of, CreateGroup(Subject("group", namespace, name)))
    for _ in range(_TRIES):
        claim = await of.register.claim(key, False, 0, _joined, _refused, who)
        if claim is not None:
            return claim
        for entry in await ask(of, Look(kind=kind, namespace=namespace, name=name, member=member)):
            if entry.session is not None:
                raise MemberExists(f"group {name!r} has a member {member!r} already: {entry.session}")
        # it went in this instant, or a transaction that looks at its row is under way
        await asyncio.sleep(_PAUSE)
    raise Unavailable(f"the row of member {member!r} of group {name!r} is locked by a transaction; try again")


def _joined(claim: Claim) -> SessionClaim | None:
    return of_session(claim)


async def _refused(timeout: float) -> None:
    """What a try makes of a refusal."""


def member_key(keys: KeySpace, group: Subject, timing: Timing, member_id: object, capabilities: Any) -> SessionKey:
    """Check what a membership is made of."""
    subject = subject_of("member", keys, group.name, str(uuid4()) if member_id is None else member_id)
    return session_key(keys, subject, timing, data=as_json(capabilities, CAPABILITIES))


def members_in(entries: Sequence[Entry], identity: str) -> tuple[Member, ...]:
    """Who is there, from the entries of a group; ``identity`` asks."""
    return tuple(seen.member for _, seen in sorted(seen_in(entries, identity).items()))


def deleted(name: str, answer: Literal["deleted", "missing", "not empty"]) -> bool:
    """What the store has said of deleting a group."""
    if answer == "not empty":
        raise GroupNotEmpty(f"group {name!r} has members that live; it can be deleted when they have left")
    return answer == "deleted"


def update_of(membership: SessionHeld, data: str | None) -> Update:
    """Show other capabilities. Raises ``SessionLost``, and ``NotHeld`` after leaving."""
    membership.check()
    claim = of_session(membership._grant)
    group, member = claim.key.subject.name, claim.key.subject.member
    if membership.released:
        raise NotHeld(f"member {member!r} has left group {group!r}; join again")
    return Update(subject=claim.key.subject, session=membership.session_id, token=membership.token, data=data)


def not_ours(membership: SessionHeld) -> SessionLost:
    """The store has said that it is not ours any more."""
    return SessionLost(membership.key, "it was not ours any more when its capabilities were updated")
