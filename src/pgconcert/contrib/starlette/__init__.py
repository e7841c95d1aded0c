"""Starlette, and FastAPI, which is made of it: a coordinator for an application, and its messages for browsers.

Here live the public names; ``pgconcert.contrib.fastapi`` adds the annotation that FastAPI's dependencies want.
"""

from __future__ import annotations

try:
    import starlette as _starlette  # noqa: F401
except ImportError as _missing:
    raise ImportError("pgconcert.contrib.starlette needs Starlette: pip install 'pgconcert[starlette]'") from _missing

from ..eventstream import ServerEvent
from .feed import Missed, Replay, TooOld
from .lifespan import coordinator, lifespan, readiness
from .sse import EventStreamResponse, sse
from .websocket import websocket_feed

__all__ = [
    "EventStreamResponse",
    "Missed",
    "Replay",
    "ServerEvent",
    "TooOld",
    "coordinator",
    "lifespan",
    "readiness",
    "sse",
    "websocket_feed",
]
