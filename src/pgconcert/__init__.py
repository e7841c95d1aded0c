"""Locks, leadership, shared tasks and events for the processes of one application, through their PostgreSQL."""

from typing import TYPE_CHECKING, Any

from .backend import Backend, Health, Holder, LinkHealth, SessionHealth
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
    GroupNotEmpty,
    GuardRefused,
    HoldLost,
    KeyInvalid,
    LinkLost,
    ListenerOverflow,
    LockBudgetExceeded,
    LockLost,
    MemberExists,
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
    SessionLost,
    StandbyRefused,
    StatementFailed,
    Stopped,
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
from .store import SessionInfo, Store

if TYPE_CHECKING:
    from .blocking import (
        Candidacy,
        Changes,
        ChannelLock,
        Coordinator,
        Election,
        FanOut,
        FanOutSubscription,
        Group,
        Hold,
        JobHold,
        JobLock,
        Joining,
        Leadership,
        Listening,
        Lock,
        LockSet,
        Membership,
        Semaphore,
        Subscription,
    )
    from .election import AsyncCandidacy, AsyncElection, AsyncLeadership
    from .groups import AsyncGroup, AsyncJoining, AsyncMembership
    from .jobs import AsyncJobHold, AsyncJobLock, JobHolder, JobLockState
    from .members import Member, MemberChange
    from .pubsub.codec import Codec
    from .pubsub.fanout import AsyncFanOut, AsyncFanOutSubscription, FanOutStatistics
    from .terms import Leader, LeaderChange
    from .watching import AsyncChanges

__all__ = [
    "PING_CHANNEL",
    "AcquireTimeout",
    "AsyncCandidacy",
    "AsyncChanges",
    "AsyncChannelLock",
    "AsyncCoordinator",
    "AsyncElection",
    "AsyncFanOut",
    "AsyncFanOutSubscription",
    "AsyncGroup",
    "AsyncHold",
    "AsyncJobHold",
    "AsyncJobLock",
    "AsyncJoining",
    "AsyncLeadership",
    "AsyncListening",
    "AsyncLock",
    "AsyncLockSet",
    "AsyncMembership",
    "AsyncSemaphore",
    "AsyncSubscription",
    "Backend",
    "Broker",
    "BrokerClosed",
    "Candidacy",
    "Changes",
    "Channel",
    "ChannelInvalid",
    "ChannelLock",
    "ChannelSubscription",
    "Codec",
    "ConfigurationError",
    "Coordinator",
    "CoordinatorClosed",
    "DecodeFailed",
    "Election",
    "EmbeddedServerError",
    "FanOut",
    "FanOutStatistics",
    "FanOutSubscription",
    "Gap",
    "GivenUp",
    "Group",
    "GroupNotEmpty",
    "GuardRefused",
    "Handler",
    "Health",
    "Hearing",
    "Hold",
    "HoldLost",
    "Holder",
    "JobHold",
    "JobHolder",
    "JobLock",
    "JobLockState",
    "Joining",
    "KeyInvalid",
    "Leader",
    "LeaderChange",
    "Leadership",
    "LinkHealth",
    "LinkLost",
    "ListenerOverflow",
    "Listening",
    "Lock",
    "LockBudgetExceeded",
    "LockLost",
    "LockSet",
    "Member",
    "MemberChange",
    "MemberExists",
    "Membership",
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
    "SessionHealth",
    "SessionInfo",
    "SessionLost",
    "Shutdown",
    "StandbyRefused",
    "StatementFailed",
    "Stopped",
    "Store",
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
    "Candidacy": ".blocking",
    "Changes": ".blocking",
    "Election": ".blocking",
    "Group": ".blocking",
    "JobHold": ".blocking",
    "JobLock": ".blocking",
    "Joining": ".blocking",
    "Leadership": ".blocking",
    "Membership": ".blocking",
    "AsyncCandidacy": ".election",
    "AsyncElection": ".election",
    "AsyncLeadership": ".election",
    "AsyncGroup": ".groups",
    "AsyncJoining": ".groups",
    "AsyncMembership": ".groups",
    "AsyncJobHold": ".jobs",
    "AsyncJobLock": ".jobs",
    "JobHolder": ".jobs",
    "JobLockState": ".jobs",
    "Member": ".members",
    "MemberChange": ".members",
    "Leader": ".terms",
    "LeaderChange": ".terms",
    "AsyncChanges": ".watching",
}
"""Whoever has an event loop does not pay for the words of threads, and hardly anybody for all of them."""


def __getattr__(name: str) -> Any:
    if name not in _WHEN_NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_WHEN_NEEDED[name], __name__), name)
    return value
