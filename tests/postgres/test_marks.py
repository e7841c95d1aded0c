"""The server and we compute the same mark from a key: Python for what is read, SQL for what is asked."""

from __future__ import annotations

import random

from pgconcert.keys import interest_pair
from pgconcert.postgres.statements import _MARK_OF_K
from tests.servers import Server


def test_the_server_computes_the_same_marks(server: Server) -> None:
    """Whatever the key, its mark is the same on both sides."""
    rng = random.Random(20)
    keys = [rng.randrange(-(2**63), 2**63) for _ in range(2000)]
    keys += [sign * 2**bits + step for bits in range(63) for sign in (1, -1) for step in (-1, 0, 1)]
    keys += [-(2**63), 2**63 - 1]
    rows = server.execute(f"select k, {_MARK_OF_K} from unnest(%s::int8[]) k", keys)
    assert [tuple(row) for row in rows] == [(key, *interest_pair(key)) for key in keys]
