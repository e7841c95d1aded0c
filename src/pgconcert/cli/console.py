"""Standard output as every command uses it: the console, and texts of others made fit for it."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from rich.console import Console

__all__ = ["make_console", "printable"]


def make_console() -> Console:
    """The console of standard output: on a terminal with colours and tables, else plain, with no line broken."""
    if isinstance(sys.stdout, TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="replace")  # rich shortens texts with a sign that such a terminal lacks
    if not sys.stdout.isatty() or Console().is_dumb_terminal:
        return Console(file=sys.stdout, force_terminal=False, no_color=True, highlight=False, soft_wrap=True)
    return Console(file=sys.stdout, highlight=False)


def printable(text: str) -> str:
    """A text of others, fit for a terminal."""
    return text if text.isprintable() else repr(text)
