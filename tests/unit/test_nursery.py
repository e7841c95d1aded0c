"""Programs of the nursery are as programs that were started by `subprocess`.

Here live tests that compare the two. Theory: every case runs once as a program of the nursery and once in an
interpreter of its own, and what is observed must be the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.nursery import Popen, nursery, run
from tests.processes import children

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every program has an interpreter of its own")

TELLING: dict[str, str] = {
    "arguments": "import sys; print(sys.argv[1:], sys.argv[0].endswith(('-c', 'telling.py')), __name__)",
    "folder": "import os; print(os.getcwd())",
    "path": "import sys; print(sys.path)",
    # C libraries add to the environment what Python does not see
    "environment": "import os; print(sorted(set(os.environ.items()) - {('COLUMNS', '80'), ('LINES', '24')}))",
    "parent": "import os; print(os.getppid())",
    "input": "import sys; print(sys.stdin.read().upper()); print(sys.stdin.encoding, sys.stdin.isatty())",
    "errors": "import sys; print('oh', file=sys.stderr); print(sys.stderr.errors, sys.stderr.line_buffering)",
    "encoding": "import sys; print('\\u00e9', sys.stdout.encoding, sys.stdout.errors)",
    "descriptors": "import os; print(sorted(os.listdir('/proc/self/fd')))",
    "threads": "import threading; print(threading.active_count(), threading.current_thread().name)",
    "signals": "import signal; print([signal.getsignal(n) for n in (1, 2, 3, 13, 15)])",
    "mask": "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))",
    "session": "import os; print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())",
    "zone": "import time; print(time.tzname)",
    "exit": "import sys; sys.exit(7)",
    "words": "import sys; sys.exit('it cannot be')",
    "at exit": "import atexit; atexit.register(print, 'good night')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "interrupted": "import os; os.kill(os.getpid(), 2)",
    "names": "print(sorted(n for n in globals() if not n.startswith('__')), '__file__' in globals())",
    "modules": "import sys; print(sys.modules['__main__'].__dict__ is globals())",
}


def told(args: list[str], fresh: bool, **options: Any) -> tuple[int, str, str]:
    done = run([sys.executable, *args], fresh=fresh, said="some words", text=True, timeout=60, **options)
    last = done.stderr.strip().splitlines()[-1:]
    return done.returncode, done.stdout, "".join(last)


@pytest.mark.parametrize("name", TELLING)
def test_a_program_cannot_tell(name: str, tmp_path: Path) -> None:
    file = tmp_path / "telling.py"
    file.write_text(TELLING[name])
    own = {"COLOUR": "blue", "PYTHONPATH": f"/nowhere{os.pathsep}{Path(__file__).parents[2]}", "TZ": "Asia/Tokyo"}
    there: dict[str, Any] = {"env": os.environ | own, "cwd": tmp_path}
    for how, more in (
        (["-c", TELLING[name]], {}),
        (["-u", "-P", "-c", TELLING[name], "a"], there | {"start_new_session": True}),
        ([str(file), "a", "-b"], there | {"process_group": 0}),
    ):
        assert told(how, False, **more) == told(how, True, **more), (how, more)


def test_a_module() -> None:
    """As by ``python -m``."""
    for args in (["-m", "pgconcert", "--version"], ["-m", "pgconcert", "no-such"], ["-m", "no_such_module"]):
        assert told(args, False) == told(args, True)


def test_it_is_a_child_of_ours() -> None:
    process = Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, at_our_death=signal.SIGKILL)
    assert process.pid in children()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert process.pid not in children()
    assert process.stdin
    process.stdin.close()


def test_it_was_born_there() -> None:
    """What is compared above is not one interpreter with another."""
    program = "import sys; print('pgconcert' in sys.modules)"
    assert told(["-c", program], False)[1] == "True\n"
    assert told(["-c", program], True)[1] == "False\n"


@pytest.mark.parametrize("environment", [{"PYTHONDEVMODE": "1"}, {"LC_ALL": "C.UTF-8"}, {"PYTHONUTF8": "1"}])
def test_what_an_interpreter_reads_at_its_start(environment: dict[str, str]) -> None:
    program = "import sys; print('pgconcert' in sys.modules)"
    assert told(["-c", program], False, env=os.environ | environment)[1] == "False\n"


def test_what_a_test_changes_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, sys; print('pgconcert' in sys.modules, os.environ['COLOUR'])"
    monkeypatch.setenv("COLOUR", "blue")
    assert told(["-c", program], False)[1] == "True blue\n"
    monkeypatch.setenv("PSYCOPG_IMPL", "python")
    assert told(["-c", program], False)[1] == "False blue\n"


def test_it_outlives_the_thread_that_began_it() -> None:
    nursery.close()
    beginning = threading.Thread(target=told, args=(["-c", "pass"], False))
    beginning.start()
    beginning.join()
    began = nursery.pid
    assert told(["-c", "print(1)"], False) == (0, "1\n", "")
    assert nursery.pid == began


def test_there_is_one_of_it() -> None:
    assert [pid for pid, command in children().items() if "tests.nursery" in command] == [nursery.pid]
