"""A web application. One of its workers at a time writes the report, and no two of them count at a time.

    gunicorn -c gunicorn_conf.py gunicorn_app:app

The address comes from PGCONCERT_URL or DATABASE_URL.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pgconcert import Coordinator, CoordinatorClosed, LockLost

EVERY = float(os.environ.get("REPORT_EVERY", "60"))  # seconds
VISITS = Path(os.environ.get("VISITS", "visits.txt"))

coordinator = Coordinator()  # nothing is opened here: this line may run before the workers are forked


def write_report() -> None:
    """The job that must not run in two workers at a time."""
    print(f"report by {os.getpid()}", flush=True)


def stand_in_line() -> None:
    """Wait until the lock is ours, do the job for as long as it is, and stand in line again if it was lost."""
    with contextlib.suppress(CoordinatorClosed):  # the worker ends
        while True:
            with contextlib.suppress(LockLost), coordinator.lock("report") as hold:
                while hold.wait_lost(timeout=EVERY) is None:
                    write_report()


def start() -> None:
    """In every worker, after it was forked."""
    coordinator.open()
    threading.Thread(target=stand_in_line, name="report", daemon=True).start()


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Count a visit: read, add, write, with the other workers kept out."""
    with coordinator.lock("visits", timeout=5):
        count = int(VISITS.read_text()) + 1 if VISITS.exists() else 1
        VISITS.write_text(str(count))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"visit {count}, counted by {os.getpid()}\n".encode()]
