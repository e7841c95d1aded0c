"""The command line. Here lives only the way in; ``group.py`` knows the commands, and each command is a file.

``click`` and ``rich`` are an extra, so nothing at the top of this package imports them: who installed the library alone
is told what to install, not shown a traceback.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import sys

__all__ = ["main"]

_NEEDED = ("click", "rich")


def main() -> None:
    """Run ``pgconcert`` with the arguments of this process, and exit with the command's code."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f'the command line needs {" and ".join(missing)}; install the extra: pip install "pgconcert[cli]"\n'
            "(the library itself is complete without it)"
        )
    from .group import group

    # at its end the interpreter looks for garbage in all that was imported, which takes half as long as the start
    atexit.register(gc.freeze)
    group(prog_name="pgconcert")
