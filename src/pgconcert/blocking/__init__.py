"""The same words for threads. What stands here says how a thread waits; what is waited for is the same as with asyncio.

Every class is the twin of one with asyncio (``AsyncLock`` and ``Lock``), with the same names, parameters and defaults;
a test compares them. The links live on the engine thread of the process (``enginethread.py``).
"""

from .channel_lock import ChannelLock
from .coordinator import Coordinator
from .fanout import FanOut, FanOutSubscription
from .hold import Hold
from .listening import Listening
from .locks import Lock, Semaphore
from .locksets import LockSet
from .subscription import Subscription

__all__ = [
    "ChannelLock",
    "Coordinator",
    "FanOut",
    "FanOutSubscription",
    "Hold",
    "Listening",
    "Lock",
    "LockSet",
    "Semaphore",
    "Subscription",
]
