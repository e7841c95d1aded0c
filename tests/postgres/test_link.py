"""The link on a real server: pipelining, errors, death, notifications, size, silence.

Here live tests of `postgres/link.py` alone; what is built on it has files of its own. Theory: a link is trusted with
other people's answers, so every test asks a further statement after the disturbance and wants the right answer to it.
"""

import asyncio
import ctypes.util
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgconcert.errors import LinkLost, StatementFailed
from pgconcert.postgres.link import Link, Rows, Statement, statement
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.link_checks import bursts_arrive
from tests.postgres.scenes import ask, link_to, raw
from tests.processes import Worker
from tests.servers import Server

_MEGABYTE = 1_000_000
_CHECKS = "from tests.postgres.link_checks import main; import asyncio, sys; asyncio.run(main(*sys.argv[1:]))"


@pytest.mark.both_loops
async def test_errors_are_isolated(database: str) -> None:
    """Of nine statements pipelined together each gets its own answer or its own error."""
    link, _ = await link_to(database)
    answers = [link.execute(statement("select 60 / $1::int4"), [b"%d" % (n % 3)]) for n in range(9)]
    assert link.unanswered == 9
    for n, answer in enumerate(answers):
        if n % 3:
            assert await answer == [(b"%d" % (60 // (n % 3)),)]
        else:
            with pytest.raises(StatementFailed, match="division by zero") as failed:
                await answer
            assert failed.value.sqlstate == "22012"
    assert await ask(link, "select 'after'") == [(b"after",)]
    link.close()


@pytest.mark.both_loops
async def test_error_at_commit(database: str) -> None:
    """An error that the server finds at commit reaches the statement whose rows were sent before it."""
    link, _ = await link_to(database)
    await ask(link, "create temp table late (n int unique deferrable initially deferred)")
    await ask(link, "insert into late values (1)")
    with pytest.raises(StatementFailed) as failed:
        await ask(link, "insert into late values (1) returning n")
    assert failed.value.sqlstate == "23505"
    assert await ask(link, "select count(*) from late") == [(b"1",)]
    link.close()


async def test_prepare_error(database: str) -> None:
    """A statement that cannot be prepared reports its own error, each time, and works once its table exists."""
    link, _ = await link_to(database)
    early = "select n from not_yet where n = $1::int4"
    for _ in range(2):
        with pytest.raises(StatementFailed) as failed:
            await ask(link, early, b"1")
        assert failed.value.sqlstate == "42P01"
    with pytest.raises(StatementFailed, match="syntax error"):
        await ask(link, "selec 1")
    await ask(link, "create temp table not_yet as select 1 as n")
    assert await ask(link, early, b"1") == [(b"1",)]
    assert await ask(link, early, b"1") == [(b"1",)]
    link.close()


async def test_pipelined_prepare_error(database: str) -> None:
    """A statement queued twice before its preparation fails gets an error both times, and the next one its answer."""
    link, _ = await link_to(database)
    twice = [link.execute(statement("select broken")) for _ in range(2)]
    good = link.execute(statement("select 7"))
    for answer in twice:
        with pytest.raises(StatementFailed):
            await answer
    assert await good == [(b"7",)]
    link.close()


@pytest.mark.parametrize(
    "copy", ["copy (select generate_series(1, 2000000)) to stdout", "copy pg_temp.target from stdin"]
)
async def test_copy_ends_the_link(database: str, copy: str) -> None:
    """COPY has no place on a link: it ends the link at once, in bounded memory, and everybody on it is told."""
    link, ear = await link_to(database)
    await ask(link, "create temp table target (n int)")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = [link.execute(statement(copy)), link.execute(statement("select 1"))]
    for answer in answers:
        with pytest.raises(LinkLost, match="COPY"):
            await answer
    assert len(ear.lost) == 1
    assert link.dead
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.both_loops
async def test_cancelled_callers(database: str) -> None:
    """300 callers that leave drop their own answers and nobody else's."""
    link, _ = await link_to(database)
    answers = [link.execute(statement("select $1::text"), [b"%d" % n]) for n in range(300)]
    for answer in answers:
        answer.cancel()
    assert await ask(link, "select 'mine'") == [(b"mine",)]
    assert link.unanswered == 0
    link.close()


@pytest.mark.both_loops
async def test_large_parameter_and_result(database: str) -> None:
    """A parameter and a result of 8 MB pass unharmed."""
    link, _ = await link_to(database)
    big = os.urandom(4 * _MEGABYTE).hex().encode()
    assert await ask(link, "select $1::text", big) == [(big,)]
    link.close()


@pytest.mark.both_loops
@pytest.mark.long
async def test_back_pressure(database: str) -> None:
    """40 statements of 2 MB up and 5 MB down, sent at once, do not lock the two sides against each other."""
    link, _ = await link_to(database)
    up = b"u" * (2 * _MEGABYTE)
    sent = statement("select length($1::text), repeat('d', 5000000)")
    sizes: list[tuple[bytes | None, int]] = []

    def measured(rows: Rows, error: Exception | None) -> None:
        assert error is None
        sizes.append((rows[0][0], len(rows[0][1] or b"")))

    for _ in range(40):
        link.send(sent, [up], measured)
    await eventually_async(lambda: len(sizes) == 40, 120.0)
    assert set(sizes) == {(b"2000000", 5 * _MEGABYTE)}
    link.close()


@pytest.mark.both_loops
async def test_notifications_between_statements(database: str) -> None:
    """Notifications arrive while statements are under way, in order, and disturb no answer."""
    link, ear = await link_to(database)
    await ask(link, "listen here")
    with raw(database) as other:
        other.execute("select pg_advisory_lock(4711), pg_advisory_lock(4712)")
        waits = statement("select pg_advisory_xact_lock_shared($1::int8), $2::int4")
        answers = [link.execute(waits, [b"%d" % (4711 + (n >= 10)), b"%d" % n]) for n in range(20)]
        for n in range(50):
            other.execute("select pg_notify('here', %s)", (str(n),))
        other.execute("select pg_advisory_unlock(4711)")
        what = "they do not wait for the end of the pipeline"
        await eventually_async(lambda: len(ear.notifications) == 50, 30, what=what)
        assert not answers[-1].done()
        other.execute("select pg_advisory_unlock(4712)")
    assert [rows[0][1] for rows in await asyncio.gather(*answers)] == [b"%d" % n for n in range(20)]
    assert [n.payload for n in ear.notifications] == [b"%d" % n for n in range(50)]
    assert {n.channel for n in ear.notifications} == {b"here"}
    link.close()


async def test_idle_link_is_silent(database: str) -> None:
    """In a quiet second an idle link sends nothing and wakes nobody."""
    loop = asyncio.get_running_loop()
    wakes = 0
    add_reader = loop.add_reader

    def counted(fd: int, callback: Callable[..., Any], *args: Any) -> None:
        def wake() -> None:
            nonlocal wakes
            wakes += 1
            callback(*args)

        add_reader(fd, wake)

    loop.add_reader = counted  # type: ignore[method-assign,assignment]
    link, _ = await link_to(database)
    await ask(link, "listen quiet")
    assert wakes, "the counter works"
    before = wakes, link.statements, link.answers
    await asyncio.sleep(1.0)
    assert (wakes, link.statements, link.answers) == before
    link.close()


@pytest.mark.both_loops
async def test_terminated_backend(server: Server, database: str) -> None:
    """Who ended the session is said to everybody: to the owner, to statements under way, and to later ones."""
    link, ear = await link_to(database)
    slow = link.execute(statement("select pg_sleep(30)"))
    await eventually_async(lambda: [s for s in server.sessions() if s.pid == link.pid and s.state == "active"])
    server.kill_backend(link.pid)
    late = link.execute(statement("select 'late'"))
    for answer in (slow, late, link.execute(statement("select 1"))):
        with pytest.raises(LinkLost, match="terminating connection due to administrator command"):
            await answer
    assert ear.lost == [link.dead]
    with pytest.raises(LinkLost, match="administrator"):
        await ask(link, "select 1")


@pytest.mark.both_loops
async def test_idle_link_notices_its_death(server: Server, database: str) -> None:
    """A link with nothing under way notices the end of its session by itself."""
    link, ear = await link_to(database)
    server.kill_backend(link.pid)
    await eventually_async(lambda: ear.lost)
    assert ear.lost == ["terminating connection due to administrator command"]
    assert "dead" in repr(link)


async def test_death_is_told_in_order(server: Server, database: str) -> None:
    """Every unanswered statement is settled before the owner learns of the death and could send elsewhere."""
    link, ear = await link_to(database)
    order: list[object] = []
    ear.link_lost = lambda link, reason: order.append("owner")  # type: ignore[method-assign]
    for n in range(3):
        link.send(statement("select pg_sleep(0.1)"), (), _noting(order, n))
    assert order == []
    link.close("enough")
    assert order == [0, 1, 2, "owner"]
    assert link.lost_answers == 3


async def test_unnamed_mode(database: str) -> None:
    """A link told so prepares nothing on the server; another prepares each statement once."""
    for named, prepared in ((False, b"0"), (True, b"2")):
        link, _ = await link_to(database)
        link.named = named
        for _ in range(5):
            assert await ask(link, "select $1::int4 + 1", b"1") == [(b"2",)]
        count = await ask(link, "select count(*) from pg_prepared_statements where name like 'pgc%'")
        assert count == [(prepared,)]
        link.close()


async def test_send_together_is_one_transaction(database: str) -> None:
    """Statements sent together commit together or not at all, and the rows of the last are the answer."""
    link, _ = await link_to(database)
    await ask(link, "create temp table pair (n int, x text)")

    async def together(*texts: str) -> Rows:
        answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        link.send_together(
            [(Statement(b"", text.encode()), ()) for text in texts],
            lambda rows, error: answer.set_exception(error) if error else answer.set_result(rows),
        )
        return await answer

    with pytest.raises(StatementFailed, match="division"):
        await together("insert into pair values (1)", "select 1/0", "insert into pair values (2)")
    assert await ask(link, "select count(*) from pair") == [(b"0",)]
    insert = "insert into pair select 1, pg_current_xact_id()::text"
    assert await together(insert, insert, "select 'last'") == [(b"last",)]
    assert await ask(link, "select count(*), count(distinct x) from pair") == [(b"2", b"1")]
    link.close()


async def test_refused_connection(database: str) -> None:
    """A server that cannot be reached is said in one line, and the attempt leaves no descriptor behind."""
    before = _descriptors()
    with pytest.raises(ConnectionError) as failed:
        await Link.connect("host=127.0.0.1 port=1 user=nobody password=secret dbname=x")
    assert "\n" not in str(failed.value)
    assert "secret" not in str(failed.value)
    assert _descriptors() <= before


async def test_cancelled_connection(proxy: FaultProxy, database: str, server: Server) -> None:
    """A caller that leaves while connecting leaves no descriptor behind."""
    before = _descriptors()
    proxy.pause()
    connecting = asyncio.create_task(Link.connect(proxy.url(server.over_tcp(database))))
    await eventually_async(lambda: proxy.open_connections)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    proxy.cut()
    await eventually_async(lambda: _descriptors() <= before)


@pytest.mark.both_loops
async def test_tls_bursts(tls_proxy: FaultProxy, server: Server, database: str) -> None:
    """Bursts of notifications, larger than a record of TLS, arrive whole and by themselves."""
    certificate = str(tls_proxy.certificate)
    through = tls_proxy.url(server.over_tcp(database), sslmode="verify-full", sslrootcert=certificate)
    await bursts_arrive(through, database, bursts=40, size=3000)


@pytest.mark.both_loops
async def test_tls_split_at_every_byte(tls_proxy: FaultProxy, server: Server, database: str) -> None:
    """A network that delivers single bytes changes nothing, with TLS."""
    through = tls_proxy.url(server.over_tcp(database), sslmode="require")
    tls_proxy.split(1)
    await bursts_arrive(through, database, bursts=1, size=20, count=20)


@pytest.mark.both_loops
async def test_plain_split_at_every_byte(proxy: FaultProxy, server: Server, database: str) -> None:
    """A network that delivers single bytes changes nothing, without TLS."""
    proxy.split(1)
    await bursts_arrive(proxy.url(server.over_tcp(database)), database, bursts=1, size=20, count=20)


def test_python_implementation(
    tls_proxy: FaultProxy,
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """psycopg without its compiled part, over the system's libpq, does the same: link, lock, bursts under TLS."""
    if not ctypes.util.find_library("pq"):
        pytest.skip("needs libpq: apt-get install libpq5")
    monkeypatch.setenv("PSYCOPG_IMPL", "python")
    through = tls_proxy.url(server.over_tcp(database), sslmode="require")
    assert worker(_CHECKS, database, through).expect("ok", 120.0) == "python"


_FORKED_LINK = """
import asyncio, gc, os, sys
from tests.postgres.scenes import ask, link_to

async def main(url):
    link, ear = await link_to(url)
    number = link._fd
    child = os.fork()
    if not child:
        try:
            os.fstat(number)
        except OSError:
            link = None
            gc.collect()
            os._exit(7)
        os._exit(1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    print("child", os.waitstatus_to_exitcode(status), await ask(link, "select 'alive'"), ear.lost)
    link.close()

asyncio.run(main(sys.argv[1]))
"""


def test_forked_link(database: str, worker: Callable[..., Worker]) -> None:
    """A forked child has the descriptor closed and never speaks to the server; the parent's link lives on."""
    assert worker(_FORKED_LINK, database).expect("child") == "7 [(b'alive',)] []"


_FORK = """
import asyncio, os, sys
from pgconcert import AsyncCoordinator, CoordinatorClosed

async def main(url):
    async with AsyncCoordinator(url) as c:
        hold = await c.lock("fork").acquire()
        child = os.fork()
        if not child:
            code = 1
            try:
                c.lock("x")
            except CoordinatorClosed as error:
                code = 0 if "fork" in str(error) and hold.lost and hold.reason == "forked" else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        hold.check()
        assert await c.lock("fork").try_acquire() is None
        async with c.lock("other"):
            print("child", os.waitstatus_to_exitcode(status), hold.lost)
        await hold.release()

asyncio.run(main(sys.argv[1]))
"""


def test_fork(database: str, worker: Callable[..., Worker]) -> None:
    """A forked child owns nothing and knows it; the parent's session, locks and loop are unharmed."""
    assert worker(_FORK, database).expect("child") == "0 False"


def _noting(order: list[object], number: int) -> Callable[[Rows, Exception | None], None]:
    return lambda rows, error: order.append(number)


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])
