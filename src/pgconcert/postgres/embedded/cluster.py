"""The cluster of an embedded server and its way from nothing to ready.

Here the data folder is made, a dead server's traces are made harmless, the server is started and waited for. Everything
is called under the gate (see `reaper`), so nobody else starts or stops a server of the same home meanwhile.

Two rules make a crash at any point harmless. What is half made has another name and is renamed when it is whole. What a
dead server left behind is believed only as far as PostgreSQL itself checks it: a process number is not, because after a
crash of the machine it may be any process's; the lock that all processes of a server hold is.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from ...errors import EmbeddedServerError
from . import reaper as shared
from .place import Place, socket_folder, usable_binaries

__all__ = ["LIMIT", "PASSWORD", "start_server", "wait_until_ready"]

# Crash recovery may take its time: it writes a line a second. Silence for _QUIET seconds, or LIMIT in all, is given up.
_QUIET = 180.0
LIMIT = 3600.0

_LOG = "server.log"
PASSWORD = "password"  # noqa: S105
_DEFAULTS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_startup_progress_interval": "1s",
}

# A process number that no system hands out; PostgreSQL takes it for a dead process and still checks the shared memory.
_NOBODY = 2**31 - 1


def start_server(where: Place, settings: Mapping[str, str], server_lock: int) -> None:
    """Start the server of a home in which none lives; it becomes ready later. Under the gate.

    ``server_lock`` is the descriptor of the taken server lock, which the server inherits.
    """
    home, binaries = where.home, usable_binaries(where)
    if not (home / shared.DATA).exists():
        _make_cluster(where, binaries, server_lock)
    _check_version(where, binaries)
    _clear_stale_pid(where)
    folder = socket_folder(where)
    command = [str(binaries / "postgres"), "-D", str(home / shared.DATA), "-c", f'unix_socket_directories="{folder}"']
    for name, value in {**_DEFAULTS, **settings}.items():
        command += ["-c", f"{name}={value}"]
    # Nobody but us uses the socket's folder, and no server lives: what is in it is dead, whatever numbers it records.
    script = (
        'set -e; cd "$1"; mkdir -p "$2"; rm -f "$2"/.s.PGSQL.*; if [ -f "$3" ]; then mv -f "$3" "$3.1"; fi; log=$3; '
        'shift 3; "$@" </dev/null >>"$log" 2>&1 &'
    )
    done = where.run(["/bin/sh", "-c", script, "sh", str(home), str(folder), _LOG, *command], pass_fds=[server_lock])
    if done.returncode:
        raise EmbeddedServerError(f"{home} cannot be written: {done.stderr.strip()}{_disk(home)}")


def _make_cluster(where: Place, binaries: Path, server_lock: int) -> None:
    """Make the data folder under another name first, so that it is whole or not there.

    initdb inherits the server lock too: if we are killed it goes on, and nobody may clear up under its feet.
    """
    home = where.home
    new = home / f"{shared.DATA}.new-{secrets.token_hex(4)}"
    password = home / PASSWORD
    clear = ["/bin/sh", "-c", 'set -e; rm -rf "$1".new-*; cat >"$2"', "sh", str(home / shared.DATA), str(password)]
    # TCP is off unless asked for; then any user of the machine could connect, hence the password.
    make = [
        str(binaries / "initdb"), "-D", str(new), "--username=postgres", f"--pwfile={password}",
        "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C",
        "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
    ]  # fmt: skip
    done = where.run(clear, text=secrets.token_hex(16) + "\n", pass_fds=[server_lock])
    if not done.returncode:
        done = where.run(make, pass_fds=[server_lock])
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise EmbeddedServerError(f"the data folder in {home} cannot be made{_disk(home)}:\n{tail}")
    new.rename(home / shared.DATA)
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_version(where: Place, binaries: Path) -> None:
    data = where.home / shared.DATA
    theirs = (data / "PG_VERSION").read_text().strip()
    said = where.run([str(binaries / "postgres"), "--version"])
    ours = re.search(r"\) (\d+)", said.stdout)
    if ours is None:
        raise EmbeddedServerError(f"{binaries / 'postgres'} does not run: {(said.stdout + said.stderr).strip()}")
    if theirs != ours[1]:
        raise EmbeddedServerError(
            f"{data} was made by PostgreSQL {theirs}, the installed programs are PostgreSQL {ours[1]}, and neither "
            f"reads the other's data. Name another folder (embedded:///folder); or dump the data with PostgreSQL "
            f"{theirs} (pg_dumpall) and load it there; or, if it is not needed, delete {where.home}"
        )


def _clear_stale_pid(where: Place) -> None:
    """Make a dead server's ``postmaster.pid`` harmless whose number belongs to another process by now, or is missing.

    The rest of the file stays, because PostgreSQL reads from it which shared memory must not be in use any more.
    """
    path = where.home / shared.DATA / "postmaster.pid"
    if not path.exists():
        return
    lines = shared.recorded(where.home)
    if not lines or not lines[0].isdecimal():
        script, text = 'rm -f "$1"', ""
    elif shared.process_exists(int(lines[0])):
        if len(lines) > 4 and _answers(Path(lines[4]) / f".s.PGSQL.{lines[3]}"):
            raise EmbeddedServerError(
                f"process {lines[0]} is a PostgreSQL server on {path.parent} that was not started by pgconcert; stop it"
            )
        script, text = 'cat >"$1.new" && mv -f "$1.new" "$1"', "\n".join([str(_NOBODY), *lines[1:]]) + "\n"
    else:
        return
    done = where.run(["/bin/sh", "-c", script, "sh", str(path)], text=text)
    if done.returncode:
        raise EmbeddedServerError(f"{path} cannot be written: {done.stderr.strip()}{_disk(where.home)}")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5.0)
        try:
            client.connect(str(path))
        except TimeoutError:
            return True
        except OSError:
            return False
        return True


def wait_until_ready(where: Place) -> list[str]:
    """Wait for a started server as long as it lives and makes progress; returns the lines of its ``postmaster.pid``."""
    home = where.home
    started = moved = time.monotonic()
    seen: tuple[int, list[str]] | None = None
    while True:
        recorded = shared.recorded(home)
        state = recorded[7].strip() if len(recorded) > 7 else ""
        if state == "ready" and shared.process_exists(int(recorded[0])):
            return recorded
        log, now = home / _LOG, time.monotonic()
        if not shared.server_lives(home):
            raise EmbeddedServerError(f"the server in {home} did not start{_disk(home)}:\n{_tail(where)}")
        progress = (log.lstat().st_size if log.exists() else 0, recorded)
        if progress != seen:
            seen, moved = progress, now
        if now - moved > _QUIET or now - started > LIMIT:
            raise EmbeddedServerError(
                f"the server in {home} is not ready after {now - started:.0f} s, state "
                f"{state or 'unknown'!r}{_disk(home)}:\n{_tail(where)}"
            )
        time.sleep(0.01)


def _tail(where: Place) -> str:
    return where.run(["tail", "-n", "15", str(where.home / _LOG)]).stdout.strip()


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return f" (only {free // 2**20} MB are free on its disk)" if free < 256 * 2**20 else ""
