"""Processes that take from each other through the store itself, and the judge of what the server wrote down.

Here live the judge's own tests, the stress, and two crowds: many who wait, and batches of many names and sessions.
Theory: `takeover_history.py` says what is judged; the interleavings that are rare here are looked at one by one in
`tests/unit/test_takeover_model.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from pgconcert.postgres.sessionstore import PostgresSessionStore
from pgconcert.store import Give, Refused, Subject, Take, Taken
from tests.conftest import Servers
from tests.faults.takeover_director import history_written, staged, totals
from tests.faults.takeover_history import Belief, EntryRow, SessionRow, Told, Version, judge
from tests.faults.takeover_worker import subjects
from tests.needs import debian_servers, need
from tests.poolers import PgBouncer
from tests.postgres.session_scenes import ask, expire, keeping, start
from tests.postgres.store_scenes import database_with_tables
from tests.processes import Worker
from tests.servers import Server

SERVERS: Final = ["pg18", *[name for name in debian_servers() if name != "pg18"]]

LIMIT: Final = 20.0

# The story of the judge's tests: session 1 has a job with token 5, and expires at 100; session 2 takes it after that.
ALIVE: Final = SessionRow(1, 100.0, None, 0)
ENDED: Final = SessionRow(1, 100.0, 110.0, 0)
TAKER: Final = SessionRow(2, 900.0, None, 0)
HELD: Final = EntryRow("job a ", 1, 5, False)
NEXT: Final = EntryRow("job a ", 2, 6, False)
FREE: Final = EntryRow("job a ", None, 5, False)


def told(
    *changes: tuple[SessionRow | EntryRow | None, SessionRow | EntryRow | None], at: float = 90.0
) -> list[Version]:
    """Versions of rows, each of a transaction of its own, all within a second."""
    return [Version(n, n, at + n / 10, at + n / 10 + 0.01, old, new) for n, (old, new) in enumerate(changes, 1)]


BEFORE: Final = [(None, TAKER), (None, ALIVE)]

RIGHT: Final = {
    "ended, then taken": told(*BEFORE, (ALIVE, ENDED), (HELD, NEXT), at=110.0),
    "ended and taken at once": [
        *told(*BEFORE),
        Version(3, 3, 110.0, 110.5, HELD, NEXT),
        Version(4, 3, 110.0, 110.5, ALIVE, ENDED),
    ],
    "ended by its client, then taken": told(*BEFORE, (ALIVE, ENDED._replace(ended=95.0)), (HELD, NEXT), at=100.0),
    "given, then taken": told(*BEFORE, (HELD, FREE._replace(given=True)), (FREE, NEXT)),
    "renewed": told(*BEFORE, (ALIVE, ALIVE._replace(expires=140.0))),
    "taken again": told(*BEFORE, (HELD, HELD._replace(token=6))),
    "revoked": [
        *told(*BEFORE),
        Version(3, 3, 95.0, 95.5, ALIVE, ALIVE._replace(revision=1)),
        Version(4, 3, 95.0, 95.5, HELD, FREE),
    ],
    "forgotten": told(*BEFORE, (ALIVE, ENDED), (HELD, None), (ENDED, None), (None, NEXT), at=110.0),
}

WRONG: Final = {
    "two holders": (told(*BEFORE, (HELD, NEXT)), "taken from a session that had not ended"),
    "ended too late": (told(*BEFORE, (HELD, NEXT), (ALIVE, ENDED)), "taken from a session that had not ended"),
    "ended too early": (
        [
            *told(*BEFORE),
            Version(3, 3, 95.0, 95.5, HELD, NEXT),
            Version(4, 3, 95.0, 95.5, ALIVE, ENDED._replace(ended=95.0)),
        ],
        "taken from a session that was ended before its time",
    ),
    "changed after its end": (
        told(*BEFORE, (ALIVE, ENDED), (ENDED, ENDED._replace(revision=1))),
        "a session changed after its end",
    ),
    "renewed after its time": (
        [*told(*BEFORE), Version(3, 3, 110.0, 110.5, ALIVE, ALIVE._replace(expires=140.0))],
        "a session was renewed that was over",
    ),
    "deleted before its end": (told(*BEFORE, (ALIVE, None)), "a session was deleted that had not ended"),
    "token repeated": (
        told(*BEFORE, (None, HELD), (HELD, HELD._replace(session=None, given=True)), (FREE, HELD)),
        "grow",
    ),
    "token of a new row": (
        told(*BEFORE, (None, NEXT), (NEXT, FREE._replace(given=True)), (FREE, None), (None, NEXT)),
        "a token does not grow",
    ),
    "for the dead": ([*told(*BEFORE), Version(3, 3, 110.0, 110.5, None, HELD)], "taken for a session that was over"),
    "revoked silently": (told(*BEFORE, (HELD, FREE)), "was not told"),
}

SINCE: Final = Belief("job a ", 1, 5, 80.0, 90.0, 0.0)
REVOKED: Final = {"job a ": [96.0]}

WRONG_BELIEFS: Final = {
    "trusts too long": (RIGHT["ended, then taken"], Told([SINCE._replace(until=130.0)]), "before the trust was over"),
    "does not listen": (
        RIGHT["revoked"],
        Told([SINCE._replace(confirmed=97.0)], REVOKED),
        "after a heartbeat that tells of the revocation",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_judge_finds_nothing(name: str) -> None:
    assert judge(RIGHT[name], Told([SINCE], REVOKED)).wrong == []


@pytest.mark.parametrize("name", WRONG)
def test_the_judge_finds(name: str) -> None:
    history, what = WRONG[name]
    wrong = judge(history).wrong
    assert [what in one for one in wrong] == [True]


@pytest.mark.parametrize("name", WRONG_BELIEFS)
def test_the_judge_finds_who_trusts_wrongly(name: str) -> None:
    history, clients, what = WRONG_BELIEFS[name]
    (wrong,) = judge(history, clients).wrong
    assert what in wrong


@pytest.fixture
def stress(request: pytest.FixtureRequest, worker: Callable[..., Worker], tmp_path: Path) -> Callable[..., None]:
    """`stress(server, seconds, pooled=..., cuts=...)` runs it, and fails by what the judge finds."""

    def run(server: Server, seconds: float, *, pooled: bool, cuts: float) -> None:
        with history_written(server) as url:
            with ExitStack() as stack:
                pooler, through = None, None
                if pooled:
                    pooler = PgBouncer(need(request.config, "pgbouncer"), server, url, "transaction", pool_size=6)
                    stack.callback(pooler.close)
                    through = pooler.url
                with staged(server, url, worker, tmp_path, through=through, cuts=cuts) as stage:
                    stage.disturb(seconds, seconds)
                    verdict = stage.finish()
                # it says so when a server that it has given away answers the client before
                assert pooler is None or "when not linked" not in pooler.log
            assert verdict.wrong == [], f"{len(verdict.wrong)} wrong, of {verdict.counts}"
            for what in ("taken over", "renewed", "revoked", "given", "trusted"):
                assert verdict.counts[what] > seconds, (verdict.counts, stage.done)
            counted = totals(url)
            assert counted.deadlocks == 0
            if not cuts:  # or a statement that goes on alone is in the way of the next one of its own client
                assert stage.done["waiting"] == 0
                # who connects through a pooler opens a transaction to see what it is, and undoes it
                assert pooled or counted.rollbacks == 0, "a statement failed"
            asyncio.run(everything_can_be_had(url))

    return run


async def everything_can_be_had(url: str) -> None:
    """Nothing hangs on anything for ever: whoever comes now gets it all, as soon as the last sessions are over."""
    async with keeping(url) as store:
        session = await start(store)

        async def all_taken() -> bool:
            answers = await asyncio.gather(*(ask(store, Take(subject=one, session=session)) for one in subjects()))
            return all(isinstance(answer, Taken) for answer in answers)

        async with asyncio.timeout(LIMIT):
            while not await all_taken():
                await asyncio.sleep(0.01)


def test_no_two_holders(stress: Callable[..., None], server: Server) -> None:
    stress(server, 2.0, pooled=False, cuts=0.0)


@pytest.mark.needs("pgbouncer")
def test_no_two_holders_through_a_pooler_with_lost_answers(stress: Callable[..., None], server: Server) -> None:
    stress(server, 2.0, pooled=True, cuts=0.02)


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("cuts", [0.0, 0.03], ids=["", "cuts"])
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
@pytest.mark.parametrize("name", SERVERS)
def test_no_two_holders_for_long(
    stress: Callable[..., None], server: Server, servers: Servers, name: str, pooled: bool, cuts: float
) -> None:
    stress(server if name == server.name else servers.get(name), 20.0, pooled=pooled, cuts=cuts)


@asynccontextmanager
async def stores(url: str, count: int) -> AsyncGenerator[list[PostgresSessionStore]]:
    """Several, each with a link of its own, as several processes have."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(keeping(url)) for _ in range(count)]


class Bell:
    """Wakes all who wait in vain, and nobody looks without it."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    def next(self) -> asyncio.Event:
        return self._rung


async def test_whoever_waits_is_woken(server: Server) -> None:
    with database_with_tables(server) as url:
        bell, inside, served = Bell(), 0, list[int]()

        async def wait_and_give(store: PostgresSessionStore, subject: Subject) -> None:
            nonlocal inside
            session = await start(store)
            while True:
                rung = bell.next()
                answer = await ask(store, Take(subject=subject, session=session, mark=True))
                if isinstance(answer, Taken):
                    break
                if answer.marked:
                    await rung.wait()
            inside += 1
            assert inside == 1
            served.append(answer.token)
            await asyncio.sleep(0)
            inside -= 1
            given = await ask(store, Give(subject=subject, session=session, token=answer.token))
            assert given.ours
            if given.waited:
                bell.ring()

        async with stores(url, 3) as all_stores, asyncio.TaskGroup() as tasks:
            # the name is there, because an insert may wait for another insert of the same name
            await wait_and_give(all_stores[0], Subject("job", "", "a"))
            for place in range(60):
                tasks.create_task(wait_and_give(all_stores[place % 3], Subject("job", "", "a")))
        assert len(served) == 61
        assert sorted(set(served)) == served
        assert totals(url).rollbacks == 0


async def test_batches_of_names_and_sessions(server: Server) -> None:
    with database_with_tables(server) as url:
        async with stores(url, 3) as all_stores:
            tokens: dict[Subject, int] = {}
            for turn in range(12):
                # names that are new, and names on sessions that are over, some of which had only one
                names = [Subject("job", "", f"{number}") for number in range(20 * (turn + 1))]
                sessions = [[await start(store) for _ in range(4)] for store in all_stores]
                wishes = [
                    (store, Take(subject=name, session=random.choice(ours)))
                    for store, ours in zip(all_stores, sessions, strict=True)
                    for name in names
                ]
                random.shuffle(wishes)
                answers = await asyncio.gather(*(ask(store, wish) for store, wish in wishes))
                for (_, wish), answer in zip(wishes, answers, strict=True):
                    if isinstance(answer, Taken):
                        assert answer.token > tokens.get(wish.subject, 0)
                        tokens[wish.subject] = answer.token
                    else:
                        assert isinstance(answer, Refused)
                        assert not answer.over
                taken = [
                    wish.subject for (_, wish), answer in zip(wishes, answers, strict=True) if isinstance(answer, Taken)
                ]
                assert len(taken) == len(set(taken)), "one name has two holders"
                expire(url, *(session for ours in sessions for session in ours))
            assert len(tokens) > 200
        # rollbacks are not counted: an insert that waits too long for another insert of its name is rolled back and
        # tried again, as is lawful where a server process is kept from work for a tenth of a second
        assert totals(url).deadlocks == 0
