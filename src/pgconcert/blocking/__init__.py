"""The same words for threads. What stands here says how a thread waits; what is waited for is the same as with asyncio.

Every class is the twin of one with asyncio (``AsyncLock`` and ``Lock``), with the same names, parameters and defaults;
a test compares them. The links live on the engine thread of the process (``enginethread.py``).
"""

from .channel_lock import ChannelLock
from .coordinator import Coordinator
from .election import Candidacy, Election, Leadership
from .fanout import FanOut, FanOutSubscription
from .groups import Group, Joining, Membership
from .hold import Hold
from .jobs import JobHold, JobLock
from .listening import Listening
from .locks import Lock, Semaphore
from .locksets import LockSet
from .queue import TaskQueue
from .runner import Runner, RunnerGroup
from .subscription import Subscription
from .watching import Changes

__all__ = [
    "Candidacy",
    "Changes",
    "ChannelLock",
    "Coordinator",
    "Election",
    "FanOut",
    "FanOutSubscription",
    "Group",
    "Hold",
    "JobHold",
    "JobLock",
    "Joining",
    "Leadership",
    "Listening",
    "Lock",
    "LockSet",
    "Membership",
    "Runner",
    "RunnerGroup",
    "Semaphore",
    "Subscription",
    "TaskQueue",
]
