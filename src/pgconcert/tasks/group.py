"""``AsyncRunnerGroup``: several runners that start in order and stop together. Nothing else.

Theory. A group has no state of its own: each of its runners knows its own. If one cannot start, those that run are
stopped before that is raised; if one is ended by what ends a program, all are.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from ..errors import ConfigurationError, given
from .runner import AsyncRunner

__all__ = ["AsyncRunnerGroup"]


class AsyncRunnerGroup:
    """Runners that start in the order given and stop together. Made by ``AsyncCoordinator.runners``."""

    def __init__(self, *runners: AsyncRunner) -> None:
        for runner in runners:
            wrong: object = runner
            if not isinstance(wrong, AsyncRunner):
                raise ConfigurationError(f"a group is made of runners, and {given(wrong)} is none")
        if len({*runners}) < len(runners):
            raise ConfigurationError("a runner is in a group once")
        self._runners = runners

    @property
    def runners(self) -> tuple[AsyncRunner, ...]:
        """The runners, in their order."""
        return self._runners

    async def start(self) -> None:
        """Start them, one after the other. If one raises, or this is cancelled, those that run are stopped, for good,
        and then it is raised."""
        started: list[AsyncRunner] = []
        try:
            for runner in self._runners:
                await runner.start()
                started.append(runner)
        except BaseException:
            await _stop(started, 0)
            raise

    async def run(self) -> None:
        """Start them, and work until all are stopped. Cancelled, it stops them as with ``stop(0)`` before it leaves."""
        await self.start()
        ends = [asyncio.ensure_future(runner.ended()) for runner in self._runners]
        try:
            for end in asyncio.as_completed(ends):
                failure = await end
                if failure is not None:
                    raise failure
        finally:
            await _stop(self._runners, 0)  # those that have ended already are not concerned
            for one in ends:
                one.cancel()

    async def stop(self, timeout: float | None = 30.0) -> None:
        """Stop all of them, at the same time. ``timeout`` as for ``AsyncRunner.stop``. Idempotent, in any state."""
        await _stop(self._runners, timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._runners)} runners>"


async def _stop(runners: list[AsyncRunner] | tuple[AsyncRunner, ...], timeout: float | None) -> None:
    await asyncio.gather(*(runner.stop(timeout) for runner in runners))
