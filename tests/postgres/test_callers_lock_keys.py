"""What `transaction.lock` and `try_lock` refuse before anything is sent: keys that are none, and options."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgconcert import ConfigurationError, KeyInvalid
from pgconcert.testing import advisory_locks
from pgconcert.transaction import lock, try_lock

OURS = ((1 << 28, 0), ((5 << 28) - 1, -1))
NO_KEYS: list[Any] = [
    *(True, None, 1.5, b"a", [1, 2], "", "a\0", 2**63, "x" * 1001),
    *((), (1,), (1, 2, 3), (True, 1), (1, None), (2**31, 0), (0, -(2**31) - 1), *OURS),
]


@pytest.mark.parametrize("verb", [lock, try_lock])
def test_what_is_no_key(database: str, verb: Any) -> None:
    """Refused before anything is said; our own pairs with the reason."""
    with psycopg.connect(database) as conn:
        for key in NO_KEYS:
            with pytest.raises(KeyInvalid) as caught:
                verb(conn, key)
            assert ("marks of this library" in str(caught.value)) is (key in OURS)
        assert conn.info.transaction_status == TransactionStatus.IDLE


def test_pairs_beside_ours(database: str) -> None:
    with psycopg.connect(database) as conn:
        for key in (((1 << 28) - 1, 0), (-1, 0), (5 << 28, 0)):
            lock(conn, key)
        assert len({one.key for one in advisory_locks(database) if one.granted}) == 3


def test_what_is_no_option(database: str) -> None:
    """Refused before anything is said."""
    wrong: list[dict[str, Any]] = [{"timeout": -1}, {"timeout": "1"}, {"timeout": float("nan")}]
    wrong += [{"shared": 1}, {"namespace": 5}]
    with psycopg.connect(database) as conn:
        for options in wrong:
            with pytest.raises(ConfigurationError):
                lock(conn, "a", **options)
        assert conn.info.transaction_status == TransactionStatus.IDLE
