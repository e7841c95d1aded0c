"""One of several processes handles a message, while these are killed, stopped and cut off under a flood of numbers.

Theory: everybody writes down what it is given (`message_history.py`), so that "twice" is a fact and not a guess. With
`delivery="one-process"` the processes say themselves who is active; who takes over must be seen to receive. A stopped
process whose lock was given to another finds, when it goes on, messages in its socket that are not its own any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.testing import eventually, eventually_async, sessions
from tests.faults.message_history import Tail, handled
from tests.faults.message_worker import PROGRAM, Orders
from tests.postgres.store_scenes import database_with_tables
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Start = Callable[..., Worker]
Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])

CHANNEL = "work"
PROCESSES = 4
LIMIT = 30.0


@dataclass
class Company:
    """The subscribing processes, and who of them is active."""

    server: Server
    orders: Orders
    start: Start
    there: dict[int, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tail = Tail(self.orders.history)

    def fill_up(self, count: int = PROCESSES) -> None:
        """Start processes until there are so many."""
        new = [self.start(PROGRAM, self.orders.text()) for _ in range(count - len(self.there))]
        for worker in new:
            worker.expect("ready", LIMIT)
            self.there[worker.pid] = worker

    def lines(self) -> list[list[str]]:
        """What was written down so far."""
        return self.tail.lines()

    def actives(self) -> list[int]:
        """Who has become active, one after the other."""
        return [int(line[1]) for line in self.lines() if line[0] == "active"]

    def given_to(self, pid: int) -> int:
        """How many messages a process was given so far."""
        return self.tail.given()[f"subscriber-{pid}.0"]

    def until_next(self, before: int) -> int:
        """Wait until one more than `before` has become active and received something; who that is."""
        eventually(lambda: len(self.actives()) > before, LIMIT, what="somebody takes over")
        pid = self.actives()[-1]
        given = self.given_to(pid)
        eventually(lambda: self.given_to(pid) > given + 5, LIMIT, what=f"{pid}, which took over, receives")
        return pid

    def end_session(self, pid: int, role: str) -> None:
        """End the session of a link of a process."""
        (backend,) = [
            one.pid
            for one in sessions(self.orders.url)
            if f"subscriber-{pid}" in one.application_name and one.application_name.endswith(f"pgconcert-{role}")
        ]
        assert self.server.kill_backend(backend)
        eventually(lambda: backend not in {one.pid for one in sessions(self.orders.url)}, LIMIT)

    def end(self) -> None:
        """Everybody leaves in good order."""
        for worker in self.there.values():
            worker.send("end")
        for worker in self.there.values():
            worker.expect("done", LIMIT)
            assert worker.wait() == 0

    def twice(self) -> dict[str, list[str]]:
        """Messages that were handled more than once, and by whom."""
        return {message: by for message, by in handled(self.lines()).items() if len(by) > 1}

    def take_overs_without_a_gap(self) -> list[list[str]]:
        """What was given first to those who took over, where it was no gap; the very first took over from nobody."""
        found = []
        lines = self.lines()
        changes = [place for place, line in enumerate(lines) if line[0] == "active"]
        for place in changes[1:]:
            name = f"subscriber-{lines[place][1]}.0"
            given = [line for line in lines[place:] if line[0] in ("got", "gap") and line[1] == name]
            if given and given[0][:3] != ["gap", name, "takeover"]:
                found.append(given[0])
        return found


@contextlib.contextmanager
def flooded(server: Server, url: str, start: Start, path: Path, **orders: Any) -> Iterator[Company]:
    """A company at work, and one process that publishes."""
    usual = Orders(
        url, str(path / "history"), "subscriber", (CHANNEL,), tasks=1, delivery="one-process", network_timeout=60.0
    )
    company = Company(server, replace(usual, **orders), start)
    company.fill_up(1)
    company.fill_up()
    assert company.actives() == [*company.there][:1]
    publishing = replace(usual, role="publisher", tasks=4, large=False, pause=0.01, delivery="all")
    publisher = start(PROGRAM, publishing.text())
    publisher.expect("ready", LIMIT)
    yield company
    publisher.send("end")
    publisher.expect("done", LIMIT)
    assert publisher.wait() == 0
    company.end()
    assert company.twice() == {}
    assert company.take_overs_without_a_gap() == []


def killed_again_and_again(company: Company, times: int) -> None:
    for number in range(times):
        pid = company.until_next(number)
        company.there.pop(pid).kill()
        assert company.until_next(number + 1) != pid
        company.fill_up()


@pytest.mark.parametrize("engine", ["loop", pytest.param("thread", marks=pytest.mark.long)])
def test_the_active_one_is_killed(server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine) -> None:
    """Somebody else takes over, begins with a gap, and receives."""
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        killed_again_and_again(company, 2)


@pytest.mark.long
@pytest.mark.timeout(300)
@both_engines
def test_the_active_one_is_killed_thirty_times(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        killed_again_and_again(company, 30)


@both_engines
@pytest.mark.long
def test_a_release_is_taken_up_at_once(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    """Those who stand by ask the server again in ten minutes only, so it is the release that calls them."""
    with flooded(server, database, worker, tmp_path, engine=engine, recheck=600.0) as company:
        for number in range(3):
            pid = company.until_next(number)
            leaving = company.there.pop(pid)
            leaving.send("end")
            leaving.expect("done", LIMIT)
            assert leaving.wait() == 0
            company.until_next(number + 1)


def stopped_for_a_while(company: Company, number: int) -> None:
    pid = company.until_next(number)
    stopped = company.there[pid]
    stopped.stop_signal()
    company.end_session(pid, "lock")
    other = company.until_next(number + 1)
    assert other != pid
    given = company.given_to(other)
    eventually(lambda: company.given_to(other) > given + 100, LIMIT)
    stopped.cont()
    eventually(lambda: ["standby", str(pid), CHANNEL] in company.lines(), LIMIT, what=f"{pid} knows that it lost")
    given = company.given_to(other)
    eventually(lambda: company.given_to(other) > given + 20, LIMIT, what="the new one goes on")


@both_engines
@pytest.mark.long
def test_the_active_one_is_stopped_until_another_has_taken_over(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    """What it finds in its socket when it goes on belongs to another process by then."""
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        stopped_for_a_while(company, 0)


@pytest.mark.long
@pytest.mark.timeout(300)
@both_engines
def test_the_active_one_is_stopped_ten_times(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        for number in range(10):
            stopped_for_a_while(company, number)


@both_engines
@pytest.mark.long
def test_the_lock_of_the_active_one_is_lost(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    """It hands over, to itself perhaps, as to anybody."""
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        for number in range(3):
            company.end_session(company.until_next(number), "lock")
            company.until_next(number + 1)


@both_engines
@pytest.mark.long
def test_the_active_one_is_deaf_for_a_moment(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    """It stays active, and is told what it missed."""
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        pid = company.until_next(0)
        told = ["gap", f"subscriber-{pid}.0", "reconnect", "?", CHANNEL]
        for number in range(3):
            company.end_session(pid, "listen")
            eventually(lambda: company.lines().count(told) == number + 1, LIMIT)  # noqa: B023
            given = company.given_to(pid)
            eventually(lambda: company.given_to(pid) > given + 20, LIMIT)  # noqa: B023
        assert company.actives() == [pid]


@pytest.mark.long
@pytest.mark.timeout(300)
@both_engines
def test_no_message_is_handled_twice_whatever_happens(
    server: Server, database: str, worker: Start, tmp_path: Path, engine: Engine
) -> None:
    with flooded(server, database, worker, tmp_path, engine=engine) as company:
        for _ in range(60):
            pid = random.choice([*company.there])
            match random.choice(["kill", "lock", "listen", "stop"]):
                case "kill":
                    company.there.pop(pid).kill()
                    company.fill_up()
                case "stop":
                    company.there[pid].stop_signal()
                    with contextlib.suppress(ValueError):
                        company.end_session(pid, "lock")
                    given = company.tail.given().total()
                    eventually(lambda: company.tail.given().total() > given + 20, LIMIT)  # noqa: B023
                    company.there[pid].cont()
                case role:
                    with contextlib.suppress(ValueError):
                        company.end_session(pid, role)
        before = company.tail.given().total()
        eventually(lambda: company.tail.given().total() > before + 50, LIMIT, what="somebody receives at last")


# one for each message


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with database_with_tables(server) as url:
        yield url


async def test_one_each_of_500_messages_while_two_processes_die(
    server: Server, tables: str, worker: Start, tmp_path: Path
) -> None:
    """No message is handled twice; of those sent after the second death, none is left out."""
    orders = Orders(
        tables, str(tmp_path / "history"), "subscriber", (CHANNEL,), tasks=1, delivery="one-each", network_timeout=60.0
    )
    company = Company(server, orders, worker)
    await asyncio.to_thread(company.fill_up)
    async with AsyncCoordinator(tables, network_timeout=60) as c:
        for number in range(1, 501):
            await c.publish(CHANNEL, f"p {number}", id=True)
            if number in (150, 300):
                await eventually_async(lambda: company.tail.given().total() > number - 100, LIMIT)  # noqa: B023
                pid = random.choice([pid for pid in company.there if company.given_to(pid)])
                company.there.pop(pid).kill()
        after = {f"p {number}" for number in range(301, 501)}
        await eventually_async(lambda: after <= {*handled(company.lines())}, LIMIT, what="all of the rest is handled")
        more = itertools.count(501)

        async def everybody() -> bool:
            await c.publish(CHANNEL, f"p {next(more)}", id=True)
            return all(map(company.given_to, company.there))

        await eventually_async(everybody, LIMIT, what="everybody has handled something")
    await asyncio.to_thread(company.end)
    assert company.twice() == {}
    by = handled(company.lines())
    assert len({names[0] for names in by.values()}) == PROCESSES
