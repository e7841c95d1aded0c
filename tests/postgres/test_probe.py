"""What a fresh link finds at its other end, and what it makes of it: poolers, standbys, hostile settings.

Here live tests of `postgres/probe.py` and of what the keeper refuses. Theory: a pooler shares its server sessions, so
other clients of it are looked at before and after; settings are read back from the link's own session.
"""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import AsyncCoordinator
from pgconcert.errors import PgconcertError, PoolerRefused, StandbyRefused, Unavailable
from pgconcert.events import ConnectFailed, LinkOpened, SettingRefused
from pgconcert.postgres import probe
from pgconcert.postgres.keeper import Keeper
from pgconcert.postgres.link import Link
from pgconcert.postgres.probe import Proof
from pgconcert.testing import FaultProxy, eventually_async, rewrite
from tests.poolers import PgBouncer
from tests.postgres.scenes import ask, context, lock_pid, seen, waiting_for
from tests.servers import Cluster, Server

_HOSTILE = {
    "statement_timeout": "'150ms'",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'100ms'",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "search_path": "'somewhere'",
    "client_encoding": "'LATIN1'",
    "bytea_output": "'escape'",
    "row_security": "off",
    "timezone": "'Pacific/Chatham'",
}
_HOSTILE_SINCE = {14: {"idle_session_timeout": "'300ms'"}, 17: {"transaction_timeout": "'200ms'"}}
_WANTED = {
    "statement_timeout": "0",
    "lock_timeout": "100ms",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
    "transaction_deferrable": "off",
    "synchronous_commit": "on",
    "search_path": "",
    "client_encoding": "UTF8",
    "client_connection_check_interval": "5s",
}


class Found:
    """The owner of a keeper: keeps what it is told."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.proof: Proof | None = None
        self.failures: list[PgconcertError] = []

    def link_up(self, link: Link, proof: Proof) -> None:
        """A link was proven."""
        self.link, self.proof = link, proof

    def link_down(self, reason: str) -> None:
        """The link is gone."""
        self.link = None

    def connect_failed(self, error: PgconcertError) -> None:
        """An attempt failed."""
        self.failures.append(error)


@contextmanager
def hostile_role(server: Server, url: str) -> Generator[str]:
    """A URL with a role whose defaults break everybody who trusts defaults."""
    name = "hostile"
    server.execute(f"create role {name} login superuser password 'x'")
    settings = dict(_HOSTILE)
    for major, more in _HOSTILE_SINCE.items():
        settings.update(more if server.major >= major else {})
    try:
        for setting, value in settings.items():
            server.execute(f"alter role {name} set {setting} = {value}")
        yield rewrite(server.over_tcp(url), user=name, password="x")
    finally:
        server.execute(f"drop role {name}")


async def test_hostile_defaults(server: Server, database: str) -> None:
    """Whatever role and database set, a link has the settings it needs, and lives longer than any hostile limit."""
    with hostile_role(server, database) as url:
        owner = Found()
        keeper = Keeper(context(url), "lock", owner)
        refused: list[object] = []
        keeper.context.events.subscribe(refused.append, SettingRefused)
        keeper.want()
        await eventually_async(lambda: owner.link, 50)
        link = owner.link
        assert link is not None
        names = list(_WANTED)
        rows = await ask(link, f"select {', '.join(f'current_setting($${name}$$)' for name in names)}")
        assert {name: (value or b"").decode().strip('"') for name, value in zip(names, rows[0], strict=True)} == _WANTED
        if server.major >= 17:
            assert await ask(link, "show transaction_timeout") == [(b"0",)]
        assert await ask(link, "select pg_sleep(0.5), 'é'") == [(b"", "é".encode())]
        assert refused == []
        await keeper.close()


@pytest.mark.parametrize("setting", ["statement_timeout", "transaction_timeout"])
async def test_tiny_time_limit(server: Server, database: str, setting: str) -> None:
    """A role whose statements end after a few milliseconds can still coordinate, perhaps at the second attempt."""
    if setting == "transaction_timeout" and server.major < 17:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    server.execute("create role hasty login superuser password 'x'")
    try:
        server.execute(f"alter role hasty set {setting} = '20ms'")
        owner = Found()
        keeper = Keeper(context(rewrite(server.over_tcp(database), user="hasty", password="x")), "lock", owner)
        keeper.want()
        # 20 ms are over soon on a busy machine, and then the attempt is in vain
        await eventually_async(lambda: owner.link, 50)
        assert owner.link is not None
        assert await ask(owner.link, "select pg_sleep(0.05)") == [(b"",)]
        await keeper.close()
    finally:
        server.execute("drop role hasty")


async def test_direct(server: Server, database: str) -> None:
    """Without a pooler the proof says so, and knows the server."""
    owner = Found()
    keeper = Keeper(context(database), "lock", owner)
    keeper.want()
    await eventually_async(lambda: owner.proof)
    proof = owner.proof
    assert proof is not None
    assert (proof.through, proof.standby) == ("direct", False)
    identifier = server.execute("select system_identifier from pg_control_system()")[0][0]
    assert proof.incarnation == (identifier, 1)
    asked = "select current_setting('max_locks_per_transaction')::int * (current_setting('max_connections')::int"
    assert proof.lock_table == server.execute(f"{asked} + current_setting('max_prepared_transactions')::int)")[0][0]
    await keeper.close()


@pytest.fixture
def patient_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooler on a busy machine is not taken for one that keeps its clients waiting."""
    monkeypatch.setattr(probe, "_PATIENCE", 3.0)
    monkeypatch.setattr(probe, "_SOON", 3.0)


@pytest.mark.usefixtures("patient_probe")
@pytest.mark.needs("pgbouncer")
async def test_session_pooler(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """A pooler in session mode is as good as the server: it is recognised, and locks are waited for through it."""
    pooled = pgbouncer("session", pool_size=10)
    async with AsyncCoordinator(pooled.url) as through, AsyncCoordinator(database) as direct:
        opened = seen(through, LinkOpened)
        async with direct.lock("pooled"):
            task = await waiting_for(through, "pooled", database)
        await (await task).release()
        assert {event.through for event in opened} == {"session pooler"}


@pytest.mark.needs("pgbouncer")
async def test_session_pooler_with_one_session(
    database: str, pgbouncer: Callable[..., PgBouncer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session pooler that has a single session for us is still recognised."""
    monkeypatch.setattr(probe, "_SOON", 3.0)
    pooled = pgbouncer("session", pool_size=1)
    async with AsyncCoordinator(pooled.url) as c:
        opened = seen(c, LinkOpened)
        async with c.lock("alone", timeout=40):
            assert [event.through for event in opened] == ["session pooler"]


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("pool_size", [1, 4])
async def test_transaction_pooler_is_refused(
    database: str, pgbouncer: Callable[..., PgBouncer], pool_size: int
) -> None:
    """Locks through a transaction pooler would exclude nobody: the first use says so and names the way out."""
    pooled = pgbouncer("transaction", pool_size=pool_size)
    async with AsyncCoordinator(pooled.url) as c:
        with pytest.raises(PoolerRefused, match="direct_url"):
            await c.lock("pooled").acquire()
        assert await _is_free(database, "pooled")


@pytest.mark.needs("pgbouncer")
async def test_transaction_pooler_with_several_sessions_in_use(
    database: str, pgbouncer: Callable[..., PgBouncer]
) -> None:
    """It is recognised while other clients keep its sessions changing hands."""
    pooled = pgbouncer("transaction", pool_size=4)
    with _several_clients(pooled.url, 3):
        async with AsyncCoordinator(pooled.url) as c:
            with pytest.raises(PoolerRefused):
                await c.lock("pooled").acquire()


@pytest.mark.needs("pgbouncer")
async def test_a_crowd_at_a_transaction_pooler(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Ten that come at once for two sessions, so that none is left for a second connection: all know what it is."""
    pooled = pgbouncer("transaction", pool_size=2)
    coordinators = [AsyncCoordinator(pooled.url) for _ in range(10)]
    for c in coordinators:
        await c.open()
    try:
        await asyncio.gather(*(c.publish("crowd", "x") for c in coordinators for _ in range(20)))
        found = {link.through for c in coordinators for link in c.health().links if link.role == "publish"}
        assert found == {"transaction pooler"}
    finally:
        for c in coordinators:
            await c.close()


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_a_pooler_whose_mode_cannot_be_told(
    database: str, pgbouncer: Callable[..., PgBouncer], mode: str
) -> None:
    """It lets no second connection in: whatever it is, no lock is granted through it."""
    pooled = pgbouncer(mode, max_client_conn="1")
    async with AsyncCoordinator(pooled.url) as c:
        with pytest.raises(Unavailable, match="its mode cannot be told"):
            await c.lock("pooled").acquire()


@pytest.mark.needs("pgbouncer")
@pytest.mark.long
async def test_a_transaction_pooler_far_away(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """A second connection that takes more than a second is waited for, not taken for a refusal."""
    pooled = pgbouncer("transaction", pool_size=4)
    with FaultProxy.to(pooled.url) as far:
        far.delay(0.3)
        async with AsyncCoordinator(far.url(pooled.url)) as c:
            with pytest.raises(PoolerRefused):
                await c.lock("pooled").acquire()


@pytest.mark.needs("pgbouncer")
async def test_direct_url(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """`direct_url` leads locks and LISTEN around the pooler; publishing goes through it, and wakes all the same."""
    pooled = pgbouncer("transaction")
    async with (
        AsyncCoordinator(pooled.url, direct_url=database) as one,
        AsyncCoordinator(pooled.url, direct_url=database) as two,
    ):
        opened = seen(one, LinkOpened)
        for _ in range(5):
            async with one.lock("around"):
                task = await waiting_for(two, "around", database)
            await (await task).release()
        await eventually_async(lambda: {event.role for event in opened} == {"lock", "publish"})
        assert {event.role: event.through for event in opened} == {"lock": "direct", "publish": "transaction pooler"}


@pytest.mark.needs("pgbouncer")
async def test_other_clients_keep_their_settings(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Neither a refused lock nor a publish link leaves a setting, a statement or a transaction on pooled sessions."""
    pooled = pgbouncer("transaction", pool_size=1)
    with psycopg.connect(pooled.url, autocommit=True, prepare_threshold=None) as other:
        before = _traces(other)
        async with (
            AsyncCoordinator(pooled.url, direct_url=database) as one,
            AsyncCoordinator(database) as two,
            AsyncCoordinator(pooled.url) as refused,
        ):
            with pytest.raises(PoolerRefused):
                await refused.lock("x").acquire()
            async with one.lock("settings"):
                task = await waiting_for(two, "settings", database)
            await (await task).release()
            await eventually_async(
                lambda: any(link.role == "publish" and link.state == "ready" for link in one.health().links)
            )
        assert _traces(other) == before


async def test_standby_is_refused(server: Server, standby: Cluster) -> None:
    """A hot standby grants locks that exclude nobody: it is refused by name, and accepted once it is promoted."""
    async with AsyncCoordinator(rewrite(server.tcp_url, port=standby.port)) as c:
        with pytest.raises(StandbyRefused, match=str(standby.port)):
            await c.lock("standby").acquire()
        standby.promote()
        async with c.lock("standby", timeout=40):
            assert lock_pid(c)


async def test_standby_is_passed_over(server: Server, standby: Cluster) -> None:
    """Of several hosts a standby in front is passed over for the primary behind it, without being asked to."""
    primary = rewrite(server.tcp_url, host="127.0.0.1,127.0.0.1", port=f"{standby.port},{_port_of(server)}")
    async with AsyncCoordinator(primary) as c:
        failed = seen(c, ConnectFailed)
        async with c.lock("several hosts"):
            assert failed == []
            (link,) = [link for link in c.health().links if link.role == "lock"]
            assert link.server == f"127.0.0.1:{_port_of(server)}"


def _port_of(server: Server) -> int:

    return int(conninfo_to_dict(server.tcp_url)["port"] or 0)


async def _is_free(url: str, key: str) -> bool:
    async with AsyncCoordinator(url) as c:
        hold = await c.lock(key).try_acquire()
        if hold is not None:
            await hold.release()
        return hold is not None


@contextmanager
def _several_clients(url: str, count: int) -> Generator[None]:
    connections = [psycopg.connect(url, autocommit=True, prepare_threshold=None) for _ in range(count)]
    try:
        for connection in connections:
            connection.execute("select 1")
        yield
    finally:
        for connection in connections:
            connection.close()


def _traces(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select pg_backend_pid()::text, name, setting from pg_settings where source = 'session' "
        "and name not in ('application_name', 'client_encoding') "
        "union all select '', name, statement from pg_prepared_statements "
        "union all select '', locktype, objid::text from pg_locks where locktype = 'advisory' "
        "and pid = pg_backend_pid() "
        "union all select '', 'channel', c from pg_listening_channels() c order by 1, 2, 3"
    ).fetchall()
