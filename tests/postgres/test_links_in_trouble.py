"""Links that die while they are born or soon after, LISTEN that stays down, addresses in trouble, tables that fill up.

Here live tests of connections that cannot be had, or not for long. Theory: a fault is put at one exact instant (the
engine is held there until the network has done its part) or counted, never timed; what must not happen too often is
counted on the links themselves.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, AsyncHold, ConfigurationError, LockBudgetExceeded, StatementFailed
from pgconcert.events import BatchReconciled, ConnectFailed, Event, LinkOpened, StillWaiting
from pgconcert.keys import KeySpace, wake_bucket
from pgconcert.postgres import locks as locks_module
from pgconcert.postgres import waiting
from pgconcert.postgres.link import Link, Rows, Statement
from pgconcert.postgres.statements import PING
from pgconcert.testing import FaultProxy, advisory_locks, eventually, eventually_async, rewrite
from tests.postgres.scenes import (
    QUIET,
    Engine,
    SmallServer,
    both_engines,
    lock_pid,
    raw,
    role_pids,
    seen,
    statements,
    until_marked,
    waiting_for,
)
from tests.servers import OwnServer, Server

_NOWHERE = "postgresql://127.0.0.1:1/x"


# links that die young


async def test_a_link_that_dies_with_the_last_answer_of_its_birth(
    tls_proxy: FaultProxy, server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the last statement of connecting and the end of the connection, read together: the link is not
    used, and the next one is."""
    execute = Link.execute
    cuts = 0

    def cut_behind_the_answer(
        self: Link, sent: Statement, params: tuple[bytes | None, ...] = ()
    ) -> "asyncio.Future[Rows]":
        nonlocal cuts
        before = tls_proxy.bytes_to_client
        answer = execute(self, sent, params)
        if sent is PING and not cuts:
            cuts += 1
            # the loop stands still, so it finds both at once
            eventually(lambda: tls_proxy.bytes_to_client > before, 30)
            tls_proxy.cut(rst=False)
        return answer

    monkeypatch.setattr(Link, "execute", cut_behind_the_answer)
    url = tls_proxy.url(server.over_tcp(database), sslmode="require")
    async with AsyncCoordinator(url, network_timeout=QUIET) as c:
        opened, failed = seen(c, LinkOpened), seen(c, ConnectFailed)
        task = asyncio.create_task(c.lock("young").acquire())
        await asyncio.wait([task], timeout=30)
        assert cuts == 1
        if isinstance(task.exception() if task.done() else None, ConnectionError):
            task = asyncio.create_task(c.lock("young").acquire())  # nothing was ever connected: the first claim is told
        hold = await asyncio.wait_for(task, 30)
        assert [event.server_pid for event in opened] == role_pids(c, "lock")
        assert len(failed) == 1
        await hold.release()


async def test_links_that_die_young_are_not_opened_in_a_tight_loop(
    proxy: FaultProxy, server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However promising each connection is, the pauses before the next grow, as after failures."""
    monkeypatch.setattr("random.random", lambda: 1.0)
    loop = asyncio.get_running_loop()
    times: list[float] = []
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(proxy.url(server.over_tcp(database))) as c,
    ):
        theirs = await outside.lock("theirs").acquire()

        def cut(event: Event) -> None:
            assert isinstance(event, LinkOpened)
            if event.role == "lock" and len(times) < 5:
                times.append(loop.time())
                proxy.cut()

        c.events.subscribe(cut, LinkOpened)
        task = asyncio.create_task(c.lock("theirs").acquire())
        await eventually_async(lambda: len(times) == 5, 60, what="five links were opened")
        pauses = [after - before for before, after in pairwise(times)]
        assert all(pause >= 0.05 * 2**n for n, pause in enumerate(pauses, 1)), pauses
        await theirs.release()
        await (await asyncio.wait_for(task, 60)).release()


# waiting in trouble


def _sisters(database: str) -> tuple[str, str]:
    """Two names whose wake channel is the same."""
    keys = KeySpace("")
    channel = wake_bucket(keys.key("first").value)
    return "first", next(
        name for name in (f"sister {n}" for n in count()) if wake_bucket(keys.key(name).value) == channel
    )


@both_engines
async def test_listen_is_down_for_good(database: str, server: Server, engine: Engine) -> None:
    """LISTEN was heard once and is then down: who begins to wait on the same channel marks and tries all the same."""
    first, second = _sisters(database)
    address = [database]
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(lambda: address[0], engine=engine) as c,
    ):
        theirs = [await outside.lock(key).acquire() for key in (first, second)]
        old = await waiting_for(c, first, database)
        (listening,) = role_pids(c, "listen")
        failed = seen(c, ConnectFailed)
        address[0] = _NOWHERE
        server.kill_backend(listening)
        await eventually_async(lambda: failed)
        new = asyncio.create_task(c.lock(second).acquire())
        await until_marked(database, 2)
        for hold, task in zip(reversed(theirs), (new, old), strict=True):
            await hold.release()
            await (await asyncio.wait_for(task, 30)).release()
        assert {event.role for event in failed} == {"listen"}


async def test_a_marked_waiter_loses_its_links_and_listen_stays_down(database: str, server: Server) -> None:
    """The waiter whose mark is lost with its lock link marks again, although its channel is not heard any more."""
    async with AsyncCoordinator(database) as outside, AsyncCoordinator(database) as c:
        theirs = await outside.lock("theirs").acquire()
        task = await waiting_for(c, "theirs", database)
        killed: list[int] = []

        def kill(event: Event) -> None:
            if isinstance(event, LinkOpened) and event.role == "listen":
                server.kill_backend(event.server_pid)
                killed.append(event.server_pid)

        c.events.subscribe(kill, LinkOpened)
        (listening,), (locking,) = role_pids(c, "listen"), role_pids(c, "lock")
        server.kill_backend(listening)
        await eventually_async(lambda: len(killed) >= 2, what="LISTEN cannot come back")
        server.kill_backend(locking)
        await eventually_async(lambda: locking not in role_pids(c, "lock"))
        await until_marked(database)
        await theirs.release()
        await (await asyncio.wait_for(task, 30)).release()


async def test_long_waits_for_many_keys_cost_one_question_a_look(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many waits are reported, a look costs one try and one question; a free key costs its two statements."""
    keys = 200
    monkeypatch.setattr(waiting, "_RECHECK", 0.1)
    looks = cycles = 0
    ours: object = None
    look_again = waiting.Waiting._look_again

    def counted(self: waiting.Waiting) -> None:
        nonlocal looks
        looks += self is ours
        look_again(self)

    monkeypatch.setattr(waiting.Waiting, "_look_again", counted)
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(database, network_timeout=QUIET) as c,
    ):
        ours = c._backend.locker.waiting  # type: ignore[attr-defined]
        theirs = await asyncio.gather(*(outside.lock(n).acquire() for n in range(keys)))
        tasks = [asyncio.create_task(c.lock(n).acquire()) for n in range(keys)]
        await until_marked(database, keys)
        told = seen(c, StillWaiting)
        monkeypatch.setattr(waiting, "_STILL_WAITING", 0.2)
        before = statements(c, "lock")
        while len({event.key for event in told}) < keys:
            async with c.lock("free", timeout=30):
                cycles += 1
        spent = statements(c, "lock") - before
        assert cycles
        assert spent <= 2 * cycles + 2 * (looks + 1), (spent, cycles, looks)
        assert all(event.holder for event in told)
        for hold in theirs:
            await hold.release()
        for task in tasks:
            await (await asyncio.wait_for(task, 60)).release()


# addresses in trouble


@both_engines
@pytest.mark.parametrize("seconds", ["0", "-1", "", "30"])
async def test_connect_timeout_of_the_address(database: str, engine: Engine, seconds: str) -> None:
    """As in libpq, a `connect_timeout` of 0 or less is none of its own: ours holds."""
    url = rewrite(database, connect_timeout=seconds)
    async with AsyncCoordinator(url, engine=engine) as c, c.lock("timeout", timeout=30):
        assert lock_pid(c)


@both_engines
async def test_connect_timeout_that_is_no_number(database: str, engine: Engine) -> None:
    """The caller is told which parameter is wrong, at once and every time."""
    async with AsyncCoordinator(rewrite(database, connect_timeout="abc"), engine=engine) as c:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"connect_timeout of the address must be a number .*'abc'"):
                await asyncio.wait_for(c.lock("abc").acquire(), 20)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
async def test_options_with_spaces(server: Server, database: str, scheme: str) -> None:
    """Options reach the server whole, from SQLAlchemy's form of the URL too."""
    url = rewrite(database, options="-c work_mem=321kB -c geqo_seed=0.5")
    _, _, rest = url.partition("://")
    async with AsyncCoordinator(f"{scheme}://{rest}", name="options") as c, c.lock("options", timeout=30):
        assert lock_pid(c)


async def test_embedded_folder_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`PGCONCERT_URL` may name the folder of an embedded server."""
    if server.name != "pg18":
        pytest.skip("needs the embedded server")
    folder = Path(str(server.execute("show data_directory")[0][0])).parent.parent
    monkeypatch.setenv("PGCONCERT_URL", f"embedded://{folder}")
    async with AsyncCoordinator() as c, c.lock("environment", timeout=30):
        assert lock_pid(c) in {session.pid for session in server.sessions()}


_PASSWORDS = ["s3cr3t@w0rd", "12/s3cr3t@w0rd", "1@s3cr3t:2/w0rd", "@s3cr3t"]


@both_engines
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
@pytest.mark.parametrize("password", _PASSWORDS)
async def test_no_part_of_a_badly_written_password(
    caplog: pytest.LogCaptureFixture, engine: Engine, scheme: str, password: str
) -> None:
    """An address callable whose URL splits at the wrong place shows no part of its password in any error, log, event,
    repr or health."""
    caplog.set_level(logging.DEBUG)
    url = f"{scheme}://app:{password}@127.0.0.1:1/x"
    async with AsyncCoordinator(lambda: url, engine=engine) as c:
        story: list[Event] = []
        c.events.subscribe(story.append)
        with pytest.raises((ConfigurationError, ConnectionError)) as error:
            await asyncio.wait_for(c.lock("x").acquire(), 30)
        await eventually_async(lambda: story)
        shown = [repr(c), repr(c.health()), repr(error.value), str(error.value.__cause__), repr(story), caplog.text]
        assert not [text for text in shown if "s3cr3t" in text or "w0rd" in text]


# tables that fill up


@contextmanager
def _small(server: OwnServer) -> Iterator[SmallServer]:
    small = SmallServer(f"small {server.name}", server.programs, server.major)  # type: ignore[attr-defined]
    try:
        yield small
    finally:
        small.close()


@pytest.mark.faults
@pytest.mark.parametrize("at_once", [False, True])
async def test_further_links_leave_the_server_room(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """A process that may carry more than the server is stopped by us, and not by the server's full lock table."""
    monkeypatch.setattr(locks_module, "SHARD_SIZE", 30)
    with _small(own_server) as small:
        table = small.LOCKS_PER_TRANSACTION * small.CONNECTIONS
        async with AsyncCoordinator(small.url, max_locks=100_000) as c:
            reconciled = seen(c, BatchReconciled)
            outcomes: list[Any] = []
            if at_once:
                outcomes += await asyncio.gather(*(c.lock(n).acquire() for n in range(8 * 30)), return_exceptions=True)
            else:
                for n in range(8):
                    keys = range(30 * n, 30 * n + 30)
                    outcomes += await asyncio.gather(*(c.lock(k).acquire() for k in keys), return_exceptions=True)
            holds = [outcome for outcome in outcomes if isinstance(outcome, AsyncHold)]
            errors = [outcome for outcome in outcomes if not isinstance(outcome, AsyncHold)]
            assert {(type(error), error.sqlstate) for error in errors} == {(LockBudgetExceeded, "")}
            assert not reconciled
            assert 30 <= len(holds) <= table * 3 // 4
            assert len(advisory_locks(small.url)) == len(holds)
            await asyncio.gather(*(hold.release() for hold in holds))


@both_engines
async def test_locks_that_cannot_be_listed_after_a_failure(server: Server, database: str, engine: Engine) -> None:
    """A batch failed and the server does not even say what it holds: the claims end with the error of the batch."""
    server.execute("create role blind login password 'x'")
    hidden = ["execute on function pg_try_advisory_lock(bigint)", "select on pg_locks"]
    try:
        with raw(database) as admin:
            for privilege in hidden:
                admin.execute(f"revoke {privilege} from public".encode())
        url = rewrite(server.over_tcp(database), user="blind", password="x")
        async with AsyncCoordinator(url, engine=engine) as c:
            claims = (asyncio.wait_for(c.lock(n).acquire(), 30) for n in range(3))
            errors = await asyncio.gather(*claims, return_exceptions=True)
            assert {(type(error), getattr(error, "sqlstate", "")) for error in errors} == {(StatementFailed, "42501")}
            assert all("pg_try_advisory_lock" in str(error) for error in errors)
            await eventually_async(lambda: c.health().locks_waited_for == 0)
    finally:
        with raw(database) as admin:
            for privilege in hidden:
                admin.execute(f"grant {privilege} to public".encode())
        server.execute("drop role blind")
