"""Cases of sessions: who waits for what another has, who wants it back, who comes first. At the port ``Store``."""

from __future__ import annotations

import asyncio

from ...store import EndSession, Refused, RequestRelease, Revoke, Subject, Take, Taken, Unmark
from .desks import LONG, desk, desks, fresh
from .suite import Stage, case


@case("sessions")
async def who_gives_learns_who_waits(stage: Stage) -> None:
    """Who is refused may leave a mark; who gives learns whether another session has one. It goes when the name is
    had."""
    a, b = await desks(stage)
    subject = fresh()
    session, other = await a.start(), await b.start()
    taken = await a.take(subject, session)
    assert not (await a.give(subject, session, taken.token)).waited
    await a.take(subject, session)
    await b.refused(subject, other)
    assert not (await b.refused(subject, other, mark=True)).marked
    assert (await b.refused(subject, other, mark=True)).marked
    assert (await b.refused(subject, other)).marked
    assert (await b.entry(subject)).waiting == 1
    given = await a.give(subject, session)
    assert given.ours
    assert given.waited
    await b.take(subject, other, mark=True)
    assert (await b.entry(subject)).waiting == 0
    assert not (await a.refused(subject, session)).marked
    assert not (await b.give(subject, other)).waited


@case("sessions")
async def our_own_mark_wakes_nobody(stage: Stage) -> None:
    """The marks of other sessions are told to who gives, one's own are not, and a sibling's is another's."""
    a = await desk(stage)
    subject = fresh()
    one, two = await a.start(), await a.start()
    await a.take(subject, one)
    await a.refused(subject, two, mark=True)
    assert (await a.give(subject, one)).waited
    await a.take(subject, two, keep_mark=True)
    assert (await a.entry(subject)).waiting == 1
    assert not (await a.give(subject, two)).waited
    await a.take(subject, one)
    assert (await a.give(subject, one)).waited


@case("sessions")
async def marks_are_taken_away(stage: Stage) -> None:
    """A mark that was taken away, and that of a session which was ended, are not told to who gives."""
    a, b = await desks(stage)
    subject = fresh()
    session, leaves, dies = await a.start(), await b.start(), await b.start()
    await a.take(subject, session)
    await b.refused(subject, leaves, mark=True)
    await b.refused(subject, dies, mark=True)
    assert (await a.entry(subject)).waiting == 2
    assert await b.ask(Unmark(subject, leaves))
    assert not await b.ask(Unmark(subject, leaves))
    assert not (await b.refused(subject, leaves)).marked
    assert await b.ask(EndSession(dies))
    assert (await a.entry(subject)).waiting == 0
    assert not (await a.give(subject, session)).waited


@case("sessions")
async def no_wake_up_is_lost(stage: Stage) -> None:
    """Who leaves a mark and tries again, and who gives at the same time: either the one gets it or the other is told.
    A hundred times."""
    a, b = await desks(stage)
    session, other = await a.start(), await b.start()
    for number in range(100):
        subject = fresh(name=str(number))
        await a.take(subject, session)

        async def wait(subject: Subject) -> Taken | None:
            answer: Taken | Refused = Refused()
            while isinstance(answer, Refused) and not answer.marked:
                answer = await b.ask(Take(subject=subject, session=other, mark=True))
            return answer if isinstance(answer, Taken) else None

        given, had = await asyncio.gather(a.give(subject, session), wait(subject))
        assert given.ours
        assert had is not None or given.waited, f"round {number}: refused with a mark, and the giver saw none"


@case("sessions")
async def a_request_reaches_the_holder(stage: Stage) -> None:
    """Who wants a name back says so: the holder keeps it, and finds it by the revision of its session. The next holder
    was not asked."""
    a, b = await desks(stage)
    subject, untouched = fresh(), fresh()
    session, sibling = await a.start(), await a.start()
    assert not await b.ask(RequestRelease(subject))
    await a.take(subject, session)
    await a.take(untouched, session)
    before = await a.revision(session)
    assert await b.ask(RequestRelease(subject))
    assert await a.revision(session) > before
    assert await a.revision(sibling) == 0
    owned = await a.own(session)
    assert owned[subject].release_requested
    assert not owned[untouched].release_requested
    assert (await b.entry(subject)).release_requested
    assert (await a.give(subject, session)).ours
    assert not (await b.entry(subject)).release_requested
    assert not await b.ask(RequestRelease(subject))
    await a.take(subject, sibling)
    assert not (await a.own(sibling))[subject].release_requested
    assert await a.revision(sibling) == 0


@case("sessions")
async def what_is_revoked_is_free(stage: Stage) -> None:
    """What is revoked is free at once, whatever its holder had in mind; the holder finds it by the revision of its
    session, and has everything else."""
    a, b = await desks(stage)
    subject, untouched = fresh(), fresh()
    session, other = await a.start(), await b.start()
    assert not await b.ask(Revoke(subject))
    taken = await a.take(subject, session, hold_at_least=LONG)
    await a.take(untouched, session)
    before = await a.revision(session)
    assert await b.ask(Revoke(subject))
    assert not await b.ask(Revoke(subject))
    entry = await b.entry(subject)
    assert (entry.session, entry.given) == (None, False)
    assert await a.revision(session) > before
    assert {*await a.own(session)} == {untouched}
    assert not (await a.give(subject, session, taken.token)).ours
    assert (await b.take(subject, other)).token > taken.token
    assert not (await a.give(subject, session)).ours
    assert not (await b.ask(Revoke(fresh())))


@case("sessions")
async def it_is_held_for_the_least_time(stage: Stage) -> None:
    """What is given back before its least time is refused to everybody until then, with the time that is left; revoking
    ends that too."""
    a, b = await desks(stage)
    subject, short = fresh(), fresh()
    session, other = await a.start(), await b.start()
    await a.take(subject, session, hold_at_least=LONG)
    assert (await a.give(subject, session)).ours
    for who, rival in ((b, other), (a, session)):
        refused = await who.refused(subject, rival)
        assert refused.holder is None
        assert refused.retry_in is not None
        assert 0 < refused.retry_in <= LONG
    assert await a.own(session) == {}
    await a.take(short, session, hold_at_least=0.2)
    assert (await a.give(short, session)).ours
    await b.take_in_time(short, other)
    assert not await b.ask(Revoke(subject))
    await b.take(subject, other)
    assert (await b.give(subject, other)).ours
    await a.take(subject, session)


@case("sessions")
async def the_preferred_come_first(stage: Stage) -> None:
    """While a preferred candidate waits, a leader who is not is asked to leave, and an election that is free is refused
    to all who are not preferred."""
    a, b, c = await desks(stage, 3)
    subject = fresh("election")
    session, preferred, other = await a.start(), await b.start(), await c.start()
    await a.take(subject, session)
    await c.refused(subject, other, mark=True)
    assert not (await a.own(session))[subject].release_requested
    before = await a.revision(session)
    assert (await b.refused(subject, preferred, mark=True, preferred=True)).holder is not None
    assert (await a.own(session))[subject].release_requested
    assert await a.revision(session) > before
    assert (await a.give(subject, session)).waited
    for who, rival in ((c, other), (a, session)):
        refused = await who.refused(subject, rival, mark=True)
        assert refused.holder is None
        assert refused.retry_in is None or refused.retry_in > 0
    await b.take(subject, preferred, mark=True, preferred=True)
    assert (await b.give(subject, preferred)).waited
    await c.take(subject, other)


@case("sessions")
async def the_preferred_are_equal_among_themselves(stage: Stage) -> None:
    """A preferred leader is not asked to leave for another preferred candidate, and any preferred one may take what is
    free."""
    a, b, c = await desks(stage, 3)
    subject = fresh("election")
    leader, rival, third = await a.start(), await b.start(), await c.start()
    await a.take(subject, leader, preferred=True)
    before = await a.revision(leader)
    await b.refused(subject, rival, mark=True, preferred=True)
    assert not (await a.own(leader))[subject].release_requested
    assert await a.revision(leader) == before
    assert (await a.give(subject, leader)).waited
    await c.take(subject, third, preferred=True)


@case("sessions")
async def a_preferred_mark_counts_while_its_session_lives(stage: Stage) -> None:
    """The mark of a preferred candidate that has left, or whose session is over, keeps nobody from leading."""
    a, b = await desks(stage)
    subject = fresh("election")
    session, leaves, ends = await a.start(), await b.start(), await b.start()
    await a.take(subject, session, preferred=True)
    await b.refused(subject, leaves, mark=True, preferred=True)
    await b.refused(subject, ends, mark=True, preferred=True)
    dies, _ = await b.dying()
    await b.ask(Take(subject=subject, session=dies, mark=True, preferred=True))
    await a.give(subject, session)
    await a.refused(subject, session)
    assert await b.ask(Unmark(subject, leaves))
    await a.refused(subject, session)
    assert await b.ask(EndSession(ends))
    await a.take_in_time(subject, session)
    assert dies not in await b.living()


@case("sessions")
async def a_mark_says_what_was_said_last(stage: Stage) -> None:
    """A candidate that waits on and is not preferred any more keeps nobody from leading; one that became so does."""
    a, b, c = await desks(stage, 3)
    for wishes in ((True, False), (False, True)):
        subject = fresh("election")
        session, waits, other = await a.start(), await b.start(), await c.start()
        await a.take(subject, session, preferred=True)
        for wish in wishes:
            await b.refused(subject, waits, mark=True, preferred=wish)
        assert (await a.entry(subject)).waiting == 1
        assert (await a.give(subject, session)).waited
        if wishes[-1]:
            await c.refused(subject, other)
            await b.take(subject, waits, preferred=True)
        else:
            await c.take(subject, other)
