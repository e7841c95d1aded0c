"""Whose messages are our own: the server processes behind our links (`postgres/context.py`), on a played loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from pgconcert.postgres.context import OwnPids
from pgconcert.postgres.probe import Proof, Through


class Timers:
    """A loop that keeps what shall be called later."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], object]]] = []

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        self.due.append((seconds, lambda: call(*arguments)))


def proof(pid: int, through: Through, started: bytes = b"") -> Proof:
    return Proof(
        pid=pid, through=through, standby=False, lock_table=1, database=b"1", incarnation=None, started=started
    )


def went(own: OwnPids, pid: int, through: Through = "direct", started: bytes = b"") -> Timers:
    timers = Timers()
    own.went(proof(pid, through, started), cast(asyncio.AbstractEventLoop, cast(Any, timers)))
    return timers


def test_ours_while_connected_and_for_a_minute() -> None:
    own = OwnPids()
    own.came(proof(7, "direct"))
    own.came(proof(8, "direct"))
    assert own.pids == {7, 8}
    ((seconds, forget),) = went(own, 7).due
    assert own.pids == {7, 8}
    assert seconds == 60
    forget()
    assert own.pids == {8}


def test_a_number_that_is_used_again_is_ours_to_its_last_minute() -> None:
    own = OwnPids()
    own.came(proof(7, "direct"))
    ((_, forget),) = went(own, 7).due
    own.came(proof(7, "direct"))
    forget()
    assert own.pids == {7}
    ((_, forget),) = went(own, 7).due
    forget()
    assert own.pids == set()


def test_a_session_of_a_pooler_is_ours_only_while_we_have_it() -> None:
    own = OwnPids()
    own.came(proof(7, "session pooler"))
    assert own.pids == {7}
    assert went(own, 7, "session pooler").due == []
    assert own.pids == set()


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_transaction_pooler_gives_us_nothing_of_our_own(rounds: int) -> None:
    own = OwnPids()
    for _ in range(rounds):
        own.came(proof(7, "transaction pooler"))
        assert own.pids == set()
        assert went(own, 7, "transaction pooler").due == []


def test_a_server_that_was_started_again_gives_its_numbers_to_strangers() -> None:
    """What was ours behind the last start is nobody's now, and is not forgotten twice."""
    own = OwnPids()
    known = own.pids
    own.came(proof(7, "direct", b"first"))
    own.came(proof(8, "direct", b"first"))
    forget = [went(own, pid, started=b"first").due for pid in (7, 8)]
    own.came(proof(9, "direct", b"second"))
    assert own.pids == {9}
    assert own.pids is known, "whoever looks into it keeps it"
    own.came(proof(8, "direct", b"second"))
    for ((_, forgets),) in forget:
        forgets()
    assert own.pids == {8, 9}


def test_a_link_that_still_leads_to_the_last_start_is_not_ours_here() -> None:
    """Two servers behind one address, in turn: the numbers of one say nothing about the other."""
    own = OwnPids()
    own.came(proof(7, "direct", b"first"))
    own.came(proof(9, "direct", b"second"))
    assert own.pids == {9}
    own.came(proof(8, "direct", b"first"))
    assert own.pids == {7, 8}
