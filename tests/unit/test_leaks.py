"""Snapshots and bounded waiting, without a server."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pgconcert.testing import Snapshot, eventually, eventually_async, rewrite
from pgconcert.testing.leaks import _key


def test_eventually_returns_the_first_true_answer() -> None:
    answers = iter([0, "", None, "found", "too late"])
    assert eventually(lambda: next(answers)) == "found"


def test_eventually_gives_up_and_names_the_condition() -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"the moon is blue: not true within 0\.05 s; the last answer was 0"):
        eventually(lambda: 0, 0.05, what="the moon is blue")
    assert time.monotonic() - started >= 0.05


def test_eventually_asks_at_least_once() -> None:
    assert eventually(lambda: True, 0) is True


async def test_eventually_async_lets_the_loop_run() -> None:
    done: list[str] = []
    asyncio.get_running_loop().call_later(0.02, done.append, "x")
    assert await eventually_async(lambda: done) == ["x"]

    async def asked() -> bool:
        return len(done) == 1

    assert await eventually_async(asked) is True
    with pytest.raises(AssertionError, match="not true within"):
        await eventually_async(lambda: False, 0.01)


def test_a_thread_left_behind_is_named() -> None:
    before, leave = Snapshot.take(), threading.Event()
    thread = threading.Thread(target=leave.wait, name="lingering")
    thread.start()
    with pytest.raises(AssertionError, match=r"left behind after 0\.01 s:\n  thread lingering"):
        before.check(limit=0.01)
    leave.set()
    before.check()
    thread.join()


async def test_a_task_left_behind_is_named() -> None:
    before = Snapshot.take()
    task = asyncio.create_task(asyncio.sleep(60), name="sleeper")
    assert [line.split(":")[0] for line in before.leaks()] == ["task sleeper"]
    task.cancel()
    await asyncio.wait([task])
    assert before.leaks() == []


@pytest.mark.parametrize(
    ("high", "low", "is_pair", "key"),
    [
        (0, 42, False, 42),
        (0xFFFFFFFF, 0xFFFFFFFF, False, -1),
        (0x80000000, 0, False, -(2**63)),
        (0x7FFFFFFF, 0xFFFFFFFF, False, 2**63 - 1),
        (0, 0x80000000, False, 2**31),
        (0xFFFFFFFF, 7, True, (-1, 7)),
        (0x7FFFFFFF, 0x80000000, True, (2**31 - 1, -(2**31))),
    ],
)
def test_keys_are_read_as_they_were_given(high: int, low: int, is_pair: bool, key: object) -> None:
    assert _key(high, low, is_pair) == key


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ("postgresql://ann@db/app", {"dbname": "other"}, "postgresql://ann@db/other"),
        ("postgresql://ann:p%40ss@db:5/app", {"host": "h"}, "postgresql://ann:p%40ss@h:5/app"),
        ("postgresql://ann@/app?host=/run/x&port=7", {"port": 8}, "postgresql://ann@/app?host=%2Frun%2Fx&port=8"),
        (
            "postgres://u@h1,h2/d?hostaddr=1.2.3.4&sslmode=disable",
            {"host": "::1", "hostaddr": None, "port": 9},
            "postgresql://u@/d?host=%3A%3A1&port=9&sslmode=disable",
        ),
        ("host=a dbname='with blank'", {"host": "b"}, "host=b dbname='with blank'"),
        ("", {"host": "b"}, "host=b"),
    ],
)
def test_rewrite_keeps_the_form(before: str, changes: dict[str, str | int | None], after: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    assert conninfo_to_dict(rewrite(before, **changes)) == conninfo_to_dict(after)
    assert rewrite(before, **changes).partition("://")[1] == after.partition("://")[1]
