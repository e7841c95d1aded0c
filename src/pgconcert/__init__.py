"""Locks, leadership, shared tasks and events for the processes of one application, through their PostgreSQL."""

from .backend import Backend, Health, Holder, LinkHealth
from .blocking import Coordinator, Hold, Lock, LockSet, Semaphore
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
from .hold import AsyncHold
from .locks import AsyncLock, AsyncSemaphore
from .locksets import AsyncLockSet

__all__ = [
    "AcquireTimeout",
    "AsyncCoordinator",
    "AsyncHold",
    "AsyncLock",
    "AsyncLockSet",
    "AsyncSemaphore",
    "Backend",
    "ConfigurationError",
    "Coordinator",
    "CoordinatorClosed",
    "EmbeddedServerError",
    "Health",
    "Hold",
    "HoldLost",
    "Holder",
    "KeyInvalid",
    "LinkHealth",
    "LinkLost",
    "Lock",
    "LockBudgetExceeded",
    "LockLost",
    "LockSet",
    "NotHeld",
    "PermitsDisagree",
    "PgconcertError",
    "PoolerRefused",
    "PublishUncertain",
    "Semaphore",
    "StandbyRefused",
    "StatementFailed",
    "Unavailable",
    "WouldDeadlock",
    "__version__",
]

__version__ = "0.1.0"
