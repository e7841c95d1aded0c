"""One frozen record for each fact that happens, and the stream that hands them on.

Logs, metrics, traces and tests read the same stream; nothing in the machinery knows its readers. A record says in
words what happened (``str(event)``) and carries the numbers as fields. The stream (``stream.py``), and what happens to
connections (``links.py``), to locks (``locks.py``), to messages (``messages.py``) and to sessions
(``sessions.py``).
"""

from .links import ConnectFailed, LinkClosed, LinkLost, LinkOpened, SettingRefused
from .locks import (
    BatchReconciled,
    HoldBroken,
    HoldDropped,
    LockAcquired,
    LockReleased,
    ReleaseRefused,
    StillWaiting,
    WakeFailed,
)
from .messages import (
    ActiveChanged,
    DeliveryFailed,
    HandlerFailed,
    HandlersAbandoned,
    HookFailed,
    ListenerBounced,
    ListenerDeaf,
    ListenerReady,
    MessageMalformed,
    MessagesMissed,
    MessageUnclaimed,
    MessageUndecodable,
    PingFailed,
    PingsMissing,
    PollFound,
    QueueFilling,
)
from .sessions import (
    HeartbeatFailed,
    HeartbeatLate,
    JobFailed,
    NameGiveFailed,
    NameReleased,
    NameTaken,
    ReleaseRequested,
    SessionEnded,
    SessionLost,
    SessionStarted,
)
from .stream import Event, EventStream

__all__ = [
    "ActiveChanged",
    "BatchReconciled",
    "ConnectFailed",
    "DeliveryFailed",
    "Event",
    "EventStream",
    "HandlerFailed",
    "HandlersAbandoned",
    "HeartbeatFailed",
    "HeartbeatLate",
    "HoldBroken",
    "HoldDropped",
    "HookFailed",
    "JobFailed",
    "LinkClosed",
    "LinkLost",
    "LinkOpened",
    "ListenerBounced",
    "ListenerDeaf",
    "ListenerReady",
    "LockAcquired",
    "LockReleased",
    "MessageMalformed",
    "MessageUnclaimed",
    "MessageUndecodable",
    "MessagesMissed",
    "NameGiveFailed",
    "NameReleased",
    "NameTaken",
    "PingFailed",
    "PingsMissing",
    "PollFound",
    "QueueFilling",
    "ReleaseRefused",
    "ReleaseRequested",
    "SessionEnded",
    "SessionLost",
    "SessionStarted",
    "SettingRefused",
    "StillWaiting",
    "WakeFailed",
]
