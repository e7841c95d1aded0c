"""Every form of address, against a server that answers.

Here live addresses as users write them, and what is said of those that lead nowhere. Theory: an address is right when a
lock taken through it is seen on the server; what libpq itself understands is not tested again one by one.
"""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psycopg_pool
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgconcert import AsyncCoordinator, ConfigurationError, Unavailable
from pgconcert.events import ConnectFailed
from pgconcert.testing import FaultProxy, rewrite
from tests.postgres.scenes import Engine, both_engines, key_of, keys_on_server, lock_pid, seen
from tests.servers import Server


async def works(address: Any, url: str, **options: Any) -> AsyncCoordinator:
    """Take a lock through an address, see it on the server, and return the closed coordinator."""
    async with AsyncCoordinator(address, **options) as c:
        async with c.lock("address", timeout=30):
            assert keys_on_server(url) == {key_of("address"): lock_pid(c)}
    return c


def parts_of(url: str) -> dict[str, str]:
    """The parameters of an address."""
    return {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}


async def test_key_value_string(database: str) -> None:
    """libpq's other form."""
    await works(make_conninfo("", **parts_of(database)), database)


async def test_sqlalchemy_url(server: Server, database: str) -> None:
    """SQLAlchemy's form, with a driver in the scheme and parameters that only the driver knows."""
    url = server.over_tcp(database).replace("postgresql://", "postgresql+asyncpg://", 1)
    await works(url + ("&" if "?" in url else "?") + "prepared_statement_cache_size=0", database)


async def test_environment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the environment is asked, our own variable first."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/x")
    monkeypatch.setenv("PGCONCERT_URL", database)
    await works(None, database)
    monkeypatch.delenv("PGCONCERT_URL")
    monkeypatch.setenv("DATABASE_URL", database)
    await works(None, database)


async def test_libpq_environment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of libpq do, alone and for what an address leaves open."""
    for name in ("PGCONCERT_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    for name, value in parts_of(database).items():
        monkeypatch.setenv(names[name], value)
    await works(None, database)
    await works("postgresql://", database)


async def test_service_and_password_file(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service file names the server, a password file the password; what the address says wins."""
    parts = parts_of(server.over_tcp(database))
    password, wanted = parts.pop("password", ""), parts.pop("dbname")
    service, secrets = tmp_path / "services", tmp_path / "passwords"
    lines = [f"{name}={value}" for name, value in parts.items()]
    service.write_text("\n".join(["[ours]", *lines, "dbname=not_this_one"]))
    secrets.write_text(f"127.0.0.1:*:*:*:{password}\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.setenv("PGPASSFILE", str(secrets))
    await works(f"service=ours dbname={wanted}", database)
    async with AsyncCoordinator("service=theirs") as c:
        with pytest.raises(ConfigurationError, match="'theirs' is not defined"):
            await c.lock("x").acquire()


@both_engines
async def test_callable(server: Server, database: str, engine: Engine) -> None:
    """A callable is asked anew at every connect, so credentials may rotate; a coroutine function too."""
    asked: list[str] = []

    def plain() -> str:
        asked.append("plain")
        return database

    async def coroutine() -> str:
        asked.append("coroutine")
        return database

    for address in (plain, coroutine):
        asked.clear()
        async with AsyncCoordinator(address, engine=engine) as c:
            hold = await c.lock("rotating").acquire()
            assert len(asked) == 1
            server.kill_backend(lock_pid(c))
            await hold.wait_lost()
            async with c.lock("rotating", timeout=30):
                assert len(asked) == 2


async def test_callable_that_fails(database: str) -> None:
    """An error of the callable is chained, never quoted, because it may hold a secret; the next attempt may succeed."""
    broken = True

    def address() -> str:
        if broken:
            raise KeyError("hunter2")
        return database

    async with AsyncCoordinator(address) as c:
        with pytest.raises(Unavailable, match="KeyError") as failed:
            await c.lock("x").acquire()
        assert "hunter2" not in str(failed.value)
        assert isinstance(failed.value.__cause__, KeyError)
        broken = False
        async with c.lock("x", timeout=30):
            pass


async def test_slow_callable_does_not_hold_up_the_loop(database: str) -> None:
    """A callable that blocks for a while blocks nobody else."""
    turned: list[bool] = []
    loop = asyncio.get_running_loop()

    def slow() -> str:
        turned.append(_turns_meanwhile(loop))
        return database

    await works(slow, database)
    assert turned == [True]


async def test_engine(server: Server, database: str) -> None:
    """A SQLAlchemy engine gives its address, password included, and none of its connections."""
    url = server.over_tcp(database).replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sqlalchemy.create_engine(url, pool_size=1)
    await works(engine, database)
    assert engine.pool.checkedin() == engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


async def test_pool(database: str) -> None:
    """A psycopg pool gives its address; a pool of one connection stays free for queries (A6), and clean (A8)."""
    async with psycopg_pool.AsyncConnectionPool(
        database, min_size=1, max_size=1, open=False, kwargs={"autocommit": True, "application_name": "the pool"}
    ) as pool:
        async with AsyncCoordinator(pool) as c, c.lock("pooled", timeout=30), pool.connection(timeout=30) as connection:
            cursor = await connection.execute(
                "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            )
            assert await cursor.fetchone() == (0,)
            cursor = await connection.execute("select * from pg_listening_channels()")
            assert await cursor.fetchall() == []
            assert key_of("pooled") in keys_on_server(database)


async def test_several_hosts(server: Server, database: str) -> None:
    """Hosts are tried in order; one that refuses is passed over, and all are named when all do."""
    parts = parts_of(server.over_tcp(database))
    with socket.socket() as refuses:
        refuses.bind(("127.0.0.1", 0))  # and never listens
        parts |= {"host": "127.0.0.1,localhost", "port": f"{refuses.getsockname()[1]},{parts['port']}"}
        await works(make_conninfo("", **parts, target_session_attrs="read-write"), database)
    async with AsyncCoordinator("host=127.0.0.1,127.0.0.1 port=1,2 dbname=x") as c:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1.*127\.0\.0\.1:2"):
            await c.lock("x").acquire()


async def test_silent_host_is_passed_over(proxy: FaultProxy, server: Server, database: str) -> None:
    """A host that accepts and then says nothing costs `connect_timeout`, not more."""
    proxy.pause()
    parts = parts_of(server.over_tcp(database))
    parts |= {"host": "127.0.0.1,127.0.0.1", "port": f"{proxy.port},{parts['port']}"}
    for limit in (0.3, 3.0, 30.0):  # a busy server may need longer for the other one
        try:
            await works(make_conninfo("", **parts), database, connect_timeout=limit)
        except Unavailable:
            continue
        break
    else:
        pytest.fail("the other host was not found")
    proxy.cut()


async def test_silent_server(proxy: FaultProxy, server: Server, database: str) -> None:
    """With nobody else to ask, the silence is the error, with the place and the limit."""
    proxy.pause()
    async with AsyncCoordinator(proxy.url(server.over_tcp(database)), connect_timeout=0.3) as c:
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{proxy.port}: no answer within 0\.3 s"):
            await c.lock("x").acquire()
    proxy.cut()


async def test_names_are_looked_up_at_every_connect(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is resolved anew at every attempt, all its addresses are tried, and a slow resolver stops nobody."""
    asked: list[str] = []
    turned: list[bool] = []
    look_up, loop = socket.getaddrinfo, asyncio.get_running_loop()

    def slow(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host != "moving.example":
            return look_up(host, port, *rest, **options)
        asked.append(host)
        turned.append(_turns_meanwhile(loop))
        # a dead address first: nobody listens on port 5432 of the second loopback address
        return [answer for place in ("127.9.9.9", "127.0.0.1") for answer in look_up(place, port, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    address = rewrite(server.over_tcp(database), host="moving.example")
    async with AsyncCoordinator(address) as c:
        hold = await c.lock("moved").acquire()
        server.kill_backend(lock_pid(c))
        await hold.wait_lost()
        async with c.lock("moved", timeout=30):
            assert asked == ["moving.example"] * 2
    assert turned == [True, True]


@both_engines
async def test_tls(tls_proxy: FaultProxy, server: Server, database: str, engine: Engine) -> None:
    """TLS with full verification of the host's name; a certificate nobody vouched for is refused."""
    certificate = str(tls_proxy.certificate)
    through = tls_proxy.url(server.over_tcp(database), host="localhost", sslmode="verify-full", sslrootcert=certificate)
    await works(through, database, engine=engine)
    async with AsyncCoordinator(rewrite(through, sslrootcert="/dev/null")) as c:
        with pytest.raises(Unavailable, match=r"(?i)certificate|SSL"):
            await c.lock("x").acquire()


async def test_application_name(server: Server, database: str) -> None:
    """People see who we are and what for: the name given, or the address's own, with host, process and role."""
    for options, wanted in (({"name": "billing"}, "billing@"), ({}, "from the url@")):
        url = database if options else rewrite(database, application_name="from the url")
        async with AsyncCoordinator(url, **options) as c, c.lock("named"):  # type: ignore[arg-type]
            (session,) = [session for session in server.sessions() if session.pid == lock_pid(c)]
            assert session.application_name.startswith(wanted)
            assert session.application_name.endswith(" pgconcert-lock")


def _turns_meanwhile(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop turns while its caller blocks, which ends when it has."""
    turned = threading.Event()
    loop.call_soon_threadsafe(turned.set)
    return turned.wait(10)


@both_engines
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host": "127.0.0.1", "port": 1}, ["127.0.0.1:1"]),
        ({"dbname": "not_there"}, ["not_there"]),
        ({"user": "not_there"}, ["not_there"]),
        ({"host": "nowhere.invalid"}, ["nowhere.invalid"]),
    ],
)
async def test_wrong_address(
    server: Server, database: str, engine: Engine, change: dict[str, str], words: list[str]
) -> None:
    """With an address that leads nowhere the first use fails soon, and the error names the place and no secret."""
    url = server.over_tcp(database)
    secret = str(conninfo_to_dict(url).get("password") or "hunter2")
    url = rewrite(url, **({"password": secret} | change))
    async with AsyncCoordinator(url, engine=engine) as c:
        failed = seen(c, ConnectFailed)
        uses: list[Coroutine[Any, Any, Any]] = [c.lock("x").acquire(), c.lock("x").try_acquire()]
        for use in uses:
            with pytest.raises(Unavailable) as error:
                await asyncio.wait_for(use, 30)
            for word in (*words, str(change.get("host", "127.0.0.1"))):
                assert word in str(error.value)
            assert secret not in repr(error.value)
        shown = f"{failed} {c!r} {c.health()}"
        assert secret not in shown


async def test_wrong_password(server: Server, database: str) -> None:
    """A wrong password is said by the server and not shown by us."""
    url = server.over_tcp(database)
    if "password" not in conninfo_to_dict(url):
        pytest.skip("this server trusts everybody")
    async with AsyncCoordinator(rewrite(url, password="hunter2")) as c:
        with pytest.raises(Unavailable, match="password authentication failed") as failed:
            await c.lock("x").acquire()
        assert "hunter2" not in str(failed.value)
        assert "127.0.0.1" in str(failed.value)
