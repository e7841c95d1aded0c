"""``transaction.lock`` and ``try_lock``: locks that the server frees with the caller's transaction.

Theory. They are advisory locks of the transaction, under the same 64 bits as those of ``c.lock``, so both exclude each
other. Nobody releases one: the server does at the commit, at the rollback, and at the rollback to a savepoint that is
older than the lock. No waiter of ``c.lock`` is told; each looks again within its re-check.

A wait without ``timeout`` is one statement, to which the caller's settings apply. With one::

    try --had it--> done
     |----not------> savepoint, then wait with a lock_timeout of our own, then
                       had it:      the setting is as before, the savepoint is released, the lock stays
                       refused:     back to the savepoint, which brings the setting back; then who holds it is asked
                       other error: back to the savepoint; the driver's own error
     \\----not, and the timeout is 0: who holds it is asked

So whatever the server refuses, the transaction goes on as it was. A caller that is cancelled in the wait, or whose
connection dies, leaves what any statement of theirs would: they roll back, and the server has nothing left.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Final, NamedTuple, overload

from ..acquiring import check_timeout, in_the_way
from ..backend import Holder
from ..errors import AcquireTimeout, ConfigurationError, KeyInvalid, given
from ..keys import AGREEMENT, INTEREST, KeySpace, LockKey
from ..postgres.callerstatements import HOLDERS, lock_sql, lock_within_sql, try_lock_sql, unsigned
from ..postgres.locktable import plain_name
from .connections import AsyncConnection, BlockingConnection, driver_of
from .flow import Failure, Flow, Query, on

__all__ = ["Key", "lock", "try_lock"]

Key = int | str | tuple[int, int]
"""A key of ``c.lock``, or two numbers of 32 bits as other programs use them."""

_NOT_GRANTED: Final = "55P03"
_INT32: Final = range(-(2**31), 2**31)
_LONGEST_WAIT: Final = 2**31 - 1

_SAVEPOINT: Final = Query("savepoint pgconcert_lock", rows=False)
_BACK: Final = Query("rollback to savepoint pgconcert_lock", rows=False)
_RELEASE: Final = Query("release savepoint pgconcert_lock", rows=False)


class _Wanted(NamedTuple):
    """A lock that somebody wants: its key as they wrote it and as the server has it."""

    key: Key
    numbers: tuple[int, ...]
    shared: bool


@overload
def lock(
    conn: BlockingConnection, key: Key, *, shared: bool = ..., timeout: float | None = ..., namespace: str = ...
) -> None: ...
@overload
def lock(
    conn: AsyncConnection, key: Key, *, shared: bool = ..., timeout: float | None = ..., namespace: str = ...
) -> Awaitable[None]: ...
def lock(
    conn: BlockingConnection | AsyncConnection,
    key: Key,
    *,
    shared: bool = False,
    timeout: float | None = None,
    namespace: str = "",
) -> Awaitable[None] | None:
    """Lock ``key`` until the transaction of ``conn`` ends, or goes back to a savepoint from before. Waits for it. With
    a connection that is awaited, so is this.

    It excludes, and is excluded by, ``c.lock(key)`` of coordinators with the same namespace and by other transactions.
    Nobody has to release it, and it cannot be lost while the transaction goes on: whatever is written under it is
    committed under it. A transaction that has it gets it again at once, and frees it once. Transactions that wait for
    each other are found out by the server, as with locks of rows; a ``c.lock`` in that circle is not, so do not wait
    for one without a ``timeout`` while you hold the other. Who waits with ``c.lock`` has it within a second after the
    commit (they look again about every 0.75 s); who waits with ``transaction.lock``, at once.

    At the isolation level ``repeatable read`` or ``serializable`` what is read afterwards is as old as the first
    statement of the transaction, and this may be the first: it may not show what the holder before has committed.

    Whoever is cancelled in the wait, or loses the connection, rolls back, and has nothing left on the server. Drivers
    may close the connection of whoever was cancelled.

    :param conn: a connection to the database of those who lock, in a transaction, or without autocommit.
    :param key: an ``int`` of 64 bits as the server has it, or a text, or a pair of 32 bits each for locks that other
        programs take in that form.
    :param shared: together with others who share it.
    :param timeout: seconds to wait, of at least 0.001, at most 24 days; 0 only tries. It replaces a ``lock_timeout`` of
        the connection for this wait. ``None``: as long as the settings of the connection allow.
    :param namespace: that of the coordinators, for a key that is a text.
    :raises AcquireTimeout: not had within ``timeout``; names who holds it. The transaction and its settings are as they
        were, and so they are after other errors in a wait with ``timeout``, which are the driver's own: the server has
        found a deadlock (roll back, because others wait for what you hold), or ``statement_timeout`` was over.
    :raises KeyInvalid: no such key, or a pair that this library uses itself.
    :raises ConfigurationError: there is no open transaction, and the lock would be free again at once.
    """
    wanted = _wanted(key, shared, namespace)
    limit = check_timeout(timeout)
    flow = _locking(wanted) if limit is None else _locking_within(wanted, limit)
    return on(driver_of(conn, "transaction.lock"), flow, "transaction.lock")


@overload
def try_lock(conn: BlockingConnection, key: Key, *, shared: bool = ..., namespace: str = ...) -> bool: ...
@overload
def try_lock(conn: AsyncConnection, key: Key, *, shared: bool = ..., namespace: str = ...) -> Awaitable[bool]: ...
def try_lock(
    conn: BlockingConnection | AsyncConnection, key: Key, *, shared: bool = False, namespace: str = ""
) -> Awaitable[bool] | bool:
    """Lock ``key`` until the transaction ends, if that is possible at once: whether it was. See ``lock``.

    :raises KeyInvalid: no such key, or a pair that this library uses itself.
    :raises ConfigurationError: there is no open transaction, and the lock would be free again at once.
    """
    driver = driver_of(conn, "transaction.try_lock")
    return on(driver, _trying(_wanted(key, shared, namespace)), "transaction.try_lock")


def _locking(wanted: _Wanted) -> Flow[None]:
    yield Query(lock_sql(len(wanted.numbers), wanted.shared), wanted.numbers)


def _trying(wanted: _Wanted) -> Flow[bool]:
    found = yield Query(try_lock_sql(len(wanted.numbers), wanted.shared), wanted.numbers)
    assert found is not None
    return bool(found[0])


def _locking_within(wanted: _Wanted, timeout: float) -> Flow[None]:
    if (yield from _trying(wanted)):
        return
    if timeout == 0:
        raise (yield from _in_the_way(wanted, timeout))
    milliseconds = str(min(max(1, round(timeout * 1000)), _LONGEST_WAIT))
    yield _SAVEPOINT
    try:
        yield Query(lock_within_sql(len(wanted.numbers), wanted.shared), (*wanted.numbers, milliseconds))
    except Failure as failure:
        yield from _back(failure)
        if failure.sqlstate != _NOT_GRANTED:
            raise
        refused = yield from _in_the_way(wanted, timeout)
        raise refused from failure.error
    yield _RELEASE


def _back(failure: Failure) -> Flow[None]:
    """Back to the savepoint, and away with it. If not even that is possible, the connection is gone, and ``failure``
    says why."""
    try:
        yield _BACK
        yield _RELEASE
    except Exception:
        raise failure from None


def _in_the_way(wanted: _Wanted, timeout: float) -> Flow[AcquireTimeout]:
    """The error of a wait whose time is over, with whoever has the lock."""
    found = yield Query(HOLDERS, unsigned(wanted.numbers))
    rows = json.loads(found[0]) if found is not None and found[0] is not None else []
    holders = [Holder(pid, plain_name(application or ""), mode == "ShareLock") for pid, application, mode in rows]
    return in_the_way(LockKey(str(wanted.key), 0), repr(wanted.key), timeout, holders, str)


def _wanted(key: object, shared: object, namespace: str) -> _Wanted:
    if shared is not True and shared is not False:
        raise ConfigurationError(f"shared must be True or False, not {given(shared)}")
    if isinstance(key, tuple):
        first, second = _pair(key)
        return _Wanted((first, second), (first, second), shared)
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise KeyInvalid(
            f"the key of a lock is an int, a text or a pair of ints, not {type(key).__name__}: {given(key)}"
        )
    found = KeySpace(namespace).key(key)
    return _Wanted(found.name, (found.value,), shared)


def _pair(key: tuple[object, ...]) -> tuple[int, int]:
    numbers = [int(number) for number in key if isinstance(number, int) and not isinstance(number, bool)]
    if len(key) != 2 or len(numbers) != 2 or not all(number in _INT32 for number in numbers):
        raise KeyInvalid(f"a pair for a lock is two ints of 32 bits ({_INT32[0]} to {_INT32[-1]}), not {given(key)}")
    first, second = numbers
    if INTEREST <= first >> 28 <= AGREEMENT:
        raise KeyInvalid(
            f"pairs whose first number is {INTEREST << 28} to {((AGREEMENT + 1) << 28) - 1} are marks of this library "
            f"itself, and whoever held {(first, second)} would disturb its locks: use another pair, or a text"
        )
    return first, second
