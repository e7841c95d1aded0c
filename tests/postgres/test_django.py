"""The application for Django: what its settings say, the coordinator of a process, the command line.

Here lives what can be tried inside one process; the example has a project with its own runner and a server
(``tests/docs/test_django_example.py``).
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine

from pgconcert.blocking import Coordinator
from pgconcert.errors import ConfigurationError
from pgconcert.testing import sessions
from tests import djangosettings
from tests.djangosettings import SECRET, alias, said
from tests.processes import Worker

djangosettings.setup_django()

from django.core import checks  # noqa: E402 - Django is set up before anything of it is used
from django.db import connections  # noqa: E402
from django.db.migrations import RunSQL  # noqa: E402
from django.test import override_settings  # noqa: E402

from pgconcert.contrib import django as ours  # noqa: E402
from pgconcert.contrib.django.conf import text_address  # noqa: E402


@pytest.fixture
def project(database: str) -> Iterator[str]:
    """The alias of a project whose settings name it."""
    with djangosettings.project(database) as name:
        yield name


# settings


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (None, "the database 'default' is unknown, and pgconcert needs PostgreSQL"),
        ("default", "must be a dict, not 'default'"),
        ({"DATABSE": "default"}, "no key 'DATABSE': it knows DATABASE, NAMESPACE, SCHEMA, ADDRESS, COORDINATOR"),
        ({"DATABASE": "nobody"}, r"PGCONCERT\['DATABASE'\] must be an alias of DATABASES \(default\), not 'nobody'"),
        ({"DATABASE": None}, "not None"),
        ({"NAMESPACE": 1}, r"PGCONCERT\['NAMESPACE'\]: namespace must be"),
        ({"SCHEMA": ""}, r"PGCONCERT\['SCHEMA'\]: "),
        ({"ADDRESS": 5}, r"PGCONCERT\['ADDRESS'\]: an address is a connection string"),
        ({"ADDRESS": "postgresql://u:p@h:port/x"}, r"PGCONCERT\['ADDRESS'\]: .* is not a valid PostgreSQL"),
        ({"ADDRESS": "nothing://x"}, "no backend is installed for nothing://"),
        ({"COORDINATOR": "x"}, r"PGCONCERT\['COORDINATOR'\] must be a dict"),
        ({"COORDINATOR": {"network_timout": 1}}, "cannot have 'network_timout': a coordinator has connect_timeout, "),
        ({"COORDINATOR": {"namespace": "x"}}, r"cannot have 'namespace': write PGCONCERT\['NAMESPACE'\]"),
        ({"COORDINATOR": {"address": "x"}}, "cannot have 'address': it is the database's own"),
    ],
)
def test_wrong_settings_are_named(setting: Any, told: str) -> None:
    """By the check, and by whoever needs them."""
    with override_settings(**({} if setting is None else {"PGCONCERT": setting})):
        found = [message for message in checks.run_checks() if message.id == "pgconcert.E001"]
        with pytest.raises(ConfigurationError, match=told):
            ours.coordinator()
    assert len(found) >= 1


def test_right_settings(project: str, database: str) -> None:
    """They reach the coordinator; a parameter of one of the twins only is for that one."""
    more = {"name": "the shop", "handler_threads": 2, "engine": "thread"}
    setting = {"DATABASE": project, "NAMESPACE": "shop", "SCHEMA": "other", "COORDINATOR": more}
    with override_settings(PGCONCERT=setting), Coordinator(database, namespace="shop") as same:
        assert checks.run_checks() == []
        with ours.coordinator().lock("x"):
            assert same.lock("x").try_acquire() is None
            assert any(session.application_name.startswith("the shop@") for session in sessions(database))


def test_the_address_is_that_of_django(database: str) -> None:
    """With the options that the server's library knows, without those of Django and its driver."""
    options = {"sslmode": "prefer", "isolation_level": 1, "pool": False, "server_side_binding": True}
    parts = {"HOST": "db.example", "PORT": "5433", "NAME": "a b", "USER": "u", "PASSWORD": "it's"}
    with alias(database, None, OPTIONS=options, **parts) as name:
        found = conninfo_to_dict(text_address(name))
    assert found.pop("sslmode") == "prefer"
    assert found == {"host": "db.example", "port": "5433", "dbname": "a b", "user": "u", "password": "it's"}


def test_another_address(project: str) -> None:
    """For those whose database is behind a pooler, and for tests without one; an alias that is said is an alias."""
    with override_settings(PGCONCERT={"DATABASE": project, "ADDRESS": "memory://django"}):
        assert ours.coordinator() is ours.coordinator()
        assert ours.coordinator() is not ours.coordinator(project)
        assert checks.run_checks(databases=[project]) == []
        with ours.coordinator().lock("a"), ours.coordinator(project).lock("a"):
            pass


def test_a_database_without_a_name(database: str) -> None:
    """Django says what is missing, and we pass it on as ours."""
    with alias(database, NAME="") as name, override_settings(PGCONCERT={"DATABASE": name}):
        assert [message.id for message in checks.run_checks()] == ["pgconcert.E001"]
        with pytest.raises(ConfigurationError, match=f"'{name}': .*supply the NAME"):
            ours.coordinator(name)


def test_tables_are_looked_for(server: Any, project: str) -> None:
    """When a database is checked: what is missing and what makes it, and no password when it cannot be asked."""
    with server.fresh_database() as url, alias(url, PASSWORD=SECRET) as name:
        with override_settings(PGCONCERT={"DATABASE": name}):
            assert checks.run_checks() == []
            (missing,) = checks.run_checks(databases=[name])
            assert (missing.id, "schema apply" in missing.hint) == ("pgconcert.W001", True)
            said("schema", "apply")
            assert checks.run_checks(databases=[name]) == []
    with alias(url, HOST="127.0.0.1", PORT=1, PASSWORD=SECRET) as name:
        with override_settings(PGCONCERT={"DATABASE": name}):
            (unasked,) = checks.run_checks(databases=[name])
    assert unasked.id == "pgconcert.W002"
    assert SECRET not in unasked.msg


def test_a_migration_may_make_the_tables(server: Any) -> None:
    """By the SQL that is printed, in the transaction of the migration."""
    with server.fresh_database() as url, alias(url) as name, override_settings(PGCONCERT={"DATABASE": name}):
        with connections[name].schema_editor() as editor:
            RunSQL(said("schema", "show")).database_forwards("shop", editor, None, None)
        assert "current" in said("schema", "check")


# coordinators


def test_one_coordinator_for_all_threads(project: str) -> None:
    found: set[Coordinator] = set()
    begin = threading.Barrier(8)

    def ask() -> None:
        begin.wait()
        found.add(ours.coordinator())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {ours.coordinator(), ours.coordinator(project)}
    assert len(found) == 1


def test_closed_and_opened_anew(project: str) -> None:
    """On demand, when settings are overridden, and before a test database comes or goes."""
    seen = [ours.coordinator()]
    hold = seen[-1].lock("x").acquire()
    ours.close_coordinators()
    assert hold.lost
    seen.append(ours.coordinator())
    with override_settings(PGCONCERT={"DATABASE": project, "NAMESPACE": "other"}):
        seen.append(ours.coordinator())
        with connections[project]._nodb_cursor():
            assert repr(seen[-1]) == "<Coordinator closed>"
            seen.append(ours.coordinator())
    seen.append(ours.coordinator())
    assert len(set(seen)) == 5
    with seen[-1].lock("x"):
        assert [repr(c) for c in seen[:-1]] == ["<Coordinator closed>"] * 4


def test_all_are_closed(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first one fails, which is raised."""
    close = Coordinator.close

    def failing(self: Coordinator) -> None:
        close(self)
        raise OSError("not this one")

    with override_settings(PGCONCERT={"DATABASE": project, "ADDRESS": "memory://django"}):
        both = [ours.coordinator(), ours.coordinator(project)]
        with monkeypatch.context() as patch:
            patch.setattr(Coordinator, "close", failing)
            with pytest.raises(OSError, match="not this one"):
                ours.close_coordinators()
        assert [repr(c) for c in both] == ["<Coordinator closed>"] * 2


FORKS = """
import os, sys
from pgconcert.testing import sessions
from tests.djangosettings import alias, setup_django
setup_django()
from django.test import override_settings
from pgconcert.contrib.django import coordinator, exclusive

def tell(what):
    os.write(1, f"{what}\\n".encode())

with alias(sys.argv[1]) as name, override_settings(PGCONCERT={"DATABASE": name}):
    hold = coordinator().lock("forked").acquire()
    mine = coordinator()
    child = os.fork()
    if not child:
        other = coordinator()
        tell(f"child {other is not mine} {other.lock('forked').try_acquire()}")
        with other.lock("other"):
            tell("child has another")
        sys.exit(0)  # as workers of servers do
    tell(f"ended {os.waitpid(child, 0)[1]}")
    hold.check()
    tell(f"parent {coordinator() is mine} {hold.lost}")
"""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own(database: str, worker: Callable[..., Worker]) -> None:
    """As below ``gunicorn --preload`` and in Celery's pool; the parent keeps what it has."""
    process = worker(FORKS, database)
    assert process.expect("child") == "True None"
    process.expect("child has another")
    assert process.expect("ended") == "0"
    assert process.expect("parent") == "True False"
    assert process.wait() == 0


# the command


def test_the_command_line(project: str, server: Any) -> None:
    """For the database of the settings, for another one, or for an address that is given."""
    with ours.coordinator().lock("seen"):
        assert len(json.loads(said("status", "--json"))["locks"]) == 1
    with server.fresh_database() as url, alias(url) as other:
        name = connections[other].settings_dict["NAME"]
        assert name in said("--database", other, "status")
        assert name in said("status", "--url", url)
        with pytest.raises(SystemExit) as ended:
            said("--database", other, "schema", "check")
        assert ended.value.code == 3
    with pytest.raises(ConfigurationError, match="'nobody'"):
        said("--database", "nobody", "status")


def test_the_command_line_knows_the_settings(project: str, unique: str) -> None:
    """The schema and the namespace, where the command's own default is the empty one; and it shows no password."""
    with override_settings(PGCONCERT={"DATABASE": project, "SCHEMA": "of_command", "NAMESPACE": "shop"}):
        assert "schema of_command: applied" in said("schema", "apply")
        assert 'create table "of_command".' in said("schema", "show").lower()
        with ours.coordinator().lock(unique):
            assert "held" in said("status", unique)
        assert SECRET not in said("status", "--help")
        assert SECRET not in said("doctor")
    assert "listen" in said()
    assert "listen" in said("--", "--help")
    assert said("completion", "bash")


def test_the_command_line_takes_every_address(project: str, database: str) -> None:
    """Also what is no text: a callable that is asked when it is needed, an engine."""
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    for address in (lambda: database, engine):
        setting = {"ADDRESS": address, "COORDINATOR": {"direct_url": address}}
        with override_settings(PGCONCERT=setting), ours.coordinator().lock("seen"):
            assert "held" in said("status", "seen")
    engine.dispose()


def test_a_program_that_is_run_gets_no_password(project: str, unique: str, tmp_path: Path) -> None:
    """The address is neither in its environment nor among the arguments of the process that runs it."""
    text = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(str({**os.environ}))"
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    said("run", "--lock", unique, "--", sys.executable, "-c", text, str(tmp_path / "environment"))
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    environment = (tmp_path / "environment").read_text()
    assert f"'PGCONCERT_LOCK': '{unique}'" in environment
    assert SECRET not in environment
