"""``pgconcert doctor``: healthy servers, and each way in which an address can be wrong: verdict, words, exit code."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert.testing import FaultProxy, advisory_locks, rewrite
from tests.cli.shell import on_terminal, run
from tests.poolers import PgBouncer
from tests.servers import Cluster, Server

Pooler = Callable[..., PgBouncer]

ALL = [
    "client", "address", "name look-up", "connect", "TLS", "pooler", "primary", "version", "rights", "settings",
    "idle_session_timeout", "keepalive", "LISTEN/NOTIFY", "lock", "lock table", "connections", "notification queue",
    "latency", "clock",
]  # fmt: skip
NEED_A_SESSION = ["settings", "keepalive", "LISTEN/NOTIFY", "lock"]


class Report:
    """What ``--json`` said."""

    def __init__(self, done: CompletedProcess[str]) -> None:
        assert done.stderr == ""
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["version"] == 1
        self.code = done.returncode
        self.verdict: str = answer["verdict"]
        self.found: dict[str, dict[str, str]] = {finding["probe"]: finding for finding in answer["findings"]}
        self.will_not_work: list[dict[str, str]] = answer["will_not_work"]
        assert len(self.found) == len(answer["findings"])
        self._pardon_a_slow_machine()
        assert self.code == (self.verdict == "fails")
        assert "hunter2" not in done.stdout

    def _pardon_a_slow_machine(self) -> None:
        """A server on a busy machine is far away, which is true, and beside the point of every test here."""
        latency = self.found.get("latency", {})
        if latency.get("verdict") == "warning" and "that is far" in latency["meaning"]:
            latency["verdict"] = "ok"
            if self.verdict == "warning" and not self.probes("warning"):
                self.verdict = "ok"

    def probes(self, verdict: str) -> list[str]:
        """The names of the probes with a verdict."""
        return [name for name, finding in self.found.items() if finding["verdict"] == verdict]

    def __getitem__(self, probe: str) -> str:
        return self.found[probe]["meaning"]

    def remedy(self, probe: str) -> str:
        return self.found[probe]["remedy"] or ""


def doctor(*arguments: str, **environment: str) -> Report:
    return Report(run("doctor", "--json", *arguments, **environment))


@contextlib.contextmanager
def role(server: Server, url: str, name: str, *settings: str) -> Iterator[str]:
    """A role without rights, and the address with it."""
    server.execute(f"create role {name} login password 'hunter2'")
    try:
        for setting in settings:
            server.execute(f"alter role {name} set {setting}")
        yield rewrite(server.over_tcp(url), user=name, password="hunter2")
    finally:
        server.execute(f"drop role {name}")


def traces(url: str) -> list[tuple[Any, ...]]:
    """What a probe might leave on the session that the pooler gives us."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        return connection.execute(
            "select name, setting from pg_settings where source = 'session' and name not in "
            "('application_name', 'client_encoding') union all select 'prepared', name from pg_prepared_statements "
            "union all select 'channel', c from pg_listening_channels() c"
        ).fetchall()


def test_a_healthy_server(server: Server, database: str) -> None:
    report = doctor("--url", database)
    assert list(report.found) == ALL
    assert report.probes("fails") == report.probes("warning") == report.probes("skipped") == []
    assert report.probes("info") == ["client"]
    assert (report.code, report.verdict, report.will_not_work) == (0, "ok", [])
    assert report["version"].startswith(f"PostgreSQL {server.major}.")
    assert report["pooler"] == "none: we speak with the server itself"
    assert advisory_locks(database) == []


def test_lines_for_people(database: str) -> None:
    done = run("doctor", "--url", database)
    assert done.returncode == 0
    *lines, empty, verdict = done.stdout.splitlines()
    assert [probe for line in lines if (probe := line[9:31].strip())] == ALL, "besides remedies"
    assert empty == ""
    assert verdict == "Everything that pgconcert does works through this address."


def test_a_table_on_a_terminal(database: str) -> None:
    with on_terminal("doctor", "--url", database, columns=70) as running:
        assert running.end() == 0
    assert "what it means" in running.said
    assert "Everything that pgconcert does works through this address." in running.said
    assert "…" not in running.said


def test_a_dead_port(unused: int) -> None:
    url = f"postgresql://ann:hunter2@127.0.0.1:{unused}/app"
    report = doctor("--url", url)
    assert report.probes("fails") == ["connect"]
    assert report["connect"].startswith("nobody listens there: ")
    assert report.remedy("connect").endswith(f"pg_isready -h 127.0.0.1 -p {unused}")
    assert report.probes("skipped") == ["all others"]
    assert [limit["what"] for limit in report.will_not_work] == ["anything at all"]
    said = run("doctor", "--url", url)
    assert said.returncode == 1
    assert "What will NOT work through this address:\n  anything at all\n    is the server running" in said.stdout


@pytest.fixture
def unused() -> Iterator[int]:
    """A port that is taken and refuses: nobody else can begin to listen on it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_port_that_says_nothing() -> None:
    """A listener that never answers is left after the time limit."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        report = doctor("--url", f"postgresql://127.0.0.1:{port}/app", "--connect-timeout", "0.3")
        assert report["connect"] == f"nothing comes back from there: 127.0.0.1:{port}: no answer within 0.3 s"
        report = doctor("--url", f"postgresql://127.0.0.1:{port}/app?connect_timeout=1", "--connect-timeout", "9")
        assert "no answer within 1 s" in report["connect"]


def test_a_connect_timeout_that_is_no_number() -> None:
    report = doctor("--url", "postgresql://127.0.0.1:1/app?connect_timeout=soon")
    assert "connect_timeout of the address must be a number of seconds, not 'soon'" in report["connect"]


def test_a_wrong_password(server: Server, database: str) -> None:
    report = doctor("--url", rewrite(server.over_tcp(database), password="hunter2"))
    assert report["connect"].startswith("the server does not believe that we are postgres: ")
    assert "password authentication failed" in report["connect"]
    assert "PGPASSWORD" in report.remedy("connect")
    assert report["address"].endswith("user postgres, with a password")


def test_a_wrong_database(server: Server, database: str) -> None:
    report = doctor("--url", rewrite(server.over_tcp(database), dbname="nowhere"))
    assert report["connect"].startswith("the server has no database nowhere: ")
    there = str(conninfo_to_dict(database)["dbname"])
    assert there in report.remedy("connect")
    assert report.remedy("connect").endswith("create database nowhere")


def test_a_name_that_does_not_resolve() -> None:
    report = doctor("--url", "postgresql://ann:hunter2@nowhere.invalid/app")
    assert report["name look-up"].startswith("the host name could not be looked up: nowhere.invalid: ")
    assert "getent hosts" in report.remedy("name look-up")
    assert [limit["what"] for limit in report.will_not_work] == ["anything at all"]


def test_the_first_host_is_away(server: Server, database: str, unused: int) -> None:
    port = conninfo_to_dict(server.over_tcp(database))["port"]
    report = doctor("--url", rewrite(server.over_tcp(database), host="127.0.0.1,127.0.0.1", port=f"{unused},{port}"))
    assert (report.code, report.verdict) == (0, "warning")
    assert report.probes("warning") == ["connect"]
    assert f"127.0.0.1:{port} let us in" in report["connect"]
    assert f"before it, 127.0.0.1:{unused}: " in report["connect"]


@pytest.mark.needs("pgbouncer")
def test_a_transaction_pooler(database: str, pgbouncer: Pooler) -> None:
    pooler = pgbouncer("transaction", pool_size=2)
    before = traces(pooler.url)
    report = doctor("--url", pooler.url)
    assert report.probes("fails") == ["pooler"]
    assert report.probes("skipped") == NEED_A_SESSION
    assert 'direct_url="postgresql://..."' in report.remedy("pooler")
    (limit,) = report.will_not_work
    assert limit["what"] == "locks, semaphores, and hearing of what happens (LISTEN); publishing works"
    assert limit["remedy"] == report.remedy("pooler")
    assert traces(pooler.url) == before
    assert advisory_locks(database) == []


@pytest.mark.needs("pgbouncer")
def test_a_transaction_pooler_with_a_way_around(server: Server, database: str, pgbouncer: Pooler) -> None:
    pooler = pgbouncer("transaction", pool_size=2)
    report = doctor("--url", pooler.url, "--direct-url", server.over_tcp(database))
    assert (report.code, report.probes("fails"), report.will_not_work) == (0, [], [])
    assert report["pooler"] == "a transaction pooler: good for publishing; locks and LISTEN take direct_url"
    assert report["pooler (direct)"] == "none: we speak with the server itself"
    assert report.found["lock"]["verdict"] == report.found["LISTEN/NOTIFY"]["verdict"] == "ok"


@pytest.mark.needs("pgbouncer")
def test_a_transaction_pooler_with_a_way_that_is_none(database: str, pgbouncer: Pooler, unused: int) -> None:
    pooler = pgbouncer("transaction", pool_size=2)
    report = doctor("--url", pooler.url, "--direct-url", f"postgresql://127.0.0.1:{unused}/x")
    assert report.probes("fails") == ["connect (direct)"]
    assert [limit["what"] for limit in report.will_not_work] == [
        "locks, semaphores, and hearing of what happens (LISTEN)"
    ]
    report = doctor("--url", pooler.url, "--direct-url", pgbouncer("transaction").url)
    assert report.probes("fails") == ["pooler (direct)"]


def test_only_the_way_around_works(server: Server, database: str, unused: int) -> None:
    report = doctor("--url", f"postgresql://127.0.0.1:{unused}/x", "--direct-url", server.over_tcp(database))
    assert report.probes("fails") == ["connect"]
    assert report.found["lock"]["verdict"] == report.found["LISTEN/NOTIFY"]["verdict"] == "ok"
    assert [limit["what"] for limit in report.will_not_work] == [
        "publishing, and so waking others: they find a free lock by looking again, within about a second"
    ]


@pytest.mark.needs("pgbouncer")
def test_a_session_pooler(database: str, pgbouncer: Pooler) -> None:
    report = doctor("--url", pgbouncer("session", pool_size=5).url)
    assert (report.code, report.verdict, report.will_not_work) == (0, "warning", [])
    assert report.probes("warning") == ["pooler"]
    assert report["pooler"].startswith("a pooler in session mode: everything works, and each process takes up to 3")
    assert report.found["lock"]["verdict"] == report.found["LISTEN/NOTIFY"]["verdict"] == "ok"
    assert advisory_locks(database) == []


@pytest.mark.needs("pgbouncer")
@pytest.mark.long
def test_a_session_pooler_that_has_one_session(pgbouncer: Pooler) -> None:
    """Probes that need a second session fail in bounded time, and the others still run."""
    report = doctor("--url", pgbouncer("session", pool_size=1).url)
    assert report.probes("fails") == ["LISTEN/NOTIFY", "lock"]
    assert report["lock"] == "no answer within 10 s"
    assert report.found["clock"]["verdict"] == "ok"


def test_a_standby(server: Server, standby: Cluster) -> None:
    url = rewrite(server.tcp_url, port=standby.port)
    report = doctor("--url", url)
    assert report.probes("fails") == ["primary"]
    assert report.probes("skipped") == NEED_A_SESSION
    assert "target_session_attrs=read-write" in report.will_not_work[0]["remedy"]
    port = conninfo_to_dict(server.tcp_url)["port"]
    both = rewrite(server.tcp_url, host="127.0.0.1,127.0.0.1", port=f"{standby.port},{port}")
    report = doctor("--url", both)
    assert (report.code, report["primary"]) == (0, "the server is a primary")
    assert f"before it, 127.0.0.1:{standby.port}: a standby" in report["connect"]


def test_a_role_without_rights(server: Server, database: str) -> None:
    with role(server, database, "powerless") as url:
        report = doctor("--url", url)
        assert (report.code, report.probes("fails"), report.probes("warning")) == (0, [], [])
        assert report["rights"].startswith("powerless sees who holds a lock, but neither address nor time")
        assert report.remedy("rights") == 'grant pg_read_all_stats to "powerless"'
        assert report.found["lock"]["verdict"] == "ok"


def test_what_a_role_sets_is_told(server: Server, database: str) -> None:
    with role(server, database, "hasty", "idle_session_timeout = '90s'", "statement_timeout = '7s'") as url:
        report = doctor("--url", url)
        assert report.code == 0
        assert report["idle_session_timeout"] == (
            "the server ends sessions that are idle for 90 s; ours switch that off for themselves"
        )
        assert "role or database sets idle_session_timeout=90000, statement_timeout=7000" in report["settings"]


def test_a_probe_that_fails_does_not_stop_the_others(server: Server, database: str) -> None:
    """A role that may have two connections: the examination has one, and each second one is another probe's."""
    server.execute("create role lonely login password 'hunter2' connection limit 1")
    try:
        report = doctor("--url", rewrite(server.over_tcp(database), user="lonely", password="hunter2"))
    finally:
        server.execute("drop role lonely")
    assert report.probes("fails") == ["LISTEN/NOTIFY", "lock"]
    assert "too many connections for role" in report["lock"]
    assert report.found["clock"]["verdict"] == "ok"
    assert [limit["what"] for limit in report.will_not_work] == [
        "being woken: whoever waits finds a free lock by looking again, within about a second",
        "locks and semaphores",
    ]


def test_encryption_is_seen(tls_proxy: FaultProxy, database: str) -> None:
    report = doctor("--url", rewrite(tls_proxy.url(database), sslmode="require"))
    assert report["TLS"] == "the connection is encrypted"


def test_a_server_without_the_encryption_that_is_asked_for(server: Server, database: str) -> None:
    report = doctor("--url", rewrite(server.over_tcp(database), sslmode="require"))
    assert report["connect"].startswith("the two sides do not agree on encryption: ")
    assert "sslmode" in report.remedy("connect")


@pytest.mark.parametrize("variable", ["PGCONCERT_URL", "DATABASE_URL"])
def test_where_the_address_came_from(database: str, variable: str) -> None:
    assert doctor(**{variable: database})["address"].startswith(f"from {variable}: ")


def test_an_address_of_libpqs_variables(server: Server, database: str) -> None:
    known = conninfo_to_dict(server.over_tcp(database))
    report = doctor(
        PGHOST=str(known["host"]), PGPORT=str(known["port"]), PGUSER=str(known["user"]),
        PGPASSWORD=str(known["password"]), PGDATABASE=str(known["dbname"]),
    )  # fmt: skip
    assert report["address"].startswith("from libpq's own variables: libpq's default host")
    assert report.code == 0


def test_no_address() -> None:
    report = doctor()
    assert report.probes("fails") == ["address"]
    assert report["address"].startswith("no database address: ")
    assert report.remedy("address") == "export PGCONCERT_URL=postgresql://user@host:5432/database"


def test_an_address_that_is_none() -> None:
    assert doctor("--url", "postgresql://ann:hunter2@[broken/x").probes("fails") == ["address"]


def test_a_direct_address_that_is_none(database: str) -> None:
    report = doctor("--url", database, "--direct-url", "postgresql://ann:hunter2@[broken/x")
    assert report.probes("fails") == ["address (direct)"]
    assert [limit["what"] for limit in report.will_not_work] == [
        "locks, semaphores, and hearing of what happens (LISTEN)"
    ]


def test_an_unknown_service() -> None:
    report = doctor("--url", "service=nowhere")
    assert report["address"] == "from --url: service nowhere"
    assert "service 'nowhere' is not defined in " in report["name look-up"]


def test_help_has_examples_and_exit_codes() -> None:
    said = run("doctor", "--help").stdout
    assert 'pgconcert doctor --url "$POOLED" --direct-url "$DIRECT"' in said
    assert "Exit code: 0 if nothing fails" in said
