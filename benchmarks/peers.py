"""The other lock libraries, and the table of everything that takes part.

What may live here: one class per library, and `CANDIDATES`. No clock, no statistics, no process.

Theory. Every library is used the way its documentation shows, with the settings that let it finish (a pool without an
upper bound where the default would fail). Whether two lock objects of one name exclude each other in one process, and
how many bits of the name count, is not written down here: the harness finds out by trying.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from candidate import Address, BlockingCandidate, Candidate, Key, PerThread, Spec
from drivers import (
    POOL,
    AsyncpgPool,
    Pgconcert,
    PgconcertBlocking,
    RawAsyncpg,
    RawPsycopg,
    RawPsycopgAsync,
    RawPsycopgShared,
)


class Tooz(BlockingCandidate):
    def open(self, address: Address, tasks: int) -> None:
        warnings.simplefilter("ignore")  # the driver announces its own deprecation
        coordination = import_module("tooz.coordination")
        self.coordinator = coordination.get_coordinator(address.url, b"benchmark")
        self.coordinator.start()

    def acquire(self, key: Key) -> Any:
        lock = self.coordinator.get_lock(str(key).encode())
        return lock if lock.acquire() else None

    def try_acquire(self, key: Key) -> Any:
        lock = self.coordinator.get_lock(str(key).encode())
        return lock if lock.acquire(blocking=False) else None

    def release(self, token: Any) -> None:
        token.release()

    def close(self) -> None:
        self.coordinator.stop()


class Pals(BlockingCandidate):
    def open(self, address: Address, tasks: int) -> None:
        pals = import_module("pals")
        from sqlalchemy import create_engine

        # A pool without an upper bound: with the default of 15 the sixteenth lock held waits half a minute, then fails.
        def engine() -> Any:
            return create_engine(address.sqlalchemy(), pool_size=POOL, max_overflow=-1)

        self.locker = pals.Locker("benchmark", create_engine_callable=engine)

    def acquire(self, key: Key) -> Any:
        lock = self.locker.lock(str(key))
        return lock if lock.acquire() else None

    def try_acquire(self, key: Key) -> Any:
        lock = self.locker.lock(str(key), blocking=False)
        return lock if lock.acquire() else None

    def release(self, token: Any) -> None:
        token.release()

    def close(self) -> None:
        self.locker.engine.dispose()


class SqlalchemyDlock(BlockingCandidate):
    """A pooled connection of its own for every lock: the way that excludes inside a process too."""

    def open(self, address: Address, tasks: int) -> None:
        from sqlalchemy import create_engine

        self.create = import_module("sqlalchemy_dlock").create_sadlock
        self.engine = create_engine(address.sqlalchemy(), pool_size=POOL, max_overflow=-1, isolation_level="AUTOCOMMIT")

    def acquire(self, key: Key, block: bool = True) -> Any:
        connection = self.engine.connect()
        lock = self.create(connection, key)
        if lock.acquire(block):
            return lock, connection
        connection.close()
        return None

    def try_acquire(self, key: Key) -> Any:
        return self.acquire(key, block=False)

    def release(self, token: Any) -> None:
        lock, connection = token
        lock.release()
        connection.close()

    def close(self) -> None:
        self.engine.dispose()


class SqlalchemyDlockShared(PerThread):
    """One connection per thread for all its locks: faster, but two lock objects of one name both get it."""

    def prepare(self) -> None:
        from sqlalchemy import create_engine

        self.create = import_module("sqlalchemy_dlock").create_sadlock
        self.engine = create_engine(self.address.sqlalchemy(), isolation_level="AUTOCOMMIT")

    def make(self) -> tuple[Any, Callable[[], object]]:
        connection = self.engine.connect()
        return connection, connection.close

    def acquire(self, key: Key, block: bool = True) -> Any:
        lock = self.create(self.mine(), key)
        return lock if lock.acquire(block) else None

    def try_acquire(self, key: Key) -> Any:
        return self.acquire(key, block=False)

    def release(self, token: Any) -> None:
        token.release()


class DjangoPglock(BlockingCandidate):
    def open(self, address: Address, tasks: int) -> None:
        django, settings = import_module("django"), import_module("django.conf").settings
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": address.dbname,
            "USER": address.user,
            "PASSWORD": address.password or "",
            "HOST": address.host,
            "PORT": str(address.port),
        }
        settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["pgactivity", "pglock"], USE_TZ=True)
        django.setup()
        self.advisory = import_module("pglock").advisory

    def acquire(self, key: Key) -> Any:
        lock = self.advisory(key)
        return lock if lock.acquire() else None

    def try_acquire(self, key: Key) -> Any:
        lock = self.advisory(key, timeout=0)
        return lock if lock.acquire() else None

    def release(self, token: Any) -> None:
        token.release()

    def cycle(self, key: Key) -> None:
        with self.advisory(key):
            pass

    def close(self) -> None:
        import_module("django.db").connections.close_all()


class PostgresqlLock(PerThread):
    def prepare(self) -> None:
        self.lock = import_module("postgresql_lock").Lock

    def make(self) -> tuple[Any, Callable[[], object]]:
        import psycopg

        connection = psycopg.connect(self.address.url, autocommit=True)
        return connection, connection.close

    def acquire(self, key: Key) -> Any:
        lock = self.lock(self.mine(), key)
        return lock if lock.acquire() else None

    def try_acquire(self, key: Key) -> Any:
        lock = self.lock(self.mine(), key)
        return lock if lock.acquire(block=False) else None

    def release(self, token: Any) -> None:
        token.release()


class RedisLock(BlockingCandidate):
    """redis-py's lock on a private redis-server: a lease on another server, named for comparison."""

    def open(self, address: Address, tasks: int) -> None:
        if address.redis_socket is None:
            raise ModuleNotFoundError("no redis-server on this machine", name="redis-server")
        self.client = import_module("redis").Redis(unix_socket_path=address.redis_socket)
        self.client.ping()

    def acquire(self, key: Key) -> Any:
        lock = self.client.lock(str(key), timeout=30)
        return lock if lock.acquire() else None

    def try_acquire(self, key: Key) -> Any:
        lock = self.client.lock(str(key), timeout=30)
        return lock if lock.acquire(blocking=False) else None

    def release(self, token: Any) -> None:
        token.release()

    def close(self) -> None:
        self.client.close()


CANDIDATES: dict[str, Spec[Candidate]] = {
    "pgconcert": Spec(Pgconcert, "pgconcert", "asyncio", "pgconcert"),
    "pgconcert (uvloop)": Spec(Pgconcert, "pgconcert", "uvloop", "uvloop"),
    "pgconcert.blocking": Spec(PgconcertBlocking, "pgconcert", "threads", "pgconcert"),
    "psycopg async": Spec(RawPsycopgAsync, "driver", "asyncio", "psycopg[binary]"),
    "psycopg async, shared": Spec(RawPsycopgShared, "driver", "asyncio", "psycopg[binary]"),
    "psycopg": Spec(RawPsycopg, "driver", "threads", "psycopg[binary]"),
    "asyncpg": Spec(RawAsyncpg, "driver", "asyncio", "asyncpg"),
    "asyncpg (uvloop)": Spec(RawAsyncpg, "driver", "uvloop", "asyncpg uvloop"),
    "asyncpg pool": Spec(AsyncpgPool, "driver", "asyncio", "asyncpg"),
    "tooz": Spec(Tooz, "library", "threads", "tooz[postgresql]"),
    "PALs": Spec(Pals, "library", "threads", "PALs"),
    "sqlalchemy-dlock": Spec(SqlalchemyDlock, "library", "threads", "sqlalchemy-dlock"),
    "sqlalchemy-dlock, shared": Spec(SqlalchemyDlockShared, "library", "threads", "sqlalchemy-dlock"),
    "django-pglock": Spec(DjangoPglock, "library", "threads", "django-pglock"),
    "postgresql-lock": Spec(PostgresqlLock, "library", "threads", "postgresql-lock"),
    "redis-py": Spec(RedisLock, "library", "threads", "redis (and redis-server)"),
}
