"""G1: a signal lets the handlers of messages finish, and nothing is closed before they have; what
ends a closing that takes too long is shown in `tests/faults/test_shutdown.py`."""

from __future__ import annotations

import asyncio
import os
import secrets

from pgconcert import AsyncCoordinator, Message
from tests.unit.shutdowns import ONE, shutdown


async def test_a_handler_at_work_finishes_and_a_new_message_finds_none() -> None:
    address, story = f"memory://{secrets.token_hex(8)}", list[str]()
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def handle(message: Message) -> None:
        story.append(f"begins {message.text}")
        begun.set()
        await may_end.wait()
        story.append(f"ends {message.text}")

    async with AsyncCoordinator(address) as other:
        async with AsyncCoordinator(address) as c:
            async with shutdown(c), c.lock("held"), c.listen({"work": handle}):
                await other.publish("work", "one")
                await begun.wait()
                os.kill(os.getpid(), ONE)
                # the handler is at work when the body is left, and is what closing waits for
                asyncio.get_running_loop().call_later(0.02, may_end.set)
                await asyncio.Event().wait()
            story.append("closed")
        await other.publish("work", "two")
        async with other.lock("held", timeout=0):
            pass
    assert story == ["begins one", "ends one", "closed"]
