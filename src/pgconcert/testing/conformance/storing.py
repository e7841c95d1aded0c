"""Cases of sessions: how long they live, what can be taken for them, and who has it then. At the port ``Store``."""

from __future__ import annotations

import asyncio

from ... import CoordinatorClosed, Unavailable
from ...store import (
    COUNTER_BITS,
    MAX_EPOCH,
    EndSession,
    Give,
    Refused,
    Renew,
    Request,
    Revoke,
    Take,
    Taken,
    Update,
)
from ..leaks import eventually_async
from .desks import LONG, desk, desks, fresh
from .reading import insist
from .suite import Stage, case


@case("sessions")
async def a_session_is_shown_as_it_was_started(stage: Stage) -> None:
    """Everybody sees a session that lives with what it said of itself; no two have one number."""
    a, b = await desks(stage)
    first, second = await a.start(7.5, '{"a":"ü"}'), await a.start(LONG)
    b.uuid = a.uuid
    living = await b.living()
    assert [*living] == sorted({first, second})
    info = living[first]
    assert (info.uuid, info.host, info.pid, info.application) == (a.uuid, "host", 7, "case")
    assert (info.data, info.ttl, info.identity) == ('{"a":"ü"}', 7.5, f"{a.uuid}.host")
    assert 0 < info.expires_in <= 7.5
    assert living[second].data is None
    assert info.started <= living[second].started


@case("sessions")
async def a_renewal_counts_from_now(stage: Stage) -> None:
    """A renewed session lives for its whole time to live from then on, and never for longer."""
    a = await desk(stage)
    session = await a.start(LONG)

    async def left() -> float:
        return (await a.living())[session].expires_in

    async def passed() -> bool:
        return await left() < LONG - 0.2

    async def renewed() -> bool:
        assert await a.revision(session) == 0
        return LONG - 0.2 < await left() <= LONG

    await eventually_async(passed, what="time passes")
    await eventually_async(renewed, what="after a renewal there is as much left as at first")


@case("sessions")
async def what_is_over_never_comes_back(stage: Stage) -> None:
    """A session whose time has passed is not renewed, shown, or given anything, though nobody has ended it."""
    a = await desk(stage)
    subject = fresh()
    session, _ = await a.dying(subject)
    await a.over(session)
    for _ in range(3):
        assert await a.ask(Renew((session,))) == {session: None}
    assert session not in await a.living()
    assert (await a.refused(subject, session)).over
    assert (await a.refused(fresh(), session, mark=True)).over
    assert not (await a.give(subject, session)).ours
    assert not await a.ask(EndSession(session))


@case("sessions")
async def all_are_renewed_together(stage: Stage) -> None:
    """One request renews many sessions; it tells the revision of each that lives, and of the others that they are
    over, ended, expired or never there."""
    a = await desk(stage)
    dead, _ = await a.dying()
    living = [await a.start() for _ in range(20)]
    ended = await a.start()
    assert await a.ask(EndSession(ended))
    await a.over(dead)
    unknown = max(living) + 10**9
    expected = dict.fromkeys(living, 0) | dict.fromkeys((ended, dead, unknown))
    assert await a.ask(Renew((unknown, *reversed(living), ended, dead))) == expected
    assert await a.ask(Renew(())) == {}


@case("sessions")
async def an_ended_session_lets_go_of_everything(stage: Stage) -> None:
    """All that hung on a session that was ended is free at once; ending it again says that it was over."""
    a, b = await desks(stage)
    subjects = [fresh(), fresh("election"), fresh("member", "group", "id"), fresh()]
    session, other = await a.start(), await b.start()
    for subject in subjects:
        await a.take(subject, session, hold_at_least=LONG)
    assert {*await a.own(session)} == {*subjects}
    assert await a.ask(EndSession(session))
    assert not await a.ask(EndSession(session))
    assert await a.own(session) == {}
    for subject in subjects:
        assert not (await a.give(subject, session)).ours
        await b.take(subject, other)
    assert {*await b.own(other)} == {*subjects}


@case("sessions")
async def one_session_has_it(stage: Stage) -> None:
    """What a session has taken is refused to every other, of another coordinator or the same, with word of who has it
    and how long that can last; who is refused changes nothing."""
    a, b = await desks(stage)
    subject = fresh()
    session, sibling, other = await a.start(100.0), await a.start(), await b.start()
    taken = await a.take(subject, session)
    for who, rival in ((a, sibling), (b, other)):
        refused = await who.refused(subject, rival)
        assert refused.holder is not None
        assert (refused.holder.id, refused.holder.uuid, refused.holder.ttl) == (session, a.uuid, 100.0)
        assert refused.retry_in is not None
        assert 0 < refused.retry_in <= 100.0
        assert not refused.over
        assert not refused.marked
        assert await who.own(rival) == {}
    assert (await a.own(session))[subject].token == taken.token
    assert (await a.give(subject, session, taken.token)).ours
    await b.take(subject, other)


@case("sessions")
async def siblings_are_independent(stage: Stage) -> None:
    """Two sessions of one process live, and have what they have, independently of each other."""
    a = await desk(stage)
    one, two = await a.start(), await a.start()
    mine, yours = fresh(), fresh()
    await a.take(mine, one)
    taken = await a.take(yours, two)
    assert not (await a.give(yours, one)).ours
    assert await a.ask(EndSession(one))
    assert await a.ask(Renew((one, two))) == {one: None, two: 0}
    assert (await a.own(two))[yours].token == taken.token
    await a.take(mine, two)


@case("sessions")
async def who_has_it_may_take_it_again(stage: Stage) -> None:
    """A session takes again what it has, with a new token; the old token is not ours any more."""
    a = await desk(stage)
    subject = fresh()
    session = await a.start()
    first = await a.take(subject, session, data='"first"', hold_at_least=LONG)
    second = await a.take(subject, session, data='"second"')
    assert second.token > first.token
    assert second.since >= first.since
    assert (await a.own(session))[subject].token == second.token
    assert (await a.entry(subject)).data == '"second"'
    assert not (await a.give(subject, session, first.token)).ours
    assert not await a.ask(Update(subject=subject, session=session, token=first.token, data=None))
    assert (await a.give(subject, session, second.token)).ours
    await a.take(subject, session)


@case("sessions")
async def tokens_grow(stage: Stage) -> None:
    """Every take of a name has a larger token than the one before, however the name became free; high bits are an
    epoch, and it fits 63 bits."""
    a, b = await desks(stage)
    subject = fresh("election")
    session = await a.start()
    tokens = [(await a.take(subject, session)).token]
    await a.give(subject, session)
    tokens.append((await a.take(subject, session)).token)
    assert await b.ask(Revoke(subject))
    other = await b.start()
    tokens.append((await b.take(subject, other)).token)
    await b.ask(EndSession(other))
    dead, taken = await b.dying(subject)
    tokens.append(taken[0].token)
    await a.over(dead)
    tokens.append((await a.take(subject, session)).token)
    assert tokens == sorted(set(tokens))
    assert all(1 <= token >> COUNTER_BITS <= MAX_EPOCH for token in tokens)


@case("sessions")
async def what_is_over_is_taken_over(stage: Stage) -> None:
    """What hangs on a session whose time has passed is taken by the next who asks, and not before; of the old session
    nothing comes back, and each of its names is free on its own."""
    a, b = await desks(stage)
    subject, besides = fresh(), fresh()
    dead, (taken, _) = await a.dying(subject, besides)
    heir = await b.start()
    since = (await b.take_in_time(subject, heir)).since
    assert await a.ask(Renew((dead,))) == {dead: None}
    assert not (await a.give(subject, dead, taken.token)).ours
    assert not await a.ask(Update(subject=subject, session=dead, token=taken.token, data=None))
    assert await a.own(dead) == {}
    assert (await b.entry(subject)).since == since > taken.since
    assert subject in await b.own(heir)
    await b.take(besides, heir)


@case("sessions")
async def nobody_overtakes_time(stage: Stage) -> None:
    """A name is refused as long as its holder is renewed, longer than the first time to live; not renewed, it loses it
    and is not renewed any more."""
    a, b = await desks(stage)
    subject = fresh()
    heir = await b.start()
    session, _ = await a.dying(subject)
    witness = await a.start((await a.living())[session].ttl)
    renewed = True
    while renewed and witness in await a.living():
        answer = await b.ask(Take(subject=subject, session=heir))
        renewed = await a.seen(session) is not None
        if renewed:
            assert isinstance(answer, Refused), answer
            assert answer.holder is None or answer.holder.id == session
    await b.take_in_time(subject, heir)
    assert await a.seen(session) is None


@case("sessions")
async def of_many_one_has_it(stage: Stage) -> None:
    """When many sessions ask at once for what has just become free, one gets it; time and again."""
    all_of_them = await desks(stage, 4)
    sessions = [[await one.start() for _ in range(5)] for one in all_of_them]
    subject = fresh()
    tokens: list[int] = []
    for _ in range(10):
        answers = await asyncio.gather(
            *(
                one.together([Take(subject=subject, session=session) for session in ours])
                for one, ours in zip(all_of_them, sessions, strict=True)
            )
        )
        taken = [
            (one, session, answer.token)
            for one, ours, found in zip(all_of_them, sessions, answers, strict=True)
            for session, answer in zip(ours, found, strict=True)
            if isinstance(answer, Taken)
        ]
        assert len(taken) <= 1, taken
        if not taken:
            continue  # all were at it in one instant, and nobody waits for anybody
        ((one, session, token),) = taken
        tokens.append(token)
        assert (await one.give(subject, session, token)).ours
    assert tokens == sorted(set(tokens))
    session = sessions[0][0]
    await all_of_them[0].take(subject, session)


@case("sessions")
async def a_dead_session_has_one_heir(stage: Stage) -> None:
    """When many ask at once for a name of a session that is over, one gets it, and each other name of that session can
    be had as well."""
    a, *others = await desks(stage, 4)
    subjects = [fresh(name=f"name {number}") for number in range(8)]
    dead, _ = await a.dying(*subjects)
    heirs = [await one.start() for one in others]
    await a.over(dead)
    await asyncio.gather(
        *(
            one.together([Take(subject=subject, session=heir) for subject in subjects])
            for one, heir in zip(others, heirs, strict=True)
        )
    )
    for subject in subjects:
        owners = [heir for one, heir in zip(others, heirs, strict=True) if subject in await one.own(heir)]
        assert len(owners) <= 1, f"{subject} hangs on {owners}"
        if not owners:
            await others[0].take(subject, heirs[0])


@case("sessions")
async def many_are_taken_at_once(stage: Stage) -> None:
    """Of many takes handed in at once each has its own answer: what is free is taken, what others have is refused, and
    of two for one name one is served first."""
    a, b = await desks(stage)
    one, two, other = await a.start(), await a.start(), await b.start()
    free = [fresh(name=f"free {number}") for number in range(50)]
    held = [fresh(name=f"held {number}") for number in range(50)]
    for subject in held:
        await b.take(subject, other)
    requests: list[Request[Taken | Refused]] = []
    for subject, in_vain in zip(free, held, strict=True):
        requests.append(Take(subject=subject, session=one))
        requests.append(Take(subject=in_vain, session=two))
        requests.append(Take(subject=subject, session=two))
    answers = await a.together(requests)
    for number, subject in enumerate(free):
        ours, others, late = answers[3 * number : 3 * number + 3]
        assert isinstance(ours, Taken), ours
        assert isinstance(others, Refused), others
        assert others.holder is not None
        assert others.holder.id == other
        assert isinstance(late, Refused), late
        assert late.holder is None or late.holder.id == one
        assert (await a.entry(subject)).token == ours.token
    assert {*await a.own(one)} == {*free}
    assert await a.own(two) == {}
    given = await a.together([Give(subject=subject, session=one) for subject in free])
    assert all(one.ours for one in given)


@case("sessions")
async def one_name_asked_for_twice_at_once(stage: Stage) -> None:
    """A session that asks twice at once for one name gets it twice, and the larger of the tokens counts."""
    a = await desk(stage)
    subject = fresh()
    session = await a.start()
    answers = await a.together([Take(subject=subject, session=session) for _ in range(5)])
    tokens = [answer.token for answer in answers if isinstance(answer, Taken)]
    assert len({*tokens}) == 5
    assert (await a.own(session))[subject].token == max(tokens)
    assert (await a.give(subject, session, max(tokens))).ours
    assert not (await a.give(subject, session)).ours


@case("sessions")
async def a_gift_is_of_what_is_ours(stage: Stage) -> None:
    """Giving frees what hangs on this session with this token, once; anything else is not ours and stays."""
    a, b = await desks(stage)
    subject = fresh()
    session, sibling, other = await a.start(), await a.start(), await b.start()
    assert not (await a.give(subject, session)).ours
    taken = await a.take(subject, session)
    for token in (taken.token - 1, taken.token + 1):
        assert not (await a.give(subject, session, token)).ours
    assert not (await a.give(subject, sibling, taken.token)).ours
    assert not (await b.give(subject, other)).ours
    assert subject in await a.own(session)
    given = await a.together([Give(subject=subject, session=session, token=taken.token) for _ in range(3)])
    assert sum(one.ours for one in given) == 1
    assert (await a.entry(subject)).session is None
    again = await a.take(subject, session)
    assert not (await a.give(subject, session, taken.token)).ours
    assert (await a.own(session))[subject].token == again.token


@case("sessions", "lose")
async def a_lost_connection_ends_no_session(stage: Stage) -> None:
    """When a connection is lost, sessions and what hangs on them are as before; who had no answer may ask again."""
    a, b = await desks(stage)
    subject, next_one = fresh(), fresh()
    session, other = await a.start(), await b.start()
    taken = await a.take(subject, session)
    await stage.lose(a.coordinator)
    assert (await b.refused(subject, other)).holder is not None
    assert await insist(lambda: a.revision(session)) == 0
    assert (await insist(lambda: a.own(session)))[subject].token == taken.token
    asked = asyncio.create_task(a.together([Take(subject=next_one, session=session)]))
    await stage.lose(a.coordinator)
    await asyncio.wait([asked])
    assert asked.exception() is None or isinstance(asked.exception(), Unavailable)
    assert (await insist(lambda: a.take(next_one, session))).token
    assert (await insist(lambda: a.give(subject, session, taken.token))).ours


@case("sessions")
async def a_close_answers_everybody(stage: Stage) -> None:
    """Whoever asks while the coordinator is closed gets an answer or an error, and sessions stay until their time is
    over."""
    a, b = await desks(stage)
    session, other = await a.start(), await b.start()
    subjects = [fresh(name=str(number)) for number in range(20)]
    await a.take(subjects[0], session)
    asked = [asyncio.create_task(a.ask(Take(subject=subject, session=session))) for subject in subjects]
    closing = asyncio.create_task(a.coordinator.close())
    found = await asyncio.gather(*asked, return_exceptions=True)
    await closing
    assert all(isinstance(one, Taken | Refused | CoordinatorClosed | Unavailable) for one in found), found
    assert (await b.refused(subjects[0], other)).holder is not None
