"""What findings mean: the verdict at each threshold, the advice for each refusal, and what will not work."""

from __future__ import annotations

import pytest

from pgconcert.postgres import verdicts
from pgconcert.postgres.refusals import names_no_database, refusal
from pgconcert.postgres.verdicts import Finding

ADDRESS = {"host": "db", "port": "6000", "user": "ann", "dbname": "app", "password": "hunter2"}


@pytest.mark.parametrize(
    ("said", "meaning", "remedy"),
    [
        ('connection to server at "db" failed: Connection refused', "nobody listens there", "pg_isready -h db -p 6000"),
        ('socket "/x/.s.PGSQL.1" failed: No such file or directory', "nobody listens there", "pg_isready"),
        ('FATAL: password authentication failed for user "ann"', "does not believe that we are ann", "PGPASSWORD"),
        ("fe_sendauth: no password supplied", "does not believe that we are ann", "~/.pgpass"),
        ('no pg_hba.conf entry for host "1.2.3.4", no encryption', "lets nobody in from here", "host app ann"),
        ('FATAL: database "app" does not exist', "has no database app", "there are: one, two; or: create database app"),
        ("FATAL: no such database: app", "has no database app", "create database app"),
        ('FATAL: role "ann" does not exist', "has no role ann", "create role ann login"),
        ("FATAL: sorry, too many clients already", "no connection left", "max_connections"),
        ("FATAL: the database system is starting up", "starting or stopping", "wait"),
        ("server does not support SSL, but SSL was required", "do not agree on encryption", "sslmode"),
        ('root certificate file "/x" does not exist', "do not agree on encryption", "sslrootcert"),
        ("session is read-only", "target_session_attrs", "name all hosts"),
        ("db:6000: no answer within 10 s", "nothing comes back", "firewall"),
        ("kaboom", "no connection: kaboom", "server's log"),
    ],
)
def test_a_refusal_is_explained(said: str, meaning: str, remedy: str) -> None:
    finding = refusal(said, ADDRESS, ["one", "two"])
    assert finding.verdict == "fails"
    assert meaning in finding.meaning
    assert said in finding.meaning
    assert remedy in finding.remedy
    assert "hunter2" not in str(finding)


def test_a_refusal_of_an_address_that_says_little() -> None:
    finding = refusal('database "root" does not exist', {})
    assert "there are: (this role may not look)" in finding.remedy
    assert "localhost" in refusal("Connection refused", {}).remedy


def test_only_a_missing_database_is_one() -> None:
    assert names_no_database('FATAL: database "x y" does not exist')
    assert not names_no_database('FATAL: role "x" does not exist')


def test_the_place_is_told_without_its_password() -> None:
    assert verdicts.place_of(ADDRESS) == "db, port 6000, database app, user ann, with a password"
    assert "without a password" in verdicts.place_of({"host": "db"})
    assert verdicts.place_of({"service": "app", "password": "hunter2"}) == "service app"


@pytest.mark.parametrize(
    ("finding", "verdict", "said"),
    [
        (verdicts.admission("db:1", 0.002, []), "ok", "db:1 let us in"),
        (verdicts.admission("db:2", 0.002, ["db:1: refused"]), "warning", "before it, db:1: refused"),
        (verdicts.tls(True, False), "ok", "is encrypted"),
        (verdicts.tls(False, True), "ok", "does not leave this machine"),
        (verdicts.tls(False, False), "warning", "whoever is on the way can read it"),
        (verdicts.pooler("direct", False), "ok", "the server itself"),
        (verdicts.pooler("session pooler", False), "warning", "up to 3 of its connections"),
        (verdicts.pooler("transaction pooler", True), "ok", "good for publishing"),
        (verdicts.pooler("transaction pooler", False), "fails", "locks and LISTEN cannot work"),
        (verdicts.server_role(False), "ok", "primary"),
        (verdicts.server_role(True), "fails", "exclude nobody"),
        (verdicts.version(180004), "ok", "PostgreSQL 18.4"),
        (verdicts.version(140000), "ok", "PostgreSQL 14.0"),
        (verdicts.version(130021), "warning", "PostgreSQL 13.21 is older than 14"),
        (verdicts.lock_table(100, 50), "ok", "50 advisory locks"),
        (verdicts.lock_table(100, 51), "warning", "which tables and rows need too"),
        (verdicts.connections(100, 3, 87), "ok", "10 of 100"),
        (verdicts.connections(100, 3, 88), "warning", "9 of 100"),
        (verdicts.connections(100, 3, 99), "warning", "0 of 100"),
        (verdicts.settings_taken(16, {}, {}), "ok", "all 16 settings of our sessions were taken"),
        (
            verdicts.settings_taken(16, {}, {"search_path": ""}),
            "ok",
            "sets search_path='', which our sessions override",
        ),
        (verdicts.settings_taken(15, {"x": "denied"}, {}), "warning", "refused x: denied"),
        (verdicts.idle_limit(0, True), "ok", "no idle sessions"),
        (verdicts.idle_limit(1500, False), "info", "idle for 1.5 s; ours switch that off"),
        (verdicts.idle_limit(1500, True), "fails", "ours too: locks are lost"),
        (verdicts.notify_queue(0.49), "ok", "49.0% full"),
        (verdicts.notify_queue(0.5), "warning", "every NOTIFY fails"),
        (verdicts.clock(0.99, 0.0), "ok", "0.990 s ahead of ours"),
        (verdicts.clock(-1.5, 0.6), "ok", "1.500 s behind ours (give or take 0.600 s)"),
        (verdicts.clock(-1.5, 0.1), "warning", "times in logs"),
        (verdicts.latency(0.099, 10), "ok", "99.00 ms"),
        (verdicts.latency(0.1, 10), "warning", "that is far"),
        (verdicts.keepalive(0, 0, True), "ok", "local socket"),
        (verdicts.keepalive(2, 5000, False), "ok", "after 2 s of silence and gives up after 5 s"),
        (verdicts.keepalive(2, 0, False), "warning", "for hours"),
        (verdicts.notification(0.002, 5), "ok", "after 2.0 ms"),
        (verdicts.notification(None, 5), "fails", "did not arrive within 5 s"),
        (verdicts.lock_story([True, False, True]), "ok", "another was refused"),
        (verdicts.lock_story([True, True, True]), "fails", "granted, then granted, then granted"),
        (verdicts.rights("ann", True), "ok", "ann sees all"),
        (verdicts.rights("ann", False), "info", "neither address nor time"),
    ],
    ids=str,
)
def test_verdicts(finding: Finding, verdict: str, said: str) -> None:
    assert finding.verdict == verdict
    assert said in finding.meaning
    assert finding.remedy or verdict in ("ok", "info")


def test_nothing_fails_nothing_is_missing() -> None:
    assert verdicts.limits([Finding("lock", "warning", "x"), Finding("LISTEN/NOTIFY", "skipped", "x")]) == []


def test_what_will_not_work_comes_with_its_remedy() -> None:
    pooler = verdicts.pooler("transaction pooler", False)
    (limit,) = verdicts.limits([pooler])
    assert limit.what.startswith("locks, semaphores, and hearing")
    assert limit.remedy == pooler.remedy
    assert verdicts.limits([Finding("lock", "fails", "why")]) == [("locks and semaphores", "why")]
    assert verdicts.limits([Finding("new", "fails", "why")]) == [("what needs the probe new", "why")]


def test_without_a_connection_nothing_else_is_listed() -> None:
    found = verdicts.limits([Finding("lock", "fails", "x"), Finding("connect", "fails", "y", "z")])
    assert found == [("anything at all", "z")]
