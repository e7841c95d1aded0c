"""``Task``: a piece of work that was handed to a tasker."""

from __future__ import annotations

from typing import Any

from ..errors import SessionLost

__all__ = ["Task"]


class Task:
    """A piece of work. ``id`` names it at its source, as text; ``payload`` is what there is to do: the bytes of a queue
    (``json()`` reads them), a row of a table as a mapping from columns to values, or what ``make`` made of it.

    ``attempt``: the how-manieth this is, from 1, where the source can count; of other sources, in this process. Tasks
    run *at least once*: look at ``lost`` before what must not be done twice, and let the database refuse it.
    """

    __slots__ = ("__weakref__", "_lost", "attempt", "id", "payload")

    def __init__(self, id: str, payload: Any = None, *, attempt: int = 1) -> None:  # noqa: A002
        self.id = id
        self.payload = payload
        self.attempt = attempt
        self._lost: Any = None

    @property
    def lost(self) -> bool:
        """Whether the session that owns it is lost, so that others may have it. Looks at the clock; from any thread."""
        return self._lost is not None and self._lost() is not None

    def check(self) -> None:
        """Raise ``SessionLost`` if it is ``lost``. Plain functions call it now and then, because a thread cannot be
        cancelled."""
        reason = self._lost() if self._lost is not None else None
        if reason is not None:
            raise SessionLost(f"task {self.id}", reason)

    def json(self) -> Any:
        """The payload of a queue, read as JSON. Raises ``ValueError`` if it is none."""
        import json

        return json.loads(self.payload)

    def text(self) -> str:
        """The payload of a queue as text. Raises ``ValueError`` if it is not UTF-8."""
        return bytes(self.payload).decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and (self.id, self.payload, self.attempt) == (
            other.id,
            other.payload,
            other.attempt,
        )

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Task {self.id}, attempt {self.attempt}>"
