"""Who we are, for people who look at a server or at an error. One pure question to the interpreter; nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["default_name"]


def default_name() -> str:
    """The program's name: what a coordinator is called that was given no ``name``."""
    program = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    return program if program not in ("", "-c", "__main__") else "python"
