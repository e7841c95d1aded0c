"""A job that one process of the site does at a time, and the coordinator that views use too."""

import contextlib
import os
import threading

from pgconcert import Coordinator, CoordinatorClosed, LockLost

EVERY = float(os.environ.get("REPORT_EVERY", "60"))  # seconds

coordinator = Coordinator()


def write_report() -> None:
    """The job that must not run in two processes at a time."""
    print(f"report by {os.getpid()}", flush=True)


def stand_in_line() -> None:
    """Wait until the lock is ours, do the job for as long as it is, and stand in line again if it was lost."""
    with contextlib.suppress(CoordinatorClosed):  # the process ends
        while True:
            with contextlib.suppress(LockLost), coordinator.lock("report") as hold:
                while hold.wait_lost(timeout=EVERY) is None:
                    write_report()


def start() -> None:
    """Once in every process that serves."""
    coordinator.open()
    threading.Thread(target=stand_in_line, name="report", daemon=True).start()
