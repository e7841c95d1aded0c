"""Locks, leadership, shared tasks and events for the processes of one application, through their PostgreSQL."""

from typing import TYPE_CHECKING, Any

from .backend import Backend, Health, Holder, LinkHealth
from .channel_lock import AsyncChannelLock
from .coordinator import AsyncCoordinator
from .errors import (
    AcquireTimeout,
    BrokerClosed,
    ChannelInvalid,
    ConfigurationError,
    CoordinatorClosed,
    DecodeFailed,
    EmbeddedServerError,
    GivenUp,
    HoldLost,
    KeyInvalid,
    LinkLost,
    ListenerOverflow,
    LockBudgetExceeded,
    LockLost,
    MessagesLost,
    NotHeld,
    NotifyQueueFull,
    PayloadInvalid,
    PayloadTooLarge,
    PermitsDisagree,
    PgconcertError,
    PoolerRefused,
    PublishError,
    PublishManyFailed,
    PublishUncertain,
    RequestFailed,
    RequestTimeout,
    SchemaMissing,
    StandbyRefused,
    StatementFailed,
    Unavailable,
    WouldDeadlock,
)
from .hold import AsyncHold
from .locks import AsyncLock, AsyncSemaphore
from .locksets import AsyncLockSet
from .messenger import PING_CHANNEL, Hearing, Messenger
from .postgres.onconnection import send_listener_ping
from .pubsub.listening import AsyncListening, ChannelSubscription, Handler
from .pubsub.message import Gap, Message
from .pubsub.overflow import SubscriptionStatistics
from .pubsub.pings import Reconnected
from .pubsub.protocols import Broker, Channel, Publisher, Subscriber
from .pubsub.subscription import AsyncSubscription
from .shutdown import Shutdown, graceful_shutdown

if TYPE_CHECKING:
    from .blocking import (
        ChannelLock,
        Coordinator,
        FanOut,
        FanOutSubscription,
        Hold,
        Listening,
        Lock,
        LockSet,
        Semaphore,
        Subscription,
    )
    from .pubsub.codec import Codec
    from .pubsub.fanout import AsyncFanOut, AsyncFanOutSubscription, FanOutStatistics

__all__ = [
    "PING_CHANNEL",
    "AcquireTimeout",
    "AsyncChannelLock",
    "AsyncCoordinator",
    "AsyncFanOut",
    "AsyncFanOutSubscription",
    "AsyncHold",
    "AsyncListening",
    "AsyncLock",
    "AsyncLockSet",
    "AsyncSemaphore",
    "AsyncSubscription",
    "Backend",
    "Broker",
    "BrokerClosed",
    "Channel",
    "ChannelInvalid",
    "ChannelLock",
    "ChannelSubscription",
    "Codec",
    "ConfigurationError",
    "Coordinator",
    "CoordinatorClosed",
    "DecodeFailed",
    "EmbeddedServerError",
    "FanOut",
    "FanOutStatistics",
    "FanOutSubscription",
    "Gap",
    "GivenUp",
    "Handler",
    "Health",
    "Hearing",
    "Hold",
    "HoldLost",
    "Holder",
    "KeyInvalid",
    "LinkHealth",
    "LinkLost",
    "ListenerOverflow",
    "Listening",
    "Lock",
    "LockBudgetExceeded",
    "LockLost",
    "LockSet",
    "Message",
    "MessagesLost",
    "Messenger",
    "NotHeld",
    "NotifyQueueFull",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PermitsDisagree",
    "PgconcertError",
    "PoolerRefused",
    "PublishError",
    "PublishManyFailed",
    "PublishUncertain",
    "Publisher",
    "Reconnected",
    "RequestFailed",
    "RequestTimeout",
    "SchemaMissing",
    "Semaphore",
    "Shutdown",
    "StandbyRefused",
    "StatementFailed",
    "Subscriber",
    "Subscription",
    "SubscriptionStatistics",
    "Unavailable",
    "WouldDeadlock",
    "__version__",
    "graceful_shutdown",
    "send_listener_ping",
]

__version__ = "0.1.0"

_WHEN_NEEDED = {
    "ChannelLock": ".blocking",
    "Coordinator": ".blocking",
    "FanOut": ".blocking",
    "Hold": ".blocking",
    "Listening": ".blocking",
    "Lock": ".blocking",
    "LockSet": ".blocking",
    "Semaphore": ".blocking",
    "Subscription": ".blocking",
    "FanOutSubscription": ".blocking",
    "AsyncFanOut": ".pubsub.fanout",
    "AsyncFanOutSubscription": ".pubsub.fanout",
    "FanOutStatistics": ".pubsub.fanout",
    "Codec": ".pubsub.codec",
}
"""Whoever has an event loop does not pay for the words of threads, and hardly anybody for all of them."""


def __getattr__(name: str) -> Any:
    if name not in _WHEN_NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_WHEN_NEEDED[name], __name__), name)
    return value
