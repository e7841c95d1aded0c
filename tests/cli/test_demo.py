"""The demo for real: processes, kills, a server of its own; on pipes, on a terminal, interrupted, orphaned."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from pgconcert.testing import eventually, rewrite
from tests.servers import Server, private_folder

SHORT = ("--seconds", "6", "--processes", "3", "--kills", "1")
LIMIT = 240.0
TASKS = b"demo_tasks_worker"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for the servers of this module; the data is made once."""
    made = private_folder()
    yield made
    shutil.rmtree(made)


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pgconcert", "demo", "--url", f"embedded://{folder}", *options]


def environment(**more: str) -> dict[str, str]:
    unwanted = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | more


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, listing.read_text().split()):
                found += [child, *descendants(child)]
    return found


def workers_of(pid: int, module: bytes = b"demo_worker") -> list[int]:
    """Worker processes of a part of a demo; anything else it may have started does not count."""
    found = []
    for child in descendants(pid):
        with suppress(OSError):
            if module in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def mentioning(text: str) -> list[str]:
    """Command lines of living processes that contain a text, ourselves left out."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in words and int(line.parent.name) != os.getpid():
                found.append(words)
    return found


def alive(pids: list[int]) -> list[int]:
    left = []
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            left += [pid] if state != "Z" else []
    return left


def on_terminal(arguments: list[str], *, columns: int, **more: str) -> tuple[int, str]:
    """Run on a terminal of a width; the exit code and all that was written to it."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(arguments, stdin=follower, stdout=follower, stderr=follower, env=environment(**more))
    os.close(follower)
    written = b""
    end = time.monotonic() + LIMIT
    try:
        while time.monotonic() < end:
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    written += os.read(leader, 65536)
                except OSError:
                    break  # the other side is closed
        return process.wait(LIMIT), written.decode()
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def until_told(process: subprocess.Popen[str], *patterns: str) -> str:
    """Read plain lines until each pattern has been found in one; all that was read."""
    assert process.stdout
    told, missing = "", {*patterns}
    for line in process.stdout:
        told += line
        missing -= {pattern for pattern in missing if re.search(pattern, line)}
        if not missing:
            return told
    raise AssertionError(f"it never told {missing}, but:\n{told}")


def until_nothing_is_left(folder: Path) -> None:
    eventually(lambda: not mentioning(str(folder)), LIMIT, what="the server and its reaper are gone")


@pytest.mark.long
def test_plain_lines_tell_the_story(folder: Path) -> None:
    """All of it, which takes its time. What is wrong with a history, is found by the checks that have their own tests;
    that processes are killed and followed, is also shown by ``test_a_signal_ends_it_and_leaves_nothing``."""
    done = subprocess.run(
        command(folder, *SHORT), capture_output=True, text=True, timeout=LIMIT, env=environment(FORCE_COLOR="1")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole = done.stdout
    assert done.stderr == ""
    assert "\x1b" not in whole
    out, lost, tasks = whole.partition(" lost without being reported.\n")
    out += lost
    tell_of_tasks(tasks)
    assert f"starting PostgreSQL for embedded://{folder}" in out
    assert str(folder) in out.partition("PostgreSQL 18")[2].partition("\n")[0]
    killed = re.search(r"worker-(\d) \(pid (\d+)\) is killed with SIGKILL while it holds the lock", out)
    assert killed
    after = re.findall(r"\(pid (\d+)\) (took over|has it again) after \d+ ms", out)
    assert len(after) == 2
    assert after[0][0] != killed[2]
    assert re.search(r"its connection to the server is cut\n.* told so by LockLost after \d+\.\d ms; it goes on", out)
    table = {name: int(turns) for name, turns in re.findall(r"\| (worker-\d) \| +(\d+) \|", out)}
    assert sorted(table) == ["worker-1", "worker-2", "worker-3"]
    assert min(table.values()) >= 1
    total = re.search(r"\| total    \| +(\d+) \|", out)
    assert total
    assert int(total[1]) == sum(table.values())
    assert "overlaps: 0" in out
    silenced = re.search(r"worker-(\d) \(pid \d+\) listens, and that connection is cut\n", out)
    assert silenced
    assert re.search(rf"worker-{silenced[1]} hears again, and was told of the gap after \d+ ms\n", out)
    assert re.search(r"gaps told to listeners: 1, with \d+ messages in them\n", out)
    verdict = re.search(r"^(\d+) messages, 0 lost without being reported\.$", out, re.MULTILINE)
    assert verdict
    assert int(verdict[1]) > 50
    assert re.search(r"take-over after SIGKILL: \d+ ms\n", out)
    beheaded = re.search(r"worker-(\d) \(pid (\d+)\) is killed with SIGKILL while it leads\n", out)
    assert beheaded
    heir = re.search(r"worker-\d \(pid (\d+)\) leads after \d+ ms, token (\d+)\n", out)
    assert heir
    assert heir[1] != beheaded[2]
    assert re.search(r"new leader after SIGKILL: \d+ ms(, \d+ ms)*\n", out)
    assert re.search(r"^\d+ terms of leaders, never two at one time, each with a larger token\.$", out, re.MULTILINE)
    assert re.search(r"worker-\d leads with token \d+; turns so far", out)
    until_nothing_is_left(folder)


def tell_of_tasks(out: str) -> None:
    """The second part, with three processes: one is killed, and its share moves."""
    shared = re.search(r"3 processes share 60 tasks: (\d+), (\d+), (\d+)\n", out)
    assert shared
    assert sum(map(int, shared.groups())) == 60
    killed = re.search(r"worker-(\d) \(pid \d+\) is killed with SIGKILL, with (\d+) tasks\n", out)
    assert killed
    moved = re.search(r"its (\d+) tasks have moved after \d+ ms: (.*)\n", out)
    assert moved
    assert 0 <= int(killed[2]) - int(moved[1]) <= 1, "what it had finished as it died is its own"
    heirs = {name: int(count) for count, name in re.findall(r"(\d+) with (worker-\d)", moved[2])}
    assert sum(heirs.values()) == int(moved[1])
    table = re.findall(r"^\| (worker-\d) \| +(.*) \|$", out, re.MULTILINE)
    rows = {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in table}
    assert sorted(rows) == ["worker-1", "worker-2", "worker-3"]
    assert [row[0] for row in rows.values()] == [*shared.groups()]
    assert rows.pop(f"worker-{killed[1]}")[1:3] == [killed[2], "killed"]
    assert {name: int(row[2]) for name, row in rows.items() if row[2] != "0"} == heirs
    verdict = rf"^60 tasks, each finished once, by its owner; {moved[1]} moved when a process died\.$"
    assert re.search(verdict, out, re.MULTILINE)


@pytest.mark.parametrize(
    ("columns", "more"), [(110, {}), (60, {"PYTHONIOENCODING": "ascii"})], ids=["wide", "narrow and ASCII"]
)
@pytest.mark.long
def test_a_terminal_gets_a_moving_picture(folder: Path, columns: int, more: dict[str, str]) -> None:
    code, written = on_terminal(command(folder, *SHORT), columns=columns, **more)
    assert code == 0, written[-2000:]
    held, killed, deaf = ("#", "X", "o") if more else ("█", "✖", "○")
    assert written.count("holds the lock") > 20
    assert f"\x1b[1;31m{killed}" in written
    assert f"{held}{held}" in written
    assert "\x1b[?25h" in written, "the cursor is shown again"
    assert "never two at one time" in written
    assert "messages, 0 lost without being reported" in written
    assert f"\x1b[1;35m{deaf}" in written
    assert re.search(r"worker-\d leads.*term \d+, token \d+", written)
    assert "terms of leaders, never two at one time" in written
    to_do = "-" if more else "─"
    assert re.search(rf"{held}\x1b\[0m\x1b\[33m{to_do}{to_do}", written), "bars of what is finished and to do"
    assert "60 tasks, each finished once, by its owner" in written
    assert "Traceback" not in written


@pytest.mark.long
def test_a_dumb_terminal_gets_plain_lines(folder: Path) -> None:
    code, written = on_terminal(
        command(folder, "--seconds", "2", "--processes", "2", "--kills", "0"), columns=80, TERM="dumb"
    )
    assert code == 0, written
    assert "\x1b" not in written
    assert "turns so far:" in written


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_signal_ends_it_and_leaves_nothing(folder: Path, number: signal.Signals, code: int) -> None:
    """In the middle: when each kind of harm has been done, and the killed holder and leader have been followed."""
    process = subprocess.Popen(
        command(folder, "--seconds", "60", "--processes", "3", "--kills", "20"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        until_told(
            process,
            "^starting PostgreSQL for embedded://",
            "3 processes compete for one lock, and talk, and elect a leader$",
            r"worker-\d \(pid \d+\) is killed with SIGKILL while it holds the lock$",
            r"worker-\d \(pid \d+\) took over after \d+ ms$",
            r"worker-\d \(pid \d+\) holds the lock, and its connection to the server is cut$",
            r"worker-\d \(pid \d+\) is killed with SIGKILL while it leads$",
            r"worker-\d \(pid \d+\) leads after \d+ ms, token \d+$",
            r"worker-\d \(pid \d+\) listens, and that connection is cut$",
        )
        workers = workers_of(process.pid)
        process.send_signal(number)
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, errors
    assert f"stopped by {number.name}" in out
    assert errors == ""
    assert workers
    assert alive(workers) == []
    until_nothing_is_left(folder)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_the_second_part_leaves_nothing_either(folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        command(folder, "--seconds", "2", "--processes", "2", "--kills", "0"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        eventually(lambda: len(workers_of(process.pid, TASKS)) == 2, LIMIT, what="two workers share tasks")
        workers = workers_of(process.pid, TASKS)
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (130 if number is signal.SIGINT else -9, "")
    eventually(lambda: not alive(workers), LIMIT, what="workers end with their director")
    until_nothing_is_left(folder)


def test_ctrl_c_while_the_server_starts_leaves_nothing(folder: Path) -> None:
    process = subprocess.Popen(
        command(folder, "--seconds", "60"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout
        assert process.stdout.readline().startswith("starting PostgreSQL")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    assert "stopped by SIGINT" in out
    assert errors == ""
    until_nothing_is_left(folder)


@pytest.mark.long
def test_a_killed_director_leaves_nothing(folder: Path) -> None:
    process = subprocess.Popen(
        command(folder, "--seconds", "60"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        eventually(lambda: len(workers_of(process.pid)) == 5, LIMIT, what="five workers run")
        workers = workers_of(process.pid)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: not alive(workers), LIMIT, what="workers end when their director dies")
    until_nothing_is_left(folder)


@pytest.mark.long
def test_another_server(server: Server) -> None:
    with server.fresh_database() as url:
        options = ["--seconds", "3", "--processes", "2", "--kills", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "pgconcert", "demo", "--url", url, *options],
            capture_output=True, text=True, timeout=LIMIT, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "starting PostgreSQL" not in done.stdout
        assert "terms of leaders, never two at one time" in done.stdout
        assert "40 tasks, each finished once, by its owner; " in done.stdout
        assert schemas(url) == ["public"], "nothing is left behind"


@pytest.fixture
def guest(server: Server) -> Iterator[list[str]]:
    """The demo as a role that may not make a schema; two processes, for some seconds."""
    with server.fresh_database() as url:
        server.execute("create role guest login password 'x'")
        try:
            address = rewrite(server.over_tcp(url), user="guest", password="x")
            yield [sys.executable, "-m", "pgconcert", "demo", "--url", address, "--processes", "2", "--seconds"]
        finally:
            server.execute("drop role guest")


NO_TABLES = "there is no election, and no tasks: this role may not make a schema "


def test_a_role_that_may_not_make_a_schema_sees_no_election(guest: list[str]) -> None:
    process = subprocess.Popen(
        [*guest, "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        until_told(process, f"^{NO_TABLES}for the tables$", "2 processes compete for one lock, and talk$")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (130, ""), out


@pytest.mark.long
def test_a_role_that_may_not_make_a_schema_sees_the_rest(guest: list[str]) -> None:
    done = subprocess.run(
        [*guest, "2", "--kills", "0"], capture_output=True, text=True, timeout=LIMIT, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said, _, after = done.stdout.partition(NO_TABLES)
    assert after.startswith("for the tables\n"), said
    assert "lead" not in after
    assert "tasks" not in after.partition("\n")[2]


def schemas(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        named = connection.execute("select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)'")
        return sorted(name for (name,) in named)


def test_a_worker_that_ends_by_itself_fails_the_demo(folder: Path) -> None:
    process = subprocess.Popen(
        command(folder, "--seconds", "60"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        eventually(lambda: len(workers_of(process.pid)) == 5, LIMIT, what="five workers run")
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert re.match(r"Error: worker-\d \(pid \d+\) failed: ", errors)
    until_nothing_is_left(folder)
