"""`embedded://` without a folder: an ordinary user's own one, and root's.

Here live the tests of where that is. Theory: two processes of one user must find the same folder, or they are not kept
apart by the same locks; and a user who has no usable place is told to name one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any, Final

import psycopg
import pytest

import pgconcert
from pgconcert.errors import EmbeddedServerError
from pgconcert.postgres.embedded import EmbeddedServer
from pgconcert.postgres.embedded import place as embedded_place
from tests.postgres.embedded.scenes import (
    ROOT,
    USER,
    alive,
    ask,
    cleared,
    eventually,
    only_root,
    postmaster,
)

# Says where the server would live, or why nowhere; starts none.
WHERE: Final = """
from pgconcert.errors import EmbeddedServerError
from pgconcert.postgres.embedded.place import place
try:
    print(place("embedded://").home)
except EmbeddedServerError as error:
    print("refused:", error)
"""


@dataclass(frozen=True)
class Ordinary:
    """A user without privileges and the empty home folder that the environment names: we, or if we are root nobody."""

    home: Path
    python: str = sys.executable
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def uid(self) -> int:
        return int(self.identity.get("user", os.geteuid()))

    def options(self, **environment: str) -> dict[str, Any]:
        paths = [str(Path(module.__file__ or "").parents[1]) for module in (pgconcert, psycopg)]
        given = {"HOME": str(self.home), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths), **environment}
        return {"env": given, "cwd": "/", "text": True, **self.identity}

    def says(self, code: str, **environment: str) -> str:
        command = [self.python, "-c", code]
        return str(
            subprocess.run(command, stdout=subprocess.PIPE, check=True, **self.options(**environment)).stdout
        ).strip()


@pytest.fixture
def ordinary(empty: Path) -> Ordinary:
    if not ROOT:
        return Ordinary(empty)
    nobody = pwd.getpwnam("nobody")
    os.chown(empty, nobody.pw_uid, nobody.pw_gid)
    empty.chmod(0o700)
    identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    # Our own environment may lie in a folder that only root may enter.
    for python in (sys.executable, shutil.which("python3", path="/usr/bin")):
        user = Ordinary(empty, python or "", identity)
        try:
            if user.says("import sys, pgconcert.postgres.embedded; print(sys.version_info >= (3, 11))") == "True":
                return user
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("no Python 3.11 or later that user nobody can run, or the source is out of his reach")


def test_an_ordinary_user_has_a_folder_of_his_own(ordinary: Ordinary) -> None:
    mine = ordinary.home / ".local" / "share" / "pgconcert"
    with cleared(mine):
        command = [ordinary.python, "-c", USER, "embedded://"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **ordinary.options()) as process:
            assert process.stdout is not None
            assert ask(process.stdout.readline().strip()) == 42
            assert {path.stat().st_uid for path in mine.rglob("*")} == {ordinary.uid}
            assert (mine / "cluster").stat().st_mode & 0o777 == 0o700
            pid = postmaster(mine)
            process.kill()
        eventually(lambda: not alive(pid), "the server is gone")


@pytest.mark.parametrize(
    ("data_home", "expected"), [("{home}/data", "data"), ("data", ".local/share"), ("", ".local/share")]
)
def test_an_ordinary_users_folder_for_data_is_respected(ordinary: Ordinary, data_home: str, expected: str) -> None:
    """The XDG specification: a relative folder is ignored, an empty one is not set."""
    said = ordinary.says(WHERE, XDG_DATA_HOME=data_home.format(home=ordinary.home))
    assert said == str(ordinary.home / expected / "pgconcert" / "cluster")


def test_an_ordinary_user_without_a_usable_home_is_told_to_name_a_folder(ordinary: Ordinary) -> None:
    """A container that is started with just a user's number has a home of / or none."""
    said = ordinary.says(WHERE, HOME="/proc/home")
    assert said.startswith("refused: /proc/home/.local/share/pgconcert cannot be made")
    assert said.endswith("name a folder that you may write to: embedded:///folder")


@only_root
def test_roots_own_folder(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = empty / "pgconcert"
    monkeypatch.setattr(embedded_place, "_ROOT_AREA", area)
    with cleared(area):
        with EmbeddedServer.start() as server:
            assert ask(server.url) == 42
            assert (area.stat().st_uid, area.stat().st_mode & 0o777) == (0, 0o755)
            home = (area / "cluster").stat()
            assert home.st_uid == Path(f"/proc/{postmaster(area)}").stat().st_uid != 0
            assert home.st_mode & 0o777 == 0o700
            with EmbeddedServer.start("embedded://") as again:
                assert again.url == server.url


def _under_a_file(area: Path) -> None:
    area.parent.rmdir()
    area.parent.touch()


def _writable_by_all(area: Path) -> None:
    area.mkdir()
    area.chmod(0o777)


def _somebody_elses(area: Path) -> None:
    area.mkdir(mode=0o755)
    nobody = pwd.getpwnam("nobody")
    os.chown(area, nobody.pw_uid, nobody.pw_gid)


def _a_link(area: Path) -> None:
    target = area.with_name("target")
    target.mkdir(mode=0o755)
    area.symlink_to(target)


UNFIT: Final = [_under_a_file, _writable_by_all, _somebody_elses, _a_link]


@only_root
@pytest.mark.parametrize("spoil", UNFIT)
def test_roots_fallback_where_the_usual_folder_is_unfit(
    empty: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    usual, temporary = empty / "lib" / "pgconcert", empty / "tmp"
    for folder in (usual.parent, temporary):
        folder.mkdir(mode=0o755)
    spoil(usual)
    before = usual.parent.stat().st_mode, sorted(usual.parent.rglob("*"))
    monkeypatch.setattr(embedded_place, "_ROOT_AREA", usual)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    home = temporary / "pgconcert-root" / "cluster"
    assert {embedded_place.place("embedded://").home for _ in range(2)} == {home}
    assert home.stat().st_uid != 0
    assert home.parent.stat().st_mode & 0o777 == 0o755
    assert (usual.parent.stat().st_mode, sorted(usual.parent.rglob("*"))) == before
    _somebody_elses_instead(home.parent)
    with pytest.raises(EmbeddedServerError, match=rf"neither {usual} nor .*{temporary}.*embedded:///folder"):
        EmbeddedServer.start()


def _somebody_elses_instead(area: Path) -> None:
    """What another user may do to a place in the temporary folder before root comes."""
    shutil.rmtree(area)
    _somebody_elses(area)


@only_root
def test_root_processes_that_come_at_once_find_one_folder(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers would know nothing of each other's locks."""
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    arrived = Barrier(4)

    def find(_: int) -> Path:
        arrived.wait(60)
        return embedded_place._root_area()

    with ThreadPoolExecutor(arrived.parties) as pool:
        for number in range(200):
            area = empty / str(number)
            monkeypatch.setattr(embedded_place, "_ROOT_AREA", area)
            assert set(pool.map(find, range(arrived.parties))) == {area}
