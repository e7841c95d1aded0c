"""The embedded server is shared, stopped by the last one, and never leaked, whoever is killed and when.

Here live the tests of its users among themselves and of the reaper. Theory: a user leaves by `stop` or by SIGKILL, the
last one or not, with a reaper or without, and meanwhile somebody arrives; each pair of these meets here once.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from pgconcert.postgres.embedded import EmbeddedServer
from tests.postgres.embedded.scenes import User, address, alive, ask, eventually, postmaster, reaper


def test_a_server_starts_answers_and_stops(empty: Path) -> None:
    with EmbeddedServer.start(address(empty)) as server:
        assert ask(server.url, "SHOW server_version").startswith("18")
        assert [ask(server.url, f"SHOW {name}") for name in ("fsync", "listen_addresses")] == ["on", ""]
        assert os.getsid(postmaster(empty)) != os.getsid(0)
        assert "in use" in repr(server)
        pid = postmaster(empty)
    assert not alive(pid)
    assert "left" in repr(server)
    server.stop()


def test_the_last_of_two_processes_stops_it(folder: Path) -> None:
    first = User(folder)
    url = first.line()
    pid = postmaster(folder)
    second = User(folder)
    assert second.line() == url
    assert postmaster(folder) == pid
    first.leave()
    assert alive(pid)
    assert ask(url) == 42
    second.leave()
    assert not alive(pid)


def test_two_users_in_one_process(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)) as first:
        second = EmbeddedServer.start(address(folder))
        second.stop()
        assert ask(first.url) == 42


def test_killing_the_only_user_stops_it(folder: Path) -> None:
    user = User(folder)
    user.line()
    pid = postmaster(folder)
    user.kill()
    eventually(lambda: not alive(pid), "the server is gone")


def test_killing_one_of_two_users_changes_nothing(folder: Path) -> None:
    users = [User(folder), User(folder)]
    urls = [user.line() for user in users]
    pid, watcher = postmaster(folder), reaper(folder)
    users[0].kill()
    assert ask(urls[1]) == 42
    # A user who comes and goes drives the reaper's and the last one's question through the gate.
    EmbeddedServer.start(address(folder)).stop()
    assert (postmaster(folder), reaper(folder)) == (pid, watcher)
    assert ask(urls[1]) == 42
    users[1].leave()
    assert not alive(pid)


def test_a_killed_reaper_is_replaced_by_the_next_user(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)):
        old = reaper(folder)
        os.kill(old, signal.SIGKILL)
        eventually(lambda: not alive(old), "the reaper is dead")
        second = User(folder)
        second.line()
        assert reaper(folder) != old
    pid = postmaster(folder)
    second.kill()
    eventually(lambda: not alive(pid), "the server is gone")


def test_without_a_reaper_the_last_user_still_stops_it(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)):
        os.kill(reaper(folder), signal.SIGKILL)
        pid = postmaster(folder)
    assert not alive(pid)


@pytest.mark.parametrize("rounds", [2, pytest.param(12, marks=pytest.mark.long)])
def test_arriving_while_the_reaper_stops_it_gives_a_running_server(folder: Path, rounds: int) -> None:
    for _ in range(rounds):
        user = User(folder)
        user.line()
        user.process.kill()
        with EmbeddedServer.start(address(folder)) as server:
            assert ask(server.url) == 42
            # Whichever of us went through the gate first, the reaper's question must not cost us the server.
            EmbeddedServer.start(address(folder)).stop()
            assert ask(server.url) == 42
            assert reaper(folder)
        user.kill()


def test_the_folder_may_be_deleted_as_soon_as_the_server_is_stopped(folder: Path) -> None:
    home = folder / "cluster"
    with EmbeddedServer.start(address(folder)):
        late = reaper(folder)
        os.kill(late, signal.SIGSTOP)
    for path in home.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.kill(late, signal.SIGCONT)
    eventually(lambda: not alive(late), "the reaper has ended")
    assert not list(home.iterdir())


@pytest.mark.long
def test_a_late_reaper_spares_the_server_of_a_new_folder_in_the_same_place(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)):
        late = reaper(folder)
        os.kill(late, signal.SIGSTOP)
    shutil.rmtree(folder / "cluster")
    with EmbeddedServer.start(address(folder)) as server:
        pid = postmaster(folder)
        os.kill(late, signal.SIGCONT)
        eventually(lambda: not alive(late), "the old reaper has ended")
        assert ask(server.url) == 42
        assert postmaster(folder) == pid


def test_six_processes_start_at_once(empty: Path) -> None:
    users = [User(empty) for _ in range(6)]
    urls = {user.line() for user in users}
    assert len(urls) == 1
    assert ask(urls.pop()) == 42
    assert not list((empty / "cluster").glob("data.new-*"))
    pid = postmaster(empty)
    for user in users[:3]:
        user.kill()
    for user in users[3:]:
        user.leave()
    eventually(lambda: not alive(pid), "the server is gone")


def test_ctrl_c_reaches_the_user_and_not_the_server(folder: Path) -> None:
    user = User(folder)
    url, pid = user.line(), postmaster(folder)
    os.killpg(user.process.pid, signal.SIGINT)
    assert user.line() == "interrupted"
    assert ask(url) == 42
    assert postmaster(folder) == pid
    user.leave()


FORKING = """
import os, sys
from pgconcert.postgres.embedded import EmbeddedServer
server = EmbeddedServer.start(sys.argv[1])
done, go = os.pipe()
child = os.fork()
if child == 0:
    os.close(go)
    server.stop()
    os.write(1, b"child stopped\\n")
    os.read(done, 1)
    os._exit(0)
os.close(done)
os.write(1, b"forked %d\\n" % child)
sys.stdin.readline()
server.stop()
print("left", flush=True)
sys.stdin.readline()
"""


def test_a_forked_child_neither_stops_the_server_nor_keeps_it(folder: Path) -> None:
    user = User(folder, FORKING)
    said = {user.line(), user.line()}
    assert "child stopped" in said
    child = int(next(line for line in said if line.startswith("forked")).split()[1])
    pid = postmaster(folder)
    assert alive(pid)
    assert user.process.stdin is not None
    user.process.stdin.write("\n")
    user.process.stdin.flush()
    assert user.line() == "left"
    assert alive(child)
    assert not alive(pid)
    user.leave()


def test_a_forked_child_does_not_keep_the_server_of_a_killed_parent(folder: Path) -> None:
    user = User(folder, FORKING)
    said = {user.line(), user.line()}
    child = int(next(line for line in said if line.startswith("forked")).split()[1])
    pid = postmaster(folder)
    os.kill(child, signal.SIGSTOP)
    user.process.kill()
    eventually(lambda: not alive(pid), "the server is gone")
    os.kill(child, signal.SIGKILL)
    user.kill()
