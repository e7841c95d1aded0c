"""Workers that share out names among those who are there.

    python workers.py

The address comes from PGCONCERT_URL or DATABASE_URL; `pgconcert schema apply` has made the tables.
"""

import asyncio
import os
import zlib

from pgconcert import AsyncCoordinator
from pgconcert.shutdown import graceful_shutdown

NAMES = ["ants", "bees", "cats", "dogs", "eels", "frogs", "gnus", "hens"]
TTL = float(os.environ.get("WORKERS_TTL", "40"))  # seconds after which a member that died is there no more


def share(name, members):
    """Whose a name is: the same answer in every process that sees the same members."""
    return max(members, key=lambda member: zlib.crc32(f"{name} {member}".encode()))


async def work(c):
    """Be a member, and look at every change which names are ours."""
    group = c.group("workers", ttl=TTL)
    async with group.join(capabilities={"pid": os.getpid()}) as me, group.watch() as changes:
        async for _ in changes:
            members = [member.member_id for member in await group.members()]
            ours = [name for name in NAMES if share(name, members) == me.member_id]
            print(os.getpid(), "of", len(members), "has", *ours, flush=True)


async def main():
    """Work until a signal comes; then the others have our share at once."""
    async with graceful_shutdown(), AsyncCoordinator() as c:
        await work(c)


if __name__ == "__main__":
    asyncio.run(main())
