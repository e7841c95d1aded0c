"""Other programs on the same channels: what they notify in transactions, and what they can read of ours.

Theory: a notification is sent at the commit and not before, and never if it is rolled back; both sides are plain.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import psycopg
import pytest

from pgconcert import AsyncCoordinator
from pgconcert.testing import eventually
from tests.servers import Embedded, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


async def test_what_is_rolled_back_is_never_heard(database: str) -> None:
    async with AsyncCoordinator(database) as c, c.subscribe("theirs", gaps="yield") as messages:
        with psycopg.connect(database) as other:
            other.execute("notify theirs, 'rolled back'")
            other.rollback()
            with other.transaction():
                other.execute("notify theirs, 'first'")
                try:
                    with other.transaction():  # a savepoint
                        other.execute("select pg_notify('theirs', 'rolled back to the savepoint')")
                        raise psycopg.Rollback
                except psycopg.Rollback:
                    pass
                with other.transaction():
                    other.execute("select pg_notify('theirs', 'behind the savepoint')")
                await c.publish("theirs", "ours, before their commit")
            with other.transaction():
                other.execute("notify theirs, 'twice'")
                other.execute("notify theirs, 'twice'")
                other.execute("notify theirs")
            pid = other.info.backend_pid
        got = [await messages.get(30) for _ in range(5)]
        assert [message.text for message in got] == [  # type: ignore[union-attr]
            "ours, before their commit",
            "first",
            "behind the savepoint",
            "twice",
            "",
        ]
        assert [message.own for message in got] == [True, False, False, False, False]  # type: ignore[union-attr]
        assert {message.pid for message in got[1:]} == {pid}  # type: ignore[union-attr]
        assert messages.statistics.queued == 0


@pytest.mark.parametrize("text", ["plain", "", "ü€😀", "line\nline", 'it\'s "quoted" \\ back', "x" * 7999])
async def test_a_plain_listener_reads_our_texts(database: str, text: str) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("listen ours")
        async with AsyncCoordinator(database) as c:
            await c.publish("ours", text)
            await c.notify("ours", text + "!" if len(text) < 7999 else "!")

        def heard() -> list[str]:
            return [notification.payload for notification in other.notifies(timeout=30, stop_after=2)]

        assert await asyncio.to_thread(heard) == [text, text + "!" if len(text) < 7999 else "!"]


async def test_psql(server: Server, database: str) -> None:
    """The oldest client of all notifies, and listens."""
    program = shutil.which("psql") or (str(server.programs / "psql") if isinstance(server, Embedded) else None)
    if program is None or not shutil.which(program):
        pytest.skip("needs psql")

    def psql(*commands: str) -> str:
        arguments = [part for command in commands for part in ("-c", command)]
        done = subprocess.run([program, "-X", database, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    async with AsyncCoordinator(database) as c, c.subscribe("From psql") as messages:
        await asyncio.to_thread(psql, "begin", "notify \"From psql\", 'not sent'", "rollback")
        await asyncio.to_thread(psql, "notify \"From psql\", 'sent'")
        assert (await messages.get(30)).text == "sent"
        with psycopg.connect(database, autocommit=True) as gate:
            gate.execute("select pg_advisory_lock(77)")
            listening = asyncio.create_task(
                asyncio.to_thread(psql, 'listen "To psql"', "select pg_advisory_lock(77)", "select 'read'")
            )
            await asyncio.to_thread(
                eventually, lambda: gate.execute("select 1 from pg_locks where objid = 77 and not granted").fetchone()
            )
            await c.publish("To psql", "readable")
            gate.execute("select pg_advisory_unlock(77)")
        said = await listening
        assert 'Asynchronous notification "To psql" with payload "readable" received' in said


async def test_another_database_hears_nothing(server: Server, database: str) -> None:
    with server.fresh_database() as elsewhere:
        async with AsyncCoordinator(database) as here, AsyncCoordinator(elsewhere) as there:
            async with here.subscribe("same name") as one, there.subscribe("same name") as two:
                await there.publish("same name", "there")
                await here.publish("same name", "here")
                assert (await one.get(30)).text == "here"
                assert (await two.get(30)).text == "there"
                assert (one.statistics.received, two.statistics.received) == (1, 1)
