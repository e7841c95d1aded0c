"""Helper of the tests of ends: what a task comes to. Nothing else stands here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

LIMIT: Final = 10.0


async def outcome(work: Coroutine[Any, Any, object] | asyncio.Task[Any]) -> BaseException | None:
    """What it raises in the end. That it has an end is part of each test, and so is that a task whom nobody has
    cancelled does not say so."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=LIMIT)
    assert task.done(), "it hangs"
    assert not task.cancelled(), "nobody has cancelled it"
    return task.exception()
