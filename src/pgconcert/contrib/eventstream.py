"""What is written to a stream of server-sent events. Pure, for any framework; the form is that of the HTML standard.

An event is a block of lines ``field: value`` that ends with an empty line. A line ends at CR, LF or both, and at
nothing else that Python takes for the end of a line. So a line break in the data makes another ``data:`` line, which
the reader joins with LF again; an id or a name with a line break cannot be written, and neither can an id with NUL,
which every reader would ignore. Whoever can choose one of these texts must not be able to write a field of his own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigurationError, given

__all__ = ["KEEP_ALIVE", "ServerEvent", "retry_line"]

_BREAK: Final = re.compile(r"\r\n|\r|\n")
_FORBIDDEN: Final = {"data": "", "id": "\r\n\0", "event": "\r\n"}

KEEP_ALIVE: Final = b":\n\n"
"""A comment, which readers ignore. It shows proxies, and us, that somebody is still there."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event for a client. ``data``: any text; ``id``: what the client says when it comes back (``Last-Event-ID``);
    ``event``: its name, ``message`` if there is none.

    :raises ConfigurationError: one of them is not a text; there is a line break in the name or the id, or NUL in the
        id.
    """

    data: str
    id: str | None = None
    event: str | None = None

    def __post_init__(self) -> None:
        for field, forbidden in _FORBIDDEN.items():
            value: object = getattr(self, field)
            if value is None and field != "data":
                continue
            if not isinstance(value, str) or any(sign in value for sign in forbidden):
                limits = " without line breaks or NUL" if forbidden else ""
                raise ConfigurationError(
                    f"the {field} of a server-sent event must be a text{limits}, not {given(value)}"
                )

    def lines(self) -> bytes:
        """It as it is written. What is no character at all (half a surrogate pair) becomes a question mark."""
        head = "" if self.id is None else f"id: {self.id}\n"
        if self.event:
            head += f"event: {self.event}\n"
        data = "".join(f"data: {line}\n" for line in _BREAK.split(self.data))
        return f"{head}{data}\n".encode("utf-8", "replace")


def retry_line(seconds: float) -> bytes:
    """After how long a client that was cut off shall come back."""
    return b"retry: %d\n\n" % round(seconds * 1000)
