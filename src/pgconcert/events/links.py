"""What happens to connections."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .stream import Event

__all__ = [
    "ConnectFailed",
    "LinkClosed",
    "LinkLost",
    "LinkOpened",
    "SettingRefused",
]


@dataclass(frozen=True, kw_only=True)
class LinkOpened(Event):
    """A link was connected, probed and given its settings. ``through`` says what stands in between. After a loss, or
    after attempts in vain, ``down_for`` says for how many seconds there was none."""

    role: str
    server_pid: int
    server: str
    version: int
    through: str
    down_for: float | None = None

    def __str__(self) -> str:
        again = "" if self.down_for is None else f", after {self.down_for:.1f} s without one"
        return (
            f"{self.role} link open: {self.server}, backend {self.server_pid}, version {self.version}, "
            f"{self.through}{again}"
        )


@dataclass(frozen=True, kw_only=True)
class LinkClosed(Event):
    """A link was closed by us because nothing needs it any more."""

    role: str
    server_pid: int

    @property
    def level(self) -> int:
        return logging.DEBUG

    def __str__(self) -> str:
        return f"{self.role} link closed (backend {self.server_pid})"


@dataclass(frozen=True, kw_only=True)
class LinkLost(Event):
    """A link died. ``unanswered`` statements were under way."""

    role: str
    server_pid: int
    reason: str
    unanswered: int

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"{self.role} link lost (backend {self.server_pid}, {self.unanswered} unanswered): {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ConnectFailed(Event):
    """An attempt to connect failed; the next one follows in ``retry_in`` seconds, or it is given up (``None``).

    A warning at first, an error when there has been no link for 10 seconds, critical after 5 minutes. ``repeats``: the
    level is what it was at an attempt less than a minute ago; then it is logged for debugging alone.
    """

    role: str
    attempt: int
    error: str
    retry_in: float | None
    down_for: float
    repeats: bool = False

    @property
    def level(self) -> int:
        if self.repeats:
            return logging.DEBUG
        if self.down_for < 10:
            return logging.WARNING
        return logging.ERROR if self.down_for < 300 else logging.CRITICAL

    def __str__(self) -> str:
        then = "given up" if self.retry_in is None else f"next in {self.retry_in:.2f} s"
        return f"{self.role} link: attempt {self.attempt} failed, down for {self.down_for:.1f} s, {then}: {self.error}"


@dataclass(frozen=True, kw_only=True)
class SettingRefused(Event):
    """The server, or a proxy in front of it, refused a setting that makes the link safer."""

    role: str
    setting: str
    error: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"{self.role} link: setting {self.setting} refused: {self.error}"
