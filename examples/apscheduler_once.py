"""A scheduler that may be started on every machine, and runs on one of them at a time.

    python apscheduler_once.py

The address comes from PGCONCERT_URL or DATABASE_URL.
"""

import os
from contextlib import ExitStack

from apscheduler.schedulers.background import BackgroundScheduler

from pgconcert import Coordinator

EVERY = float(os.environ.get("REPORT_EVERY", "60"))  # seconds

scheduler = BackgroundScheduler(timezone="UTC")


@scheduler.scheduled_job("interval", seconds=EVERY)
def write_report() -> None:
    """The job that must not run in two processes at a time."""
    print(f"report by {os.getpid()}", flush=True)


def main() -> None:
    """Wait for our turn, then schedule until the lock is lost: that ends the program, and its supervisor starts it."""
    with Coordinator() as c, c.lock("scheduler") as hold, ExitStack() as before_release:
        scheduler.start()
        before_release.callback(scheduler.shutdown)
        hold.wait_lost()


if __name__ == "__main__":
    main()
