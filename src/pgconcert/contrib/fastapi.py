"""FastAPI: the coordinator as a parameter of path operations. All the rest is Starlette's.

Here live annotations for FastAPI's dependencies, and nothing else.
"""

from __future__ import annotations

from typing import Annotated

try:
    from fastapi import Depends
except ImportError as _missing:
    raise ImportError(
        "pgconcert.contrib.fastapi needs FastAPI: pip install fastapi 'pgconcert[starlette]'"
    ) from _missing

from ..coordinator import AsyncCoordinator
from .starlette import coordinator

__all__ = ["Coordinated"]

Coordinated = Annotated[AsyncCoordinator, Depends(coordinator)]
"""``async def report(c: Coordinated)``: the coordinator of the application, in requests and in websockets."""
