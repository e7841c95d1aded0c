"""The examination and the operator's look on every server that is found; a session that ends in the middle."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import StatementFailed, Unavailable
from pgconcert.conninfo import parse
from pgconcert.postgres import diagnosis, verdicts
from pgconcert.postgres.diagnosis import Examination
from pgconcert.postgres.link import Link
from pgconcert.postgres.lockview import Names
from pgconcert.postgres.operator import Operator
from pgconcert.postgres.serverprobes import Patient, ServerProbe, server_probes
from pgconcert.postgres.statements import PING
from pgconcert.postgres.verdicts import Finding
from pgconcert.testing import advisory_locks, eventually
from tests.postgres.scenes import raw
from tests.servers import Server


async def test_every_probe_on_every_server(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_FAR", 60.0)  # how far a busy machine is from itself is not asked here
    examination = Examination(parse(server.over_tcp(database)))
    assert await examination.run() == []
    assert {finding.verdict for finding in examination.findings} == {"ok"}
    assert [finding.probe for finding in examination.findings][-12:] == [probe.name for probe in server_probes()]
    eventually(lambda: not advisory_locks(database), what="nothing is left of it")


async def test_a_session_that_ends_in_the_middle(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked afterwards fails by its own name, and the examination comes to its end."""

    async def end_it(patient: Patient, link: Link) -> Finding:
        assert server.kill_backend(link.pid)
        await link.execute(PING)
        raise AssertionError("the link is dead")

    some = [probe for probe in server_probes() if probe.name in ("latency", "lock")]
    monkeypatch.setattr(diagnosis, "server_probes", lambda: (ServerProbe("end", False, end_it), *some))
    examination = Examination(parse(database))
    limits = await examination.run()
    failed = {finding.probe: finding.meaning for finding in examination.findings if finding.verdict == "fails"}
    assert list(failed) == ["end", "lock", "latency"]
    assert all("terminating connection" in meaning for meaning in failed.values())
    assert "locks and semaphores" in [limit.what for limit in limits]


def test_a_look(server: Server, database: str) -> None:
    with Operator(database) as operator:
        assert operator.look(Names()).locks == ()
        with raw(database) as other:
            other.execute("select pg_advisory_lock(-5), pg_advisory_lock_shared(-1, -2)")
            view = operator.look(Names())
            assert view.database == conninfo_to_dict(database)["dbname"]
            assert [(lock.key, lock.mode, lock.session.pid) for lock in view.locks] == [
                ("-5", "exclusive", other.info.backend_pid),
                ("(-1, -2)", "shared", other.info.backend_pid),
            ]
            assert [lock.name for lock in operator.look(Names(["-5"])).locks] == ["-5"]
        eventually(lambda: not operator.look(Names()).locks, what="the locks are free")


def test_a_look_that_fails(server: Server, database: str) -> None:
    with Operator(database) as operator:
        operator._connection.execute("set statement_timeout = 200")
        with psycopg.connect(database) as other:
            other.execute("lock table pg_catalog.pg_database in access exclusive mode")
            with pytest.raises(StatementFailed, match=r"cannot be listed: .*timeout") as caught:
                operator.look(Names())
            assert caught.value.sqlstate == "57014"
        assert server.kill_backend(operator._connection.info.backend_pid)
        with pytest.raises(Unavailable, match="the connection to the server is gone"):
            operator.look(Names())
