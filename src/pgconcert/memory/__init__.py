"""The backend ``memory://name``: a world inside this process, shared by all coordinators that give its name.

For tests of programs that coordinate, and for programs of one process. What PostgreSQL does to locks it does too, with
the same words and limits; ``docs/reference/memory.md`` says where the two differ. Rooms: who has what (``table.py``),
who listens (``exchange.py``), which sessions live (``sessionbook.py``) and what hangs on them (``ledger.py``), queues
of tasks (``tasks.py``, ``taskqueue.py``), how threads share it (``world.py``, ``mailbox.py``), how a connection breaks
(``connection.py``), the ports (``locks.py``; ``messages.py`` and ``ears.py``; ``sessions.py``) and what holds them
together (``backend.py``). ``null.py`` is the backend that keeps nothing apart.
"""

from __future__ import annotations

from ..backend import Options
from .backend import MemoryBackend, Partition
from .world import World

__all__ = ["MemoryBackend", "Partition", "World", "make"]


def make(address: str, options: Options) -> MemoryBackend:
    """The backend for ``memory://name``."""
    return MemoryBackend(
        address.strip().partition("://")[2],
        name=options.name,
        network_timeout=options.network_timeout,
        max_locks=options.max_locks,
    )
