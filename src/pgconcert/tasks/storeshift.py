"""A shift over a ``Store``: a queue of ours, or a table of the application, by the requests of ``taskstore.py``.

Theory. The rows say what belongs to our session; what we know of them is in ``holdings.py``. Everything that is to be
said and asked leaves in one request. What it reports stays *owed* until an answer comes.

*Doubt.* A request without an answer may have been carried out, or may be yet. So before anything else what is owed is
said again. Then everything is recalled that the rows have and we do not. A request that is carried out later still
leaves a started task of which nobody knows; a look at the shares shows it, and it is recalled as well. One that gives
tasks back (failed, recalled), and comes so late that we have started them again, takes them out of our hand: then they
may be done twice, and what we report of them is refused.

*How much.* At a tick, and when there was nothing to do, the whole share is picked up, so that a runner that comes has
something to take over; without a cap at most ``AHEAD``. While tasks are drained, and nothing assigned is left, only as
many are picked up as there is room for: those are started in the same statement, and need no second one.

*Balance.* Where the whole share was asked for and less was there, it is looked at, at most once a tick, who has more;
what they have not started moves (``balance.py``).

*A report that cannot be carried out*, because the application's SQL fails for one row, must not hold up the others:
they are said apart, and the one that fails alone has failed, and rests.

What was started and not handed out, because a later question failed, is handed out by the next turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

from ..acquiring import Register
from ..errors import ConfigurationError, SessionLost, StatementFailed, Unavailable
from ..events.tasks import RunnerFailed, RunnerStep, TasksMoved
from ..sessions.register import SessionRegister
from ..store import Request
from ..taskstore import (
    LookAtShares,
    Move,
    Pick,
    Place,
    Recall,
    ReleaseTasks,
    TablePlace,
    Turn,
    Turned,
)
from .balance import moves
from .holdings import Holdings
from .membership import Membership
from .shift import Handed, Report
from .tasker import shown

__all__ = ["AHEAD", "StoreShift"]

T = TypeVar("T")

AHEAD: Final = 1_000
"""How many tasks a runner without a cap has at most ahead of what it works on."""

_ENDED: Final = "it was ended here"
_LAST_WORD: Final = 2.0
"""Seconds that the last report has, and what frees the tasks: the session ends without it, and all is for others."""

_OVER: Final = "the server says that its time is over, or that it was ended"
_DEFINITE: Final = (StatementFailed, ConfigurationError)
"""What says that nothing was done."""


class StoreShift:
    """One session at a store. See the module, and ``Shift`` for the methods.

    ``most`` is the cap of the application; ``every``: seconds between two times that the whole share is picked up while
    there is work; ``rest``: how long a task rests that has failed so often; ``moved`` is told of tasks that moved here.
    """

    def __init__(
        self,
        of: SessionRegister[Register],
        place: Place,
        membership: Membership,
        *,
        most: int | None,
        every: float,
        rest: Callable[[int], float],
        moved: Callable[[int], None],
    ) -> None:
        self._of = of
        self._loop = of.register.loop
        self._clock = of.sessions.clock
        self._place = place
        self._membership = membership
        self._most = most
        self._every = every
        self._rest = rest
        self._moved = moved
        self._has = Holdings(rests=isinstance(place, TablePlace))
        self._doubt = False
        self._whole_at = self._even_at = self._clock.now()
        self._share = self._sessions = 0
        self._due_at: float | None = None
        """When the first task that is not due yet will be."""
        self._told: list[Callable[[str], None]] = []
        self._reason: str | None = None
        self._over = False
        self.step: RunnerStep = "get work"
        """What a turn does at the moment, or did when it raised."""
        membership.watch(self._lose)

    @property
    def session(self) -> int:
        """The number of the session."""
        return self._membership.number

    @property
    def lost(self) -> str | None:
        """Why it is lost; ``None`` while it is not, also after its end. Looks at the clock; from any thread."""
        return self._reason or (None if self._over else self._membership.lost)

    def when_lost(self, told: Callable[[str], None]) -> None:
        """Call ``told`` once, as soon as it is known to be lost; at once if it is."""
        if self._reason is None:
            self._told.append(told)
        else:
            told(self._reason)

    async def turn(self, report: Report, room: int, *, pick: bool) -> Handed:
        """Report, and get at most ``room`` tasks. Raises ``SessionLost``, ``Unavailable``, and what the store says."""
        has = self._has
        has.note(report)
        self._check()
        if self._doubt:
            await self._clear_up()
        has.wake_rested(self._clock.now())
        left = max(room - len(has.new), 0)
        whole, asked = self._plan(left, pick)
        start = has.first(left)
        if start or asked is not None or has.owed:
            answer = await self._say(start, asked)
            if asked is not None:
                self._sessions = answer.sessions
                self._due_at = None if answer.next_in is None else self._clock.now() + answer.next_in
                if whole:
                    self._share = answer.share
                    await self._even_out(room, asked.most)
        return self._handed(room)

    async def end(self, report: Report) -> Handed:
        """Report, end the session, and free what it had. What cannot be reported in time is an event, and refused; what
        cannot be freed is for others, because the session is over. If it is lost nobody is asked, and what is owed is
        refused. After it, failed or not, the session is renewed no more."""
        has = self._has
        has.note(report)
        if self._over:
            return Handed()
        has.release_all()
        freed = bool(has.released or has.failed or has.count or self._doubt)
        try:
            if self.lost is None and has.owed:
                async with asyncio.timeout(_LAST_WORD):
                    await self._say_at_last()
        except SessionLost:
            pass  # then there is nothing to end
        except (Unavailable, TimeoutError) as error:
            self._tell_unsaid(f"the last report has no answer: {shown(error)}")
            has.lose()
        except BaseException:
            self._leave()
            raise
        if (reason := self.lost) is not None:
            self._lose(reason)
            self._leave()
            has.lose()
            return self._handed(0)
        self._over = True
        await self._membership.end()
        if freed:
            # only now, for whoever is woken by it must count us no more
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(_LAST_WORD):
                    await self._ask(ReleaseTasks(place=self._place, session=self.session))
        return self._handed(0)

    # what is known

    def _plan(self, room: int, pick: bool) -> tuple[bool, Pick | None]:
        """Whether the whole share is to be picked up, and what to ask for."""
        if not pick:
            return False, None
        has = self._has
        now = self._clock.now()
        start = max(room - len(has.assigned), 0)
        most = len(has.hand) + room
        whole = now >= self._whole_at or not (has.hand or has.assigned or has.owed)
        if whole:
            self._whole_at = now + self._every
            most = max(most, AHEAD) if self._most is None else self._most
        elif not start:
            return False, None
        elif self._most is not None:
            most = min(most, self._most)
        return whole, Pick(most, start, len(has.resting))

    def _handed(self, room: int) -> Handed:
        has = self._has
        tasks, has.new = has.new, []
        refused, has.refused = has.refused, []
        died, has.died = has.died, []
        due = min(has.resting.values(), default=self._due_at)
        if due is not None and self._due_at is not None:
            due = min(due, self._due_at)
        return Handed(
            tasks=tuple(tasks),
            refused=tuple(refused),
            died=tuple(died),
            # what would not fill the next room is no reason not to pick up
            more=bool(has.assigned) and len(has.assigned) >= room,
            next_in=None if due is None else max(0.0, due - self._clock.now()),
            share=self._share,
            sessions=self._sessions,
        )

    # what is asked

    async def _ask(self, request: Request[T]) -> T:
        answer: asyncio.Future[T] = self._loop.create_future()
        self._of.sessions.ask(request, answer)
        try:
            return await answer
        except _DEFINITE:
            raise
        except BaseException:
            self._doubt = True
            self._has.unanswered()
            raise

    async def _turned(
        self,
        finished: tuple[str, ...] = (),
        start: tuple[str, ...] = (),
        pick: Pick | None = None,
        *,
        others: bool = True,
    ) -> Turned:
        """One turn. ``others``: with all that is owed besides what is finished."""
        has = self._has
        request = Turn(
            place=self._place,
            runner=self._membership.subject,
            session=self.session,
            finished=finished,
            failed=tuple(failure for _, failure in has.failed.values()) if others else (),
            released=tuple(has.released) if others else (),
            start=start,
            pick=pick,
        )
        answer = await self._ask(request)
        if answer.over:
            self._lose(_OVER)
            self._check()
        has.died += answer.died
        return answer

    async def _say(self, start: tuple[str, ...] = (), pick: Pick | None = None) -> Turned:
        """Say what is owed, and ask for the rest in the same breath."""
        has = self._has
        self.step = "get work" if start or pick is not None else "finish tasks"
        try:
            answer = await self._turned(tuple(has.finished), start, pick)
        except StatementFailed:
            if not has.owed:
                raise
            self.step = "finish tasks"
            await self._say_apart([*has.finished])
            has.settle(await self._turned(), self._clock.now())
            self.step = "get work"
            answer = await self._turned((), start, pick)
        has.settle(answer, self._clock.now())
        self._learn(answer, start)
        return answer

    async def _say_apart(self, names: list[str]) -> None:
        """Of these that they are finished; of one of which that cannot be said, that it has failed."""
        if not names:
            return
        has = self._has
        try:
            has.settle_finished(await self._turned(tuple(names), others=False), names)
        except StatementFailed as error:
            if len(names) > 1:
                middle = len(names) // 2
                await self._say_apart(names[:middle])
                await self._say_apart(names[middle:])
                return
            name = next(iter(names))
            why, retry_in = shown(error), self._rest(has.finished[name].attempt)
            has.cannot_finish(name, why, retry_in)
            self._tell_unsaid(f"task {name}: {why}", retry_in)

    def _tell_unsaid(self, error: str, retry_in: float = 0.0) -> None:
        self._of.events.emit(
            RunnerFailed(
                runner=self._membership.subject.name,
                code="finish tasks",
                error=error,
                retry_in=retry_in,
                session=self.session,
            )
        )

    async def _say_at_last(self) -> None:
        try:
            await self._say()
        except Unavailable:
            await self._say()

    async def _clear_up(self) -> None:
        """Find out what is ours."""
        has = self._has
        if has.owed:
            await self._say()
        has.recalled(await self._ask(Recall(place=self._place, session=self.session, keep=tuple(has.hand))))
        self._doubt = False

    async def _even_out(self, room: int, most: int | None) -> None:
        """Have moved here what others have too much of, and find what we have and do not know."""
        has = self._has
        now = self._clock.now()
        # what is assigned may have been moved away, and nobody tells whom it was taken from
        robbed = bool(has.assigned) and self._sessions > 1
        if now < self._even_at or (has.count >= self._share and not robbed):
            return
        self._even_at = now + self._every
        subject = self._membership.subject
        held = {one.session: one for one in await self._ask(LookAtShares(place=self._place, runner=subject))}
        mine = held.pop(self.session, None)
        if mine is not None and not has.agrees(mine):
            await self._clear_up()
        wanted = moves(has.count, held, most)
        if wanted:
            came = await self._ask(Move(place=self._place, session=self.session, moves=tuple(wanted.items())))
            has.assigned |= dict.fromkeys(came)
            if came:
                self._moved(len(came))
                self._of.events.emit(TasksMoved(runner=subject.name, session=self.session, tasks=len(came)))
        start = has.first(room - len(has.new))
        if start:
            self._learn(await self._turned(start=start), start)

    def _learn(self, answer: Turned, start: tuple[str, ...]) -> None:
        self._has.learn(answer, start)
        self._check()

    # the end

    def _check(self) -> None:
        reason = self.lost
        if reason is not None:
            self._lose(reason)
        if reason is not None or self._over:
            raise SessionLost(f"session {self.session}", reason or _ENDED)

    def _lose(self, reason: str) -> None:
        if self._reason is not None or self._over:
            return
        self._reason = reason
        told, self._told = self._told, []
        for tell in told:
            tell(reason)

    def _leave(self) -> None:
        self._over = True
        self._membership.abandon()
