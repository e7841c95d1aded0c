"""Elections and groups for threads: the same words, waits that are interrupted, bodies that ask.

Theory: what a thread must wait for is shown by the server or by an event; threads end before the test does.
"""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pgconcert import CoordinatorClosed, GroupNotEmpty, MemberExists, NotHeld, SessionLost, Stopped
from pgconcert.blocking import Coordinator
from pgconcert.blocking.election import Leadership
from pgconcert.testing import eventually
from tests.postgres.jobscenes import make_tables
from tests.postgres.scenes import raw


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


def until_marked(url: str, name: str, count: int = 1) -> None:
    """Wait until so many sessions are known to wait for it."""

    def marked() -> bool:
        with raw(url) as look:
            found = look.execute("select count(*) from pgconcert.waiting where name = %s", [name]).fetchone()
        return found is not None and found[0] >= count

    eventually(marked, what=f"{count} sessions wait for {name!r}")


def test_leading_and_observing(tables: str, unique: str) -> None:
    with Coordinator(tables) as a, Coordinator(tables) as b:
        election, other = a.election(unique, ttl=60, interval=0.5), b.election(unique, ttl=60, interval=0.5)
        assert other.leader() is None
        with other.observe() as changes:
            first = changes.get()
            assert (first.leader, first.token) == (None, None)
            with election.lead(data="here") as leadership:
                leadership.check()
                assert leadership.identity == a.identity
                assert other.lead().try_acquire() is None
                leader = other.leader()
                assert leader is not None
                assert (leader.data, leader.mine, leader.token) == ("here", False, leadership.token)
                begun = next(changes)
                assert begun.leader is not None
                assert not leadership.wait_release_requested(0.01)
                assert other.request_release()
                assert leadership.wait_release_requested(60)
                leadership.check()
            end = next(iter(changes))
            assert (end.leader, end.token, end.how) == (None, begun.token, "released")
            with pytest.raises(TimeoutError, match=unique):
                changes.get(0.01)
        assert changes.closed
        assert list(changes) == []
        with pytest.raises(CoordinatorClosed):
            changes.get()
        assert not election.resign()
        assert not other.revoke()


def test_handing_over_between_threads(tables: str, unique: str) -> None:
    """A body in another thread is told by `check`, and nobody else leads before it has ended."""
    with Coordinator(tables) as a, Coordinator(tables) as b, ThreadPoolExecutor(3) as threads:
        election, other = a.election(unique, ttl=60, interval=2.5), b.election(unique, ttl=60, interval=2.5)
        entered, told, may_end = threading.Event(), threading.Event(), threading.Event()

        def body() -> None:
            with election.lead() as leadership:
                entered.set()
                assert leadership.wait_lost(60)
                told.set()
                assert may_end.wait(60)
                leadership.check()

        leads = threads.submit(body)
        assert entered.wait(60)
        waits = threads.submit(lambda: other.lead().acquire())
        until_marked(tables, unique)
        resigns = threads.submit(election.resign)
        assert told.wait(60)
        assert not waits.done()
        assert not resigns.done()
        may_end.set()
        assert resigns.result(60)
        with pytest.raises(SessionLost, match=r"resign\(\)"):
            leads.result(60)
        waits.result(60).release()
        with election.lead() as leadership:
            assert election.resign()
            assert leadership.released
        leadership = election.lead().acquire()
        assert election.resign()
        assert leadership.released


def test_stopping(tables: str, unique: str) -> None:
    with Coordinator(tables) as a, ThreadPoolExecutor(2) as threads:
        election = a.election(unique, ttl=60, interval=2.5)
        entered, may_end = threading.Event(), threading.Event()

        def body() -> None:
            with election.lead() as leadership:
                entered.set()
                assert may_end.wait(60)
                leadership.check()

        leads = threads.submit(body)
        assert entered.wait(60)
        waits = threads.submit(lambda: election.lead().acquire())
        assert not election.stop(0.05)
        with pytest.raises(Stopped):
            waits.result(60)
        may_end.set()
        assert election.stop()
        with pytest.raises(SessionLost, match=r"stop\(\)"):
            leads.result(60)
        with pytest.raises(Stopped):
            election.lead().try_acquire()
        assert election.leader() is None


def test_groups(tables: str, unique: str) -> None:
    with Coordinator(tables, namespace=unique) as a, Coordinator(tables, namespace=unique) as b:
        group, other = a.group("g", ttl=60, interval=2.5), b.group("g", ttl=60, interval=2.5)
        assert not group.exists()
        assert group.create()
        assert not other.create()
        assert b.groups() == ["g"]
        with other.watch() as changes:
            with group.join(member_id="m", capabilities=1) as membership:
                assert (membership.group, membership.member_id, membership.capabilities) == ("g", "m", 1)
                assert changes.get().kind == "joined"
                membership.update_capabilities([2])
                updated = changes.get()
                assert (updated.kind, updated.member.capabilities) == ("updated", [2])
                assert [member.member_id for member in other.members()] == ["m"]
                with pytest.raises(MemberExists, match="'m'"):
                    other.join(member_id="m").acquire()
                assert other.join(member_id="m").try_acquire() is None
                with pytest.raises(GroupNotEmpty):
                    other.delete()
            assert changes.get().kind == "left"
            with pytest.raises(NotHeld):
                membership.update_capabilities(3)
        again = other.join(member_id="m").acquire()
        assert again.token > membership.token
        again.leave()
        assert other.members() == ()
        assert group.delete()
        assert not group.delete()


def test_several_threads_share_an_observer(tables: str, unique: str) -> None:
    """Each change goes to one of them, and all come to an end when it is closed."""
    with Coordinator(tables) as a, ThreadPoolExecutor(4) as threads:
        with a.election(unique, ttl=60, interval=2.5).observe() as changes:
            assert changes.get().leader is None
            taken: list[int | None] = []

            def take() -> None:
                for change in changes:
                    taken.append(change.token)  # noqa: PERF401 - seen by others at once

            takers = [threads.submit(take) for _ in range(4)]
            tokens: list[int] = []
            for _ in range(10):
                with a.election(unique, ttl=60, interval=2.5).lead() as leadership:
                    tokens += [leadership.token] * 2
            eventually(lambda: len(taken) >= len(tokens), 30, what="all were taken")
        for taker in takers:
            taker.result(60)
    assert sorted(token for token in taken if token is not None) == tokens


def test_ctrl_c_takes_nothing(tables: str, unique: str) -> None:
    """Who is interrupted while it takes, at any instant, misses no change."""
    with Coordinator(tables) as a, ThreadPoolExecutor(1) as threads:
        election = a.election(unique, ttl=60)
        tokens: list[int] = []
        over = threading.Event()
        end = time.monotonic() + 60
        main = threading.main_thread().ident
        assert main is not None

        def disturb() -> None:
            while time.monotonic() < end and (len(tokens) < 20 or interrupts < 5):
                with election.lead() as leadership:
                    tokens.append(leadership.token)
                time.sleep(random.uniform(0, 0.005))
                signal.pthread_kill(main, signal.SIGINT)
            over.set()

        seen: list[int | None] = []
        interrupts = 0
        taking = False

        def interrupt(number: int, frame: object) -> None:
            nonlocal taking
            if taking:
                taking = False
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            with election.observe() as changes:
                assert changes.get().leader is None
                disturbs = threads.submit(disturb)
                while not (over.is_set() and len(seen) == 2 * len(tokens)):
                    try:
                        taking = True
                        seen.append(changes.get(1).token)
                        taking = False
                    except KeyboardInterrupt:
                        interrupts += 1
                    except TimeoutError:
                        taking = False
                        seen_so_far = f"{len(tokens)} terms, and these changes were seen: {seen}"
                        assert not over.is_set() or time.monotonic() < end + 30, seen_so_far
                disturbs.result()
        finally:
            signal.signal(signal.SIGINT, before)
        assert interrupts
        assert seen == [token for token in tokens for _ in range(2)]


def test_closing_the_coordinator_ends_them(tables: str, unique: str) -> None:
    with ThreadPoolExecutor(3) as threads:
        a = Coordinator(tables)
        a.open()
        election = a.election(unique, ttl=60, interval=2.5)
        changes = election.observe()
        changes.__enter__()
        assert changes.get().leader is None
        held: list[Leadership] = [election.lead().acquire()]
        assert changes.get().leader is not None
        gets = threads.submit(changes.get)
        waits = threads.submit(lambda: election.lead().acquire())
        a.close()
        with pytest.raises(CoordinatorClosed):
            gets.result(60)
        with pytest.raises(CoordinatorClosed):
            waits.result(60)
        assert held[0].lost
        assert election.stop()
        changes.close()
        with pytest.raises(CoordinatorClosed):
            election.leader()


def test_what_is_thrown_away_is_warned_of(tables: str, unique: str) -> None:
    def throw_away(thing: object) -> None:
        del thing
        gc.collect()

    with Coordinator(tables) as a:
        with pytest.warns(ResourceWarning, match="without release"):
            throw_away(a.election(unique, ttl=60, interval=2.5).lead().acquire())
        with a.election(unique, ttl=60, interval=2.5).lead(timeout=60):
            pass
        with pytest.warns(ResourceWarning, match="without close"):
            throw_away(a.election(unique, ttl=60, interval=2.5).observe().__enter__())
