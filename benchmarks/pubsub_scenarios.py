"""The scenarios in which publishers and callers compete, and their targets.

What may live here: the run of this benchmark, and one function per scenario that publishes or asks. What listeners do
stands in `pubsub_hearing.py`, how turns are taken in `turns.py`, who takes part in `pubsub_peers.py`.

Theory. Rates are measured while nobody listens, which is kindest to whoever makes a transaction of every message: a
server with listeners wakes them at every commit. Afterwards everybody has one more window while a witness listens, in a
process of its own and over bare libpq: what was acknowledged and did not arrive is lost, however fast it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from pubsub_candidate import CHANNEL, Collected, Layout, Transport
from pubsub_hosting import Calls, Ready, host_caller, host_listener, host_publisher
from pubsub_peers import CALLERS, LISTENERS, PUBLISHERS
from report import Table, Target, number
from running import BaseRun, rate_table
from turns import THREADS, YARDSTICK, Guest, Round, Window, first_line, median_ratio, rotations, take_turns

OURS = "pgconcert"
BLOCKING = "pgconcert.blocking"
RAW = "psycopg"
ALONE = "psycopg, one thread"
POOL = "asyncpg pool"
EIGHT = f"{YARDSTICK} -c 8"
ONE = f"{YARDSTICK} -c 1"
NOTIFY = f"select pg_notify('{CHANNEL}', :payload);\n"
THREADED = (BLOCKING, RAW)
FIELD = [name for name in PUBLISHERS if name not in THREADED]
GREEDY = ("litestar", "litestar, psycopg")
"""They open a connection for every message."""
WITNESS: dict[Transport, str] = {"postgres": "libpq", "redis": "redis", "nats": "nats"}
SAME_TASKS, SAME_EACH = 100, 100
SPARE_CONNECTIONS = 40
MANY = 1 << 22


@dataclass
class Run(BaseRun):
    """What all scenarios of a run share, and the witnesses."""

    witnesses: dict[Transport, Guest] = field(default_factory=dict)

    def publisher(self, name: str, tasks: int, label: str | None = None) -> Guest | None:
        if name in GREEDY and tasks > (room := self.connections_left()):
            text = f"{name}: left out, {tasks} connections at a time are more than the {room} that the server can spare"
            self.report.note(text)
            return None
        return self.welcome(name, host_publisher, PUBLISHERS[name], self.site.address, tasks, label=label)

    def listener(self, name: str) -> Guest | None:
        return self.welcome(name, host_listener, LISTENERS[name], self.site.address)

    def connections_left(self) -> int:
        return int(self.site.ask("select current_setting('max_connections')::int")) - SPARE_CONNECTIONS

    def yardsticks(self) -> dict[str, Callable[[], float]]:
        payload = "x" * self.arguments.size
        seconds = self.arguments.window
        return {
            name: partial(self.site.pgbench, NOTIFY, seconds, clients, payload=payload)
            for name, clients in ((ONE, 1), (EIGHT, 8))
        }

    def witness(self, transport: Transport) -> Guest:
        """Whoever counts what arrives over a transport. Its client is there, if the publisher's is."""
        if transport not in self.witnesses:
            spec = LISTENERS[WITNESS[transport]]
            self.witnesses[transport] = Guest(f"witness of {transport}", host_listener, spec, self.site.address)
        return self.witnesses[transport]

    def close(self) -> None:
        for guest in self.witnesses.values():
            guest.close()


@dataclass(frozen=True)
class Heard:
    """One window of a publisher while a witness listened."""

    acknowledged: int
    arrived: Collected
    rate: float
    same: bool

    @property
    def lost(self) -> int:
        return self.acknowledged - (self.arrived.received if self.same else self.arrived.distinct)

    @property
    def twice(self) -> int:
        return 0 if self.same else self.arrived.received - self.arrived.distinct


def publish(run: Run, names: Iterable[str], tasks: int, *, same: bool = False) -> list[Round]:
    """One competition, and after it everybody once more with a witness."""
    size = run.arguments.size
    short = f"{tasks:,} task{'s' if tasks > 1 else ''}"
    title = f"{short}, {size:,}-byte payloads, " + ("all the same" if same else "every one different")
    guests: list[Guest] = []
    heard: dict[str, Heard] = {}
    try:
        guests += [guest for name in run.wanted(names) if (guest := run.publisher(name, tasks)) is not None]
        rounds, failed = take_turns(guests, run.yardsticks(), run.arguments.rounds, run.arguments.window, size, same)
        for guest in guests:
            if guest.name not in failed:
                try:
                    heard[guest.name] = audit(run, guest, ("window", min(run.arguments.window, 0.5), size, same))
                except RuntimeError as error:
                    failed[guest.name] = first_line(error)
    finally:
        for guest in guests:
            guest.close()
    run.dismiss(title, failed, ours(names))
    run.report.figures[title] = {
        "rates": rounds,
        "heard": {name: [h.acknowledged, h.arrived.received, h.arrived.distinct] for name, h in heard.items()},
    }
    columns: dict[str, Callable[[str], str]] = {
        "while heard": lambda name: number(heard[name].rate) if name in heard else "",
        "acknowledged": lambda name: f"{heard[name].acknowledged:,}" if name in heard else "",
        "lost": lambda name: f"{heard[name].lost:,}" if name in heard else "",
        "twice": lambda name: f"{heard[name].twice:,}" if name in heard else "",
    }
    run.report.show(rate_table(run, title, rounds, unit="messages/s", against=EIGHT, more=columns))
    for name in ours(heard):
        found = heard[name].lost + heard[name].twice
        text = f"{short}{', the same text' if same else ''}, {name}: messages lost or delivered twice"
        run.target(Target(text, "==", 0, found, f"{heard[name].acknowledged:,} acknowledged", must=True))
    return rounds


def ours(names: Iterable[str]) -> list[str]:
    return [name for name in names if PUBLISHERS[name].kind == "pgconcert"]


def audit(run: Run, guest: Guest, work: tuple[str, float, int, bool]) -> Heard:
    """Let one publisher work while a witness listens."""
    witness = run.witness(PUBLISHERS[guest.name].make().transport)
    ready: Ready = witness.ask("listen", Layout(capacity=MANY))
    if ready.stopped:
        raise RuntimeError(f"the witness cannot listen: {ready.stopped}")
    try:
        done: Window = guest.ask(*work)
        arrived: Collected = witness.ask("collect", done.cycles, 30.0, None)
    finally:
        witness.ask("leave")
    return Heard(done.cycles, arrived, done.rate, work[-1])


def promise(run: Run, rounds: list[Round], text: str, other: str, bound: float) -> None:
    run.target(Target(text, ">=", bound, median_ratio(rounds, OURS, other) or None, other))


def one(run: Run) -> None:
    rounds = publish(run, FIELD, 1)
    promise(run, rounds, "publish, one task, of raw asyncpg", "asyncpg", 0.8)


def ten(run: Run) -> None:
    publish(run, FIELD, 10)


def hundred(run: Run) -> None:
    rounds = publish(run, FIELD, 100)
    promise(run, rounds, f"publish, 100 tasks, times {EIGHT}", EIGHT, 5)
    promise(run, rounds, "publish, 100 tasks, times asyncpg with a pool of 10", POOL, 12)


def thousand(run: Run) -> None:
    publish(run, FIELD, 1000)


def same(run: Run) -> None:
    """Equal messages are not one message: the rate, and 10,000 of them counted."""
    publish(run, FIELD, SAME_TASKS, same=True)
    wanted = SAME_TASKS * SAME_EACH
    rows = []
    for name in run.wanted(FIELD):
        guest = run.publisher(name, SAME_TASKS)
        if guest is None:
            continue
        try:
            heard = audit(run, guest, ("messages", wanted, run.arguments.size, True))
        except RuntimeError as error:
            run.dismiss("the same text", {name: first_line(error)}, ours(FIELD))
            continue
        finally:
            guest.close()
        rows.append((name, f"{heard.acknowledged:,}", f"{heard.arrived.received:,}"))
        if name == OURS:
            text = f"{SAME_TASKS} tasks publish the same text {SAME_EACH} times: deliveries"
            run.target(Target(text, "==", wanted, heard.arrived.received, "a listener over libpq", must=True))
    title = f"{SAME_TASKS} tasks publish the same text {SAME_EACH} times"
    run.report.show(Table(title, ("candidate", "acknowledged", "delivered"), tuple(rows)))


def blocking(run: Run) -> None:
    """Threads: the blocking twin against a connection for every thread, and against one thread alone."""
    for threads in (1, THREADS):
        compete_in_threads(run, threads)


def compete_in_threads(run: Run, threads: int) -> None:
    title = f"{threads} thread{'s' if threads > 1 else ''}, {run.arguments.size:,}-byte payloads"
    field = [(name, threads, name) for name in run.wanted(THREADED)]
    if threads > 1:
        field += [(RAW, 1, ALONE) for _ in run.wanted([RAW])]
    guests: list[Guest] = []
    try:
        guests += [guest for entry in field if (guest := run.publisher(*entry)) is not None]
        rounds, failed = take_turns(
            guests, run.yardsticks(), run.arguments.rounds, run.arguments.window, run.arguments.size, False
        )
    finally:
        for guest in guests:
            guest.close()
    run.dismiss(title, failed, [BLOCKING])
    run.broken |= BLOCKING in run.missing
    run.report.figures[title] = rounds
    run.report.show(rate_table(run, title, rounds, unit="messages/s", against=RAW, ours=BLOCKING))


def request(run: Run) -> None:
    """A question and its answer, one after the other, between two processes."""
    pairs: dict[str, tuple[Guest, Guest]] = {}
    failed: dict[str, str] = {}
    rounds: list[Round] = []
    times: dict[str, list[int]] = {}
    try:
        for name in run.wanted(CALLERS):
            guests = [run.welcome(name, host_caller, CALLERS[name], run.site.address) for _ in range(2)]
            if guests[0] is not None and guests[1] is not None:
                pairs[name] = guests[0], guests[1]
        for order in rotations(list(pairs), run.arguments.rounds):
            rates: Round = {}
            for name in order:
                if name in failed:
                    continue
                try:
                    done = converse(*pairs[name], run.arguments.window, run.arguments.size)
                    if done.wrong:
                        raise RuntimeError(f"{done.wrong} answers of {done.cycles} were to another question")
                except RuntimeError as error:
                    failed[name] = first_line(error)
                    continue
                rates[name] = done.rate
                times.setdefault(name, []).extend(done.times)
            rounds.append(rates)
    finally:
        for pair in pairs.values():
            for guest in pair:
                guest.close()
    title = "request and reply, one after the other, between two processes"
    run.dismiss(title, failed, [OURS])
    run.report.figures[title] = rounds
    columns: dict[str, Callable[[str], str]] = {
        "p50 ms": lambda name: f"{statistics.median(times[name]) / 1e6:.2f}",
        "p99 ms": lambda name: f"{sorted(times[name])[int(len(times[name]) * 0.99)] / 1e6:.2f}",
    }
    run.report.show(rate_table(run, title, rounds, unit="round trips/s", against="asyncpg", more=columns))


def converse(answerer: Guest, caller: Guest, seconds: float, size: int) -> Calls:
    answerer.ask("answer")
    caller.ask("prepare")
    done: Calls = caller.ask("window", seconds, size, patience=seconds + 60)
    caller.ask("leave")
    answerer.ask("leave")
    return done
