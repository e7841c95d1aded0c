"""Locks, leadership, shared tasks and events for the processes of one application, through their PostgreSQL."""

from .backend import Backend, Health, Holder, LinkHealth
from .coordinator import AsyncCoordinator
from .errors import (
    AcquireTimeout,
    ConfigurationError,
    CoordinatorClosed,
    EmbeddedServerError,
    HoldLost,
    KeyInvalid,
    LinkLost,
    LockBudgetExceeded,
    LockLost,
    NotHeld,
    PermitsDisagree,
    PgconcertError,
    PoolerRefused,
    PublishUncertain,
    StandbyRefused,
    StatementFailed,
    Unavailable,
    WouldDeadlock,
)
from .hold import Hold
from .locks import AsyncLock, AsyncSemaphore
from .locksets import AsyncLockSet

__all__ = [
    "AcquireTimeout",
    "AsyncCoordinator",
    "AsyncLock",
    "AsyncLockSet",
    "AsyncSemaphore",
    "Backend",
    "ConfigurationError",
    "CoordinatorClosed",
    "EmbeddedServerError",
    "Health",
    "Hold",
    "HoldLost",
    "Holder",
    "KeyInvalid",
    "LinkHealth",
    "LinkLost",
    "LockBudgetExceeded",
    "LockLost",
    "NotHeld",
    "PermitsDisagree",
    "PgconcertError",
    "PoolerRefused",
    "PublishUncertain",
    "StandbyRefused",
    "StatementFailed",
    "Unavailable",
    "WouldDeadlock",
    "__version__",
]

__version__ = "0.1.0"
