"""Who runs publishing and subscribing processes, and breaks their connections at random.

Theory: publishers and subscribers reach the server through a proxy each, so that a direction can be cut at any byte;
sessions of each role are ended from the server's side. What was done is counted, and what the processes did is written
down by themselves (`message_history.py`). At the end the publishers stop, and the last word is said again and again
until every subscriber has heard it: it stands behind everything that was published, because they are done by then.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import psycopg

from pgconcert.testing import FaultProxy, eventually, sessions
from tests.faults.message_history import Tail, Verdict, judge
from tests.faults.message_worker import LAST, PROGRAM, Orders
from tests.processes import Worker
from tests.servers import Server

__all__ = ["Cast", "cast"]

END_LIMIT = 60.0
START_LIMIT = 30.0
NOTHING: Final[Mapping[str, Any]] = {}


@dataclass
class Cast:
    """The processes of one run."""

    server: Server
    url: str
    path: Path
    start: Callable[..., Worker]
    proxies: dict[str, FaultProxy]
    channels: tuple[str, ...]
    publishers: list[Worker] = field(default_factory=list)
    subscribers: list[Worker] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.tail = Tail(self.path)

    def orders(self, role: Literal["publisher", "subscriber"]) -> Orders:
        """Those of a publisher or subscriber, by its proxy."""
        url = self.proxies[role].url(self.server.over_tcp(self.url))
        return Orders(url, str(self.path), role, self.channels)

    def add(self, orders: Orders) -> Worker:
        """Start a process, and wait until it is at work."""
        worker = self.start(PROGRAM, orders.text())
        (self.publishers if orders.role == "publisher" else self.subscribers).append(worker)
        worker.expect("ready", START_LIMIT)
        return worker

    def received(self) -> int:
        """How many messages all subscribers together have got so far."""
        return self.tail.given().total()

    def listening(self) -> list[int]:
        """The server processes of the sessions that listen for subscribers."""
        return [
            session.pid
            for session in sessions(self.url)
            if "subscriber-" in session.application_name and session.application_name.endswith("pgconcert-listen")
        ]

    def disturb(self, times: int) -> None:
        """Break that many connections, or several with one blow, at random."""
        while self.faults.total() < times:
            time.sleep(random.uniform(0.05, 0.3))
            random.choice([self.terminate, self.terminate, self.cut, self.cut_at_a_byte])()

    def terminate(self, role: str | None = None) -> None:
        """End a session, of one role or of any."""
        role = role or random.choice(["listen", "listen", "publish", "payload"])
        there = [one.pid for one in sessions(self.url) if one.application_name.endswith(f"pgconcert-{role}")]
        if there:
            self.faults[role] += self.server.kill_backend(random.choice(there))

    def cut(self) -> None:
        """End all connections of one side."""
        name, proxy = random.choice([*self.proxies.items()])
        if proxy.open_connections:
            proxy.cut(rst=random.random() < 0.5)
            self.faults[f"cut {name}"] += 1

    def cut_at_a_byte(self) -> None:
        """End them somewhere in the middle of what is said."""
        name, proxy = random.choice([*self.proxies.items()])
        if proxy.open_connections:
            proxy.cut_after(random.randint(1, 30_000), random.choice(["to_server", "to_client"]))
            self.faults[f"cut {name} at a byte"] += 1

    def finish(self) -> Verdict:
        """Let the publishers stop and the subscribers hear everything; what the history says."""
        for publisher in self.publishers:
            publisher.send("end")
        for publisher in self.publishers:
            publisher.expect("done", END_LIMIT)
            assert publisher.wait() == 0
        with psycopg.connect(self.url, autocommit=True) as connection:

            def all_have_finished() -> bool:
                for channel in self.channels:
                    connection.execute("select pg_notify(%s, %s)", (channel, LAST))
                return all(subscriber.returncode is not None for subscriber in self.subscribers)

            eventually(all_have_finished, END_LIMIT, what="every subscriber has heard the last word")
        for subscriber in self.subscribers:
            subscriber.expect("done", END_LIMIT)
            assert subscriber.wait() == 0
        return judge(self.tail.lines())


@contextlib.contextmanager
def cast(
    server: Server,
    url: str,
    start: Callable[..., Worker],
    path: Path,
    *,
    subscriber: Mapping[str, Any] = NOTHING,
    publisher: Mapping[str, Any] = NOTHING,
    count: int = 2,
    channels: tuple[str, ...] = ("even", "odd"),
) -> Iterator[Cast]:
    """`count` subscribing and as many publishing processes, at work, with orders that differ from the usual so."""
    with FaultProxy.to(server.over_tcp(url)) as one, FaultProxy.to(server.over_tcp(url)) as two:
        running = Cast(server, url, path, start, {"publisher": one, "subscriber": two}, channels)
        for _ in range(count):
            running.add(replace(running.orders("subscriber"), **subscriber))
        for _ in range(count):
            running.add(replace(running.orders("publisher"), **publisher))
        yield running
