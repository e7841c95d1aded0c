"""Every error that pgconcert raises. This file holds error classes and nothing else; it imports nothing of the project.

The families follow what the caller can do next::

    PgconcertError
    ├── ConfigurationError (ValueError)   the call, the address or what stands behind it is wrong
    │   ├── KeyInvalid                    not a lock key: type, range, length, NUL
    │   ├── PoolerRefused                 a transaction pooler stands where a session is needed: give ``direct_url``
    │   ├── PermitsDisagree               two processes give one semaphore different numbers of permits
    │   ├── ChannelInvalid                not a channel name: 1 to 63 encoded bytes without NUL
    │   ├── PayloadInvalid                not a payload: type, text that cannot be encoded, a header
    │   │   └── PayloadTooLarge           larger than a notification, and there is nowhere to put it
    │   ├── SchemaMissing                 what needs our tables does not find them: ``pgconcert schema apply``
    │   └── EmbeddedServerError           the embedded server cannot be had
    ├── Unavailable (ConnectionError)     no connection now; trying again later is right
    │   ├── StandbyRefused                the server is a hot standby, whose locks exclude nobody
    │   ├── GivenUp                       the limit of attempts to connect is reached
    │   └── LinkLost                      the connection died while a request was under way
    ├── StatementFailed                   the server answered with an error; ``.sqlstate``
    │   └── LockBudgetExceeded            more locks than this process or the server may carry
    ├── PublishError                      a message could not be published
    │   ├── PublishUncertain              the link died after it was sent: it may or may not have arrived
    │   ├── PublishManyFailed             of several, some; ``.failures`` tells which and why
    │   └── NotifyQueueFull               the server's queue of notifications is full; names the session that blocks it
    ├── MessagesLost                      a subscriber missed messages; ``.gap`` says how many and why
    ├── ListenerOverflow                  a subscriber whose policy is ``"error"`` was too slow
    ├── DecodeFailed (ValueError)         a payload is not the text, JSON or type that was asked for; ``.raw``
    ├── RequestFailed                     the handler that answered a request raised
    ├── RequestTimeout (TimeoutError)     nobody answered a request within ``timeout``
    ├── AcquireTimeout (TimeoutError)     not acquired within ``timeout``; names the holder
    ├── WouldDeadlock (RuntimeError)      the caller would wait for itself, alone or in a cycle of tasks
    ├── NotHeld (RuntimeError)            releasing what is not yours
    ├── HoldLost                          you had it; now somebody else may; ``.key`` ``.reason``
    │   ├── LockLost                      its connection died
    │   ├── SessionLost                   its session was not renewed in time, or it was taken away
    │   └── GuardRefused                  a guarded transaction must not commit: the hold is not ours any more
    ├── MemberExists                      somebody else is a member of the group with this id
    ├── GroupNotEmpty                     a group that has members cannot be deleted
    ├── SessionNotFound                   a ``TaskSource`` says it: the session of the runner is over there
    ├── TransactionAborted                a transaction whose statement had failed was to be committed
    ├── Stopped (RuntimeError)            a wait for a job lock or a leadership whose ``stop`` was called
    └── CoordinatorClosed (RuntimeError)  used before ``open``, after ``close``, or after a fork
        └── BrokerClosed                  publishing, subscribing or receiving when the coordinator is closed

*Not acquired* is a value (``None`` from ``try_acquire``) unless a bounded wait was asked for. *Lost* is a state first
(``hold.lost``), and an error when the block ends. No message ever contains a password.
"""

from __future__ import annotations

__all__ = [
    "AcquireTimeout",
    "BrokerClosed",
    "ChannelInvalid",
    "ConfigurationError",
    "CoordinatorClosed",
    "DecodeFailed",
    "EmbeddedServerError",
    "GivenUp",
    "GroupNotEmpty",
    "GuardRefused",
    "HoldLost",
    "KeyInvalid",
    "LinkLost",
    "ListenerOverflow",
    "LockBudgetExceeded",
    "LockLost",
    "MemberExists",
    "MessagesLost",
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
    "RequestFailed",
    "RequestTimeout",
    "SchemaMissing",
    "SessionLost",
    "SessionNotFound",
    "StandbyRefused",
    "StatementFailed",
    "Stopped",
    "TransactionAborted",
    "Unavailable",
    "WouldDeadlock",
]


class PgconcertError(Exception):
    """The root of everything that pgconcert raises."""


class ConfigurationError(PgconcertError, ValueError):
    """The call, the address, or what stands behind it is wrong. Nothing was acquired; trying again does not help."""


class KeyInvalid(ConfigurationError):
    """A lock key is an ``int`` of 64 bits or a text of 1 to 1,000 encoded bytes without NUL."""


class PoolerRefused(ConfigurationError):
    """A transaction pooler stands between us and the server where a session of our own is needed."""


class PermitsDisagree(ConfigurationError):
    """Somebody else uses this semaphore with another number of permits now; the message names them."""


class ChannelInvalid(ConfigurationError):
    """A channel name is a text of 1 to 63 encoded bytes without NUL; names with ``pgconcert:`` in front are ours."""


class PayloadInvalid(ConfigurationError):
    """A payload is bytes or a text, headers are texts, and what is given as ``json=`` must have a JSON form."""


class PayloadTooLarge(PayloadInvalid):
    """The payload does not fit a notification, and there is nowhere to put it. The message says what to install."""


class SchemaMissing(ConfigurationError):
    """The tables of pgconcert are missing or old. The message names the command that makes them."""


class EmbeddedServerError(ConfigurationError):
    """The embedded server could not be found, started or joined."""


class Unavailable(PgconcertError, ConnectionError):
    """There is no connection to the server now. The engine goes on trying; so may the caller."""


class StandbyRefused(Unavailable):
    """The server is a hot standby: it grants locks that exclude nobody on the primary."""


class GivenUp(Unavailable):
    """The coordinator was told how often to try (``reconnect_limit``), and has tried that often in vain."""


class LinkLost(Unavailable):
    """The connection died while a request was under way."""


class StatementFailed(PgconcertError):
    """The server answered a statement with an error.

    ``sqlstate`` is the five-character code, or ``""`` when the server gave none.
    """

    def __init__(self, message: str, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate

    def __reduce__(self) -> tuple[type[StatementFailed], tuple[str, str], dict[str, object]]:
        return type(self), (str(self), self.sqlstate), self.__dict__


class LockBudgetExceeded(StatementFailed):
    """More locks at once than this process or the server may carry. Raised before the server suffers."""


class PublishError(PgconcertError):
    """A message could not be published."""


class PublishUncertain(PublishError):
    """The link died after a notification was sent and before the answer. It is never sent again by us."""


class PublishManyFailed(PublishError):
    """Of several messages some were not published. ``failures`` has the error of each, by its place in the order."""

    def __init__(self, count: int, failures: dict[int, Exception]) -> None:
        first = next(iter(failures.values()))
        super().__init__(f"{len(failures)} of {count} messages were not published; the first: {first}")
        self.count = count
        self.failures = failures

    def __reduce__(self) -> tuple[type[PublishManyFailed], tuple[int, dict[int, Exception]], dict[str, object]]:
        return type(self), (self.count, self.failures), self.__dict__


class NotifyQueueFull(PublishError):
    """The server's queue of notifications is full, or nearly so. The message names the session that blocks it."""


class MessagesLost(PgconcertError):
    """A subscriber missed messages. ``gap`` says how many, why, and since when. The subscription goes on."""

    def __init__(self, gap: object) -> None:
        super().__init__(str(gap))
        self.gap = gap

    def __reduce__(self) -> tuple[type[MessagesLost], tuple[object], dict[str, object]]:
        return type(self), (self.gap,), self.__dict__


class ListenerOverflow(PgconcertError):
    """A subscriber with ``overflow="error"`` was too slow: its queue was full when another message came."""


class DecodeFailed(PgconcertError, ValueError):
    """A payload is not what was asked for. ``raw`` is what came."""

    def __init__(self, message: str, raw: bytes) -> None:
        super().__init__(message)
        self.raw = raw

    def __reduce__(self) -> tuple[type[DecodeFailed], tuple[str, bytes], dict[str, object]]:
        return type(self), (str(self), self.raw), self.__dict__


class RequestFailed(PgconcertError):
    """Somebody answered a request with an error: its handler raised, or its reply could not be sent."""


class RequestTimeout(PgconcertError, TimeoutError):
    """Nobody answered a request within ``timeout`` seconds: nobody listens, or whoever does is too slow."""


class AcquireTimeout(PgconcertError, TimeoutError):
    """The lock was not acquired within ``timeout`` seconds. The message names the holder where it is known."""


class WouldDeadlock(PgconcertError, RuntimeError):
    """The caller would wait for a lock that it holds itself, or that is held by a task which waits for the caller.

    Locks are not re-entrant. The message tells the cycle. Only holds inside their ``async with`` are looked at, because
    of those it is known which task gives them back; cycles between processes are reported (``StillWaiting``) instead.
    """


class NotHeld(PgconcertError, RuntimeError):
    """The caller released a key that it does not hold."""


class HoldLost(PgconcertError):
    """Something you held is not yours any more; somebody else may have it already.

    ``key`` is what was held, as the caller wrote it. ``reason`` says why, in a few words.
    """

    def __init__(self, key: object, reason: str) -> None:
        super().__init__(f"{shown(key)} was lost: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type[HoldLost], tuple[object, str], dict[str, object]]:
        return type(self), (self.key, self.reason), self.__dict__


class LockLost(HoldLost):
    """The connection that carried the lock died, and the server freed the lock."""


class SessionLost(HoldLost):
    """The session was not renewed in time, or what hung on it was taken away (``revoke``)."""


class GuardRefused(HoldLost):
    """The hold that guards this transaction is not ours any more, or cannot be proven to be: roll it back."""


class MemberExists(PgconcertError):
    """A living session is a member of the group with this id. Leave there first, or join with another id."""


class GroupNotEmpty(PgconcertError):
    """The group has members that live, so it cannot be deleted."""


class SessionNotFound(PgconcertError):
    """A ``TaskSource`` raises it where the session that it gets is over or was never there: the runner starts another
    at once."""


class Stopped(PgconcertError, RuntimeError):
    """The caller waited for a job lock or a leadership, and ``stop`` was called on its object."""


class TransactionAborted(PgconcertError):
    """The function of ``transaction.run`` returned, although a statement of its transaction had failed. Nothing was
    committed: the server rolls such a transaction back at its commit, without an error."""


class CoordinatorClosed(PgconcertError, RuntimeError):
    """The coordinator is not open: not yet, not any more, or it was inherited through ``fork``."""


class BrokerClosed(CoordinatorClosed):
    """Publishing, subscribing or receiving when the coordinator is closed."""


def shown(key: object) -> str:
    """A key as a message shows it: of a large set only the first few."""
    if not isinstance(key, tuple) or len(key) <= 3:
        return repr(key)
    return f"({', '.join(map(repr, key[:3]))} and {len(key) - 3} more)"


def given(value: object) -> str:
    """What a caller passed, as a message shows it: not long, and no digits of a number that Python would not write."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an int of {value.bit_length()} bits"
    return f"{value!r:.100}"
