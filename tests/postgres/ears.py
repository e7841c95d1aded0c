"""An ear that remembers, for tests of what listens.

Here lives only that. Theory: an ear checks for itself that it is told things in the order that the port promises.
"""

from typing import Protocol

from pgconcert.messenger import Ear
from pgconcert.testing import eventually_async


class Listens(Protocol):
    """Whatever ears can be given to."""

    def listen(self, channel: str, ear: Ear) -> None:
        """Let an ear hear."""

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Let it hear no more."""


class Heard:
    """An ear that keeps what it is told."""

    def __init__(self, listener: Listens, channel: str) -> None:
        self.listener = listener
        self.channel = channel
        self.payloads: list[str] = []
        self.own: list[bool] = []
        self.story: list[str] = []
        self.errors: list[Exception] = []
        listener.listen(channel, self)

    @property
    def times_ready(self) -> int:
        """How often it was told so."""
        return self.story.count("ready")

    @property
    def hearing(self) -> bool:
        """Whether it has been told that it hears."""
        said = [word for word in self.story if word != "failed"]
        return said[-1:] == ["ready"]

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """A notification."""
        assert self.hearing, "heard before it was told that it hears"
        self.payloads.append(payload.decode())
        self.own.append(own)

    def ready(self) -> None:
        """It hears."""
        assert not self.hearing
        self.story.append("ready")

    def deaf(self, reason: str) -> None:
        """It hears no more."""
        assert self.hearing
        self.story.append("deaf")

    def failed(self, error: Exception) -> None:
        """It could not be made to hear."""
        assert not self.hearing
        self.story.append("failed")
        self.errors.append(error)

    def leave(self) -> None:
        """Hear no more."""
        self.listener.unlisten(self.channel, self)

    async def until_ready(self, times: int = 1) -> None:
        """Wait until it has become ready so often."""
        await eventually_async(lambda: self.times_ready >= times, 30, what=f"ready {times} times")
