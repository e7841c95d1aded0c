"""Python programs that start at once: forked from a process that has imported what they need.

Here live `Popen` and `run`, which stand in for those of `subprocess`, and the process that programs are forked from.
Theory: nearly all of the half second that a small program takes is the interpreter importing the same modules again,
and the tests start some two thousand programs. So each test process has one nursery, which imports them once and waits
for orders: a command line, with all that `subprocess` would do between fork and exec. It forks twice and the process
in between ends, while the one that gave the order takes in orphans; so the program is a child of that one, to be waited
for, stopped and killed like any other. Its standard streams, environment, folder, and `__main__` are its own, and it
ends as an interpreter ends.

What this cannot do is started by fork and exec as ever: another program or user, and whatever is read when the
interpreter or a library starts. So is what asks for it by ``fresh=True``: a test of how a program starts, or a program
that must be there before our imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import termios
import threading
import time
import types
from pathlib import Path
from typing import Any, Final

__all__ = ["Popen", "nursery", "run"]

_ROOT: Final = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_LARGEST_ORDER: Final = 1 << 20

_OPTIONS: Final = {"-u", "-P"}
_UNDERSTOOD: Final = {"PYTHONPATH", "PYTHONIOENCODING"}
_READ_AT_START: Final = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OPENSSL_", "PSYCOPG_")

_IMPORTED: Final = (
    "asyncio", "click", "concurrent.futures", "ipaddress", "json", "logging", "pgconcert.blocking",
    "pgconcert.cli.group", "pgconcert.testing", "psycopg", "queue", "random", "rich.console", "rich.live", "rich.table",
    "rich.text", "tempfile", "uuid",
)  # fmt: skip

# the nursery's own: tests change that of their process
_ENVIRONMENT: Final = dict(os.environ)
_libc: Final = ctypes.CDLL(None)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, faster for Python programs.

    ``at_our_death``: the signal that the program gets when this process dies. ``terminal``: its standard input is the
    terminal of its session. ``fresh``: an interpreter of its own from the start.
    """

    def __init__(
        self, args: list[str], *, at_our_death: int = 0, terminal: bool = False, fresh: bool = False, **options: Any
    ) -> None:
        self._hooks = int(at_our_death), terminal
        self._ready = (
            not fresh and sys.platform == "linux" and not {"user", "shell", "executable", "pass_fds"} & {*options}
        )
        if any(self._hooks):
            # It makes system calls and takes no lock, so threads of ours cannot make it hang.
            options["preexec_fn"] = lambda: _settle(*self._hooks)
        super().__init__(args, **options)

    def _execute_child(self, *given: Any) -> None:
        """Called by `subprocess` once there are pipes."""
        args, _, _, _, _, cwd, env, _, _, _, *ends = given[:16]
        *_, session, group = given
        order = _order(args, dict(os.environ if env is None else env)) if self._ready else None
        folder = Path(cwd or ".").absolute()
        if order is None or not folder.is_dir():
            super()._execute_child(*given)  # type: ignore[misc]
            return
        order |= {"hooks": self._hooks, "cwd": str(folder), "session": bool(session), "group": group}
        streams = [number if end == -1 else end for number, end in enumerate((ends[0], ends[3], ends[5]))]
        self.pid = nursery.start(order, streams)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


def run(args: list[str], *, timeout: float, said: Any = None, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` with ``capture_output``. ``said`` is its standard input."""
    if said is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}) as process:
        try:
            output, errors = process.communicate(said, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


class Nursery:
    """The process that programs of this process are forked from; it begins with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Its process number; None before it has begun."""
        return None if self._process is None else self._process.pid

    def start(self, order: dict[str, Any], streams: list[int]) -> int:
        """The number of a new child of ours."""
        with self._lock:
            link = self._socket or self._begin()
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                text = json.dumps(order).encode()
                assert len(text) < _LARGEST_ORDER
                socket.send_fds(link, [text], streams)
                pid = link.recv(32)
                assert pid, "the nursery has ended"
                return int(pid)
            finally:
                _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)

    def close(self) -> None:
        """Let it end; the next program begins another."""
        with self._lock:
            if self._socket is not None and self._process is not None:
                self._socket.close()
                self._process.wait()
                self._socket = self._process = None

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, size, _LARGEST_ORDER)
        with theirs:
            # it ends when its socket does; a signal at our death would come at the end of this thread
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                cwd=_ROOT, env=_ENVIRONMENT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._socket = ours
        return ours


nursery: Final = Nursery()


def _settle(death: int, terminal: bool) -> None:
    """What a new process says to the kernel."""
    if terminal:  # without it the terminal would be nobody's, and Ctrl-C a character like others
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if death and sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, death)


def _order(args: Any, env: dict[str, str]) -> dict[str, Any] | None:
    """What the nursery is told; None when it needs an interpreter of its own."""
    ours, theirs = ({name: env[name] for name in env if _matters(name)} for env in (_ENVIRONMENT, env))
    if not isinstance(args, list) or str(args[0]) != sys.executable or ours != theirs:
        return None
    rest = [str(one) for one in args[1:]]
    options: set[str] = set()
    while rest and rest[0] in _OPTIONS:
        options.add(rest.pop(0))
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-m", "-c")):
        return None
    kind = rest.pop(0) if rest[0] in ("-m", "-c") else ""
    return {"kind": kind, "program": rest[0], "arguments": rest[1:], "options": sorted(options), "env": env}


def _matters(name: str) -> bool:
    return name.startswith(_READ_AT_START) and name not in _UNDERSTOOD


def _serve(link: socket.socket) -> dict[str, Any] | None:
    """Take orders until nobody can give any. In a new process: its order."""
    while True:
        text, streams, _, _ = socket.recv_fds(link, _LARGEST_ORDER, 3)
        if not text:
            return None
        order: dict[str, Any] = json.loads(text)
        wait, go = os.pipe()
        tell, told = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if child:
                os.write(told, str(child).encode())
                os._exit(0)
            for end in (go, tell, told):
                os.close(end)
            link.close()
            os.read(wait, 1)
            os.close(wait)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return order
        os.waitpid(between, 0)  # from now on its child is the child of the one who ordered it
        link.send(os.read(tell, 32))
        os.write(go, b".")
        for end in (wait, go, tell, told, *streams):
            os.close(end)


def _become(order: dict[str, Any]) -> None:
    """Do what `subprocess` and the interpreter do before a program begins."""
    if order["session"]:
        os.setsid()
    if order["group"] >= 0:
        os.setpgid(0, order["group"])
    _settle(*order["hooks"])
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order["cwd"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    unbuffered = "-u" in order["options"] or bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        ours = getattr(sys, name)
        raw = io.FileIO(number, "wb" if number else "rb", closefd=False)
        at_once = unbuffered and number > 0
        buffer: Any = raw if at_once else io.BufferedWriter(raw) if number else io.BufferedReader(raw)
        stream = io.TextIOWrapper(
            buffer, encoding or ours.encoding, (number < 2 and errors) or ours.errors,
            line_buffering=(number == 2 or raw.isatty()) and not at_once, write_through=at_once,
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    kind, program = order["kind"], order["program"]
    first: str = {"-m": order["cwd"], "-c": ""}.get(kind, str(Path(program).resolve().parent))
    more = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*([] if "-P" in order["options"] else [first]), *more, *_PATH]
    sys.argv[:] = [kind or program, *order["arguments"]]
    sys.modules["__main__"] = types.ModuleType("__main__")


def _run_program(kind: str, program: str) -> None:
    if kind == "-m":
        runpy._run_module_as_main(program)  # type: ignore[attr-defined]
        return
    names = sys.modules["__main__"].__dict__
    source: str | bytes = program
    if not kind:
        names["__file__"], source = program, Path(program).read_bytes()
    exec(compile(source, program if not kind else "<string>", "exec"), names)


_PATH: list[str] = []


def _main() -> None:
    _PATH[:] = [one for one in sys.path if one not in ("", str(_ROOT))]
    for name in _IMPORTED:
        importlib.import_module(name)
    link = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()
    order = _serve(link)
    if order is None:
        with contextlib.suppress(OSError):
            link.close()
        return
    _become(order)
    _run_program(order["kind"], order["program"])


if __name__ == "__main__":
    _main()
