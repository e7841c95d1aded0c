"""An import that may be started on every machine, and runs on one of them at a time.

    python importer.py

The address comes from PGCONCERT_URL or DATABASE_URL; `pgconcert schema apply` has made the tables.
"""

import asyncio
import os

from pgconcert import AsyncCoordinator
from pgconcert.shutdown import graceful_shutdown

EVERY = float(os.environ.get("REPORT_EVERY", "60"))  # seconds
TTL = float(os.environ.get("IMPORTER_TTL", "40"))  # seconds after which another goes on when we die


async def work(hold):
    """The job. It is cancelled when the lock is lost; what it writes carries the token."""
    while not hold.release_requested:
        print(f"import by {os.getpid()} with token {hold.token}", flush=True)
        await asyncio.sleep(EVERY)


async def main():
    """Stand by, work when it is our turn, and make room for others at the end."""
    async with graceful_shutdown(), AsyncCoordinator() as c:
        await c.run_in_job_lock("importer", work, ttl=TTL, service="billing")


if __name__ == "__main__":
    asyncio.run(main())
