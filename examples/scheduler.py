"""Schedulers of which one leads, and all know who.

    python scheduler.py

The address comes from PGCONCERT_URL or DATABASE_URL; `pgconcert schema apply` has made the tables.
"""

import asyncio
import os

from pgconcert import AsyncCoordinator, SessionLost
from pgconcert.shutdown import graceful_shutdown

TTL = float(os.environ.get("SCHEDULER_TTL", "40"))  # seconds after which another leads when the leader dies


async def lead(election):
    """Stand for election for ever."""
    while True:
        try:
            async with election.lead(data={"pid": os.getpid()}, on_request="cancel") as leadership:
                print(f"{os.getpid()} leads term {leadership.token}", flush=True)
                await schedule()
        except SessionLost as error:
            print(error, flush=True)


async def schedule():
    """What a leader does; it is cancelled when the leadership is lost, or somebody wants it."""
    await asyncio.Event().wait()


async def follow(election):
    """What everybody does: know who leads."""
    async with election.observe() as changes:
        async for change in changes:
            who = "nobody" if change.leader is None else change.leader.data["pid"]
            print(f"{os.getpid()} sees that {who} leads", flush=True)


async def main():
    """Lead and follow until a signal comes; then whoever waits leads at once."""
    async with graceful_shutdown(), AsyncCoordinator() as c, asyncio.TaskGroup() as tasks:
        election = c.election("scheduler", ttl=TTL)
        tasks.create_task(follow(election))
        tasks.create_task(lead(election))


if __name__ == "__main__":
    asyncio.run(main())
