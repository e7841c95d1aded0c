"""Requests about sessions that were carried out, and whose answers nobody heard.

Theory. Every request may be asked again after ``Unavailable``: what the first one did is found, not done twice. A row
of ``STORIES`` says what is asked, how the server shows that it was carried out, and what the second answer is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.errors import Unavailable
from pgconcert.store import (
    CreateGroup,
    DeleteGroup,
    EndSession,
    Give,
    Given,
    Own,
    Owned,
    Renew,
    Request,
    RequestRelease,
    Revoke,
    StartSession,
    Take,
    Taken,
    Unmark,
    Update,
)
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.jobscenes import make_tables, row
from tests.postgres.session_scenes import ask, expire, keeping, named, rows, start, take
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Scene:
    """A session that has the job a, with this token; another that waits for it; the group g."""

    session: int
    token: int
    waits: int


@dataclass(frozen=True)
class Story:
    """``done``: a query that is true once it was carried out. ``again``: what is right for an answer to the second."""

    request: Callable[[Scene], Request[Any]]
    done: str
    again: Callable[[Scene, Any], bool]


JOB: Final = named("a")
GROUP: Final = named("g", "group")
STORIES: Final = {
    "start": Story(
        lambda _: StartSession(uuid="lost", ttl=9.0, host="h", pid=1, application="tests"),
        "select exists (select from pgconcert.session where uuid = 'lost')",
        lambda at, number: number > max(at.session, at.waits),
    ),
    "renew": Story(
        lambda at: Renew((at.session,)),
        "select expires > clock_timestamp() + interval '500 seconds' from pgconcert.session order by id limit 1",
        lambda at, found: found == {at.session: 0},
    ),
    "take": Story(
        lambda at: Take(subject=named("b"), session=at.session),
        "select exists (select from pgconcert.entry where name = 'b')",
        # drawn anew, as every take does
        lambda at, taken: isinstance(taken, Taken) and taken.token % 2**48 == 2,
    ),
    "give": Story(
        lambda at: Give(subject=JOB, session=at.session, token=at.token),
        "select session_id is null from pgconcert.entry where name = 'a'",
        # whoever waits is to be woken still
        lambda at, given: given == Given(ours=False, waited=True),
    ),
    "end": Story(
        lambda at: EndSession(at.session),
        "select exists (select from pgconcert.session where ended is not null)",
        lambda at, ended: ended is False,
    ),
    "unmark": Story(
        lambda at: Unmark(JOB, at.waits),
        "select not exists (select from pgconcert.waiting)",
        lambda at, removed: removed is False,
    ),
    "update": Story(
        lambda at: Update(subject=JOB, session=at.session, token=at.token, data="[1]"),
        "select data is not null from pgconcert.entry where name = 'a'",
        lambda at, ours: ours is True,
    ),
    "request of release": Story(
        lambda at: RequestRelease(JOB),
        "select release_requested from pgconcert.entry where name = 'a'",
        lambda at, there: there is True,
    ),
    "revoke": Story(
        lambda at: Revoke(JOB),
        "select session_id is null from pgconcert.entry where name = 'a'",
        lambda at, there: there is False,
    ),
    "create group": Story(
        lambda _: CreateGroup(named("new", "group")),
        "select exists (select from pgconcert.entry where name = 'new')",
        lambda at, made: made is False,
    ),
    "delete group": Story(
        lambda _: DeleteGroup(GROUP),
        "select not exists (select from pgconcert.entry where kind = 'group')",
        lambda at, found: found == "missing",
    ),
}


@pytest.mark.parametrize("name", STORIES)
async def test_asked_again(server: Server, proxy: FaultProxy, name: str) -> None:
    story = STORIES[name]
    with database_with_tables(server) as url:
        async with keeping(proxy.url(server.over_tcp(url))) as store:
            session, waits = [await start(store) for _ in range(2)]
            taken = await take(store, JOB, session)
            await ask(store, Take(subject=JOB, session=waits, mark=True))
            await ask(store, CreateGroup(GROUP))
            scene = Scene(session, taken.token, waits)
            expire(url, session, waits, by="-100 seconds")
            assert rows(url, story.done) == [(False,)]
            proxy.pause("to_client")
            unheard = ask(store, story.request(scene))
            await eventually_async(lambda: rows(url, story.done) == [(True,)], what="it is done")
            assert not unheard.done()
            proxy.cut()
            proxy.resume()
            with pytest.raises(Unavailable, match="the link died before the server confirmed the"):
                await unheard
            again = await ask(store, story.request(scene))
            assert story.again(scene, again), again


async def test_a_revocation_is_told_once(server: Server, proxy: FaultProxy) -> None:
    """Asked twice, it raises the revision once, and takes nothing from whoever came in between."""
    with database_with_tables(server) as url:
        async with keeping(proxy.url(server.over_tcp(url))) as far, keeping(url) as near:
            one, two = [await start(near) for _ in range(2)]
            await take(near, JOB, one)
            assert not await ask(far, Revoke(named("other")))
            proxy.pause("to_client")
            unheard = ask(far, Revoke(JOB))
            await eventually_async(lambda: rows(url, "select session_id from pgconcert.entry") == [(None,)])
            proxy.cut()
            proxy.resume()
            with pytest.raises(Unavailable):
                await unheard
            assert not await ask(far, Revoke(JOB))
            assert await ask(near, Renew((one,))) == {one: 1}
            assert await ask(near, Own(one)) == ()
            again = await take(near, JOB, two)
            assert await ask(near, Own(two)) == (Owned(JOB, again.token, False),)


async def test_a_close_whose_answers_are_cut_off_leaves_nothing(server: Server, database: str, unique: str) -> None:
    """Whoever closes and hears no answer is gone all the same, at once, and not after a ttl of a minute."""
    make_tables(database)
    with FaultProxy.to(server.tcp_url) as proxy:
        async with AsyncCoordinator(proxy.url(server.over_tcp(database)), network_timeout=30.0) as far:
            hold = await far.job_lock(unique, ttl=60, interval=20).acquire()
            proxy.pause("to_client")
            closing = asyncio.create_task(far.close())
            await eventually_async(lambda: row(database, unique).session is None, 30, what="it is given back")
            proxy.cut()
            proxy.resume()
            await closing
            assert hold.lost
    async with AsyncCoordinator(database) as near, near.job_lock(unique) as mine:
        assert not mine.lost
