"""The standard streams of a program, before it opens anything else."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["open_streams"]

_STDERR: Final = 2


def open_streams() -> None:
    """A standard stream that the caller closed (``>&-``) is nothing, or a socket of ours would get its number."""
    nothing = os.open(os.devnull, os.O_RDWR)
    while nothing <= _STDERR:
        os.set_inheritable(nothing, True)
        nothing = os.dup(nothing)
    os.close(nothing)
