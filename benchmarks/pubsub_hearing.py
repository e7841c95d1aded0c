"""The scenarios in which listeners compete, and their targets.

What may live here: one function per scenario that listens. What publishers do stands in `pubsub_scenarios.py`.

Theory. A listener's turn is: connect, subscribe, hear what is sent from outside, leave. What is timed is
the way from the first look that finds a message to the last message; in a fan-out, where one look may find all of them,
from the instant at which they were committed. Everything sent is counted: the table says what did not arrive.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pubsub_candidate import CHANNEL, STAMPED, Collected, Layout, stamped
from pubsub_hosting import Ready
from pubsub_peers import LISTENERS
from pubsub_scenarios import OURS, Run
from pubsub_sending import Sender, sender, stream
from report import Table, Target, number
from running import rate_table
from turns import Guest, Round, first_line, median_ratio, rotations

NOTIFIES = "psycopg async"
LISTENER = "asyncpg"
LIBPQ = "libpq"
FLOOD = 300_000
"""Messages in a flood for each second of the window."""
DELIVERIES = 1_000_000
"""Deliveries in a fan-out for each second of the window."""
SLOW = 10
"""The yardsticks' clients are slower by far; they get this part of a flood."""
FLOOD_SIZE = 100
CONTROL_CAPACITY, CONTROL_FLOOD = 16, 20_000
OFFERED = (1000, 5000)
CHANNELS = 1000
PATIENCE = 60.0
Send = Callable[[Sender], tuple[int, float | None]]
"""Sends; how many messages, and since when time is taken (see `Listener.collect`)."""
Work = Callable[[str, Guest], Round]
"""One turn of one listener; what it achieved."""


def turn(run: Run, name: str, guest: Guest, layout: Layout, send: Send) -> tuple[int, Collected]:
    """Subscribe, send, collect, leave: how many messages should have arrived, and what did."""
    ready: Ready = guest.ask("listen", layout)
    if ready.stopped:
        raise RuntimeError(f"{ready.subscriptions} subscriptions, then {ready.stopped}")
    with sender(run.site.address, LISTENERS[name].make().transport) as outside:
        sent, since = send(outside)
        expected = sent * ready.subscriptions
        arrived: Collected = guest.ask("collect", expected, PATIENCE, since, patience=PATIENCE + 60)
    guest.ask("leave")
    return expected, arrived


def compete(run: Run, title: str, names: Iterable[str], work: Work) -> list[Round]:
    """Rounds of turns; who fails is named and left out."""
    guests: dict[str, Guest] = {}
    failed: dict[str, str] = {}
    rounds: list[Round] = []
    try:
        for name in run.wanted(names):
            if (guest := run.listener(name)) is not None:
                guests[name] = guest
        for order in rotations(list(guests), run.arguments.rounds):
            rates: Round = {}
            for name in order:
                if name not in guests:
                    continue
                try:
                    rates |= work(name, guests[name])
                except RuntimeError as error:
                    failed[name] = first_line(error)
                    guests.pop(name).close()  # it may be listening
            rounds.append(rates)
    finally:
        for guest in guests.values():
            guest.close()
    run.dismiss(title, failed, mine(names))
    run.report.figures[title] = rounds
    return rounds


def mine(names: Iterable[str]) -> list[str]:
    return [name for name in names if LISTENERS[name].kind == "pgconcert"]


class Losses:
    """What was sent, lost and repeated, over all turns of a scenario."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[int]] = {}

    def count(self, name: str, expected: int, arrived: Collected) -> None:
        totals = self.by_name.setdefault(name, [0, 0, 0])
        totals[0] += expected
        totals[1] += expected - arrived.distinct
        totals[2] += arrived.received - arrived.distinct

    def columns(self) -> dict[str, Callable[[str], str]]:
        return {title: partial(self.cell, place) for place, title in enumerate(("sent", "lost", "twice"))}

    def cell(self, place: int, name: str) -> str:
        return f"{self.by_name[name][place]:,}"

    def judge(self, run: Run, title: str) -> None:
        for name in mine(self.by_name):
            sent, lost, twice = self.by_name[name]
            text = f"{title}, {name}: messages lost or delivered twice"
            run.target(Target(text, "==", 0, lost + twice, f"{sent:,} sent", must=True))


def flooded(run: Run, short: str, title: str, names: Iterable[str], layout: Layout, count: int) -> list[Round]:
    losses = Losses()

    def work(name: str, guest: Guest) -> Round:
        part = count // SLOW if LISTENERS[name].kind == "yardstick" else count

        def send(outside: Sender) -> tuple[int, float | None]:
            sent, committed = flood_all(part, outside)
            return sent, committed if layout.subscriptions > 1 else None

        expected, arrived = turn(run, name, guest, layout, send)
        losses.count(name, expected, arrived)
        return {name: arrived.rate} if arrived.received else {}

    rounds = compete(run, title, names, work)
    table = rate_table(run, title, rounds, unit="deliveries/s", against=LISTENER, more=losses.columns())
    run.report.show(table)
    losses.judge(run, short)
    return rounds


def receive(run: Run) -> None:
    control(run)
    count = int(FLOOD * run.arguments.window)
    title = f"receive, one subscription, a flood of {count:,} messages of {FLOOD_SIZE} bytes"
    rounds = flooded(run, "receive", title, LISTENERS, Layout(capacity=2 * count), count)
    figure = median_ratio(rounds, OURS, NOTIFIES) or None
    run.target(Target("receive, times psycopg's notifies()", ">=", 1, figure, NOTIFIES))


def control(run: Run) -> None:
    """The count of losses must see what it is there to see: a subscription that is too small for a flood loses."""
    guest = run.listener(OURS) if run.wanted([OURS]) else None
    if guest is None:
        return
    try:
        sent, arrived = turn(run, OURS, guest, Layout(capacity=CONTROL_CAPACITY), partial(flood_all, CONTROL_FLOOD))
    except RuntimeError as error:
        run.dismiss("negative control", {OURS: first_line(error)}, [OURS])
        return
    finally:
        guest.close()
    lost = sent - arrived.distinct
    run.report.note(f"negative control, room for {CONTROL_CAPACITY} messages: {lost:,} lost of {sent:,}")
    run.broken |= lost == 0


def flood_all(count: int, outside: Sender) -> tuple[int, float | None]:
    return count, outside.flood(CHANNEL, count, FLOOD_SIZE)


def fanout(run: Run) -> None:
    for subscribers in (100, 1000):
        count = max(SLOW, int(DELIVERIES * run.arguments.window) // subscribers)
        names = [name for name in LISTENERS if name not in (NOTIFIES, LIBPQ, "asyncpg-listen", "imqueue")]
        title = f"fan-out, {subscribers:,} subscriptions of one channel, {count:,} messages of {FLOOD_SIZE} bytes"
        layout = Layout(subscriptions=subscribers, capacity=2 * count)
        flooded(run, f"fan-out to {subscribers:,}", title, names, layout, count)


def latency(run: Run) -> None:
    for rate in OFFERED:
        offered(run, rate)


def offered(run: Run, rate: int) -> None:
    """Delivery at a rate that everybody should keep up with: the times, and ratios of each window's percentiles."""
    size = max(STAMPED, run.arguments.size)
    seconds = max(run.arguments.window, 0.2)
    layout = Layout(capacity=int(2 * rate * seconds) + 1024, timed=True)
    losses = Losses()
    every: dict[str, list[int]] = {}

    def send(outside: Sender) -> tuple[int, float | None]:
        return stream(outside, CHANNEL, rate, seconds, size), None

    def work(name: str, guest: Guest) -> Round:
        expected, arrived = turn(run, name, guest, layout, send)
        losses.count(name, expected, arrived)
        if not arrived.latencies:
            return {}
        every.setdefault(name, []).extend(arrived.latencies)
        times = sorted(arrived.latencies)
        return {name: at(times, 0.5), tail(name): at(times, 0.99)}

    title = f"delivery latency, {rate:,} messages/s offered"
    rounds = compete(run, title, [name for name in LISTENERS if name != "pgconcert (uvloop)"], work)
    run.report.figures[f"{title}, ns"] = every
    rows = []
    for name in sorted(every, key=lambda name: statistics.median(every[name])):
        times = sorted(every[name])
        shown = [at(times, 0.5), at(times, 0.99), at(times, 0.999), times[-1]]
        pair = (median_ratio(rounds, name, LISTENER), median_ratio(rounds, tail(name), tail(LISTENER)))
        cells = [f"{ns / 1e6:.2f}" for ns in shown] + [number(value) if value else "" for value in pair]
        rows.append((name, *(losses.cell(place, name) for place in range(3)), *cells))
    columns = ("candidate", "sent", "lost", "twice", "p50 ms", "p99", "p99.9", "max", "p50 x asyncpg", "p99 x")
    run.report.show(Table(title, columns, tuple(rows)))
    losses.judge(run, f"latency at {rate:,}/s")
    for text, bound, name, other in (("p50", 1.5, OURS, LISTENER), ("p99", 2, tail(OURS), tail(LISTENER))):
        figure = median_ratio(rounds, name, other) or None
        target = f"delivery {text} at {rate:,} messages/s, times a raw asyncpg listener"
        run.target(Target(target, "<=", bound, figure, LISTENER))


def tail(name: str) -> str:
    """Under which name the 99th percentile stands in a round."""
    return f"{name}, p99"


def at(times: Sequence[int], share: float) -> int:
    return times[int((len(times) - 1) * share)]


def channels(run: Run) -> None:
    """Many subscriptions, each on a channel of its own: sessions of the server, and one message to each."""
    wanted = 100 if run.arguments.smoke else CHANNELS
    rows = []
    names = [name for name in LISTENERS if name not in (LIBPQ, "pgconcert (uvloop)", "asyncpg, queues")]
    for name in run.wanted(names):
        if (guest := run.listener(name)) is None:
            continue
        try:
            ready, sessions, listening, arrived = subscribe_all(run, name, guest, wanted)
        except RuntimeError as error:
            run.dismiss("channels", {name: first_line(error)}, mine(names))
            continue
        finally:
            guest.close()
        lost = None if ready.stopped else ready.subscriptions - arrived.distinct
        rows.append(
            (
                name,
                f"{ready.subscriptions:,}",
                f"{ready.seconds:.2f}",
                str(sessions) if LISTENERS[name].make().transport == "postgres" else "",
                "" if lost is None else f"{lost:,}",
                ready.stopped or "",
            )
        )
        if name == OURS:
            run.target(Target(f"{wanted:,} subscriptions, LISTEN sessions", "==", 1, listening, f"{sessions} in all"))
            text = f"{wanted:,} subscriptions, messages not heard"
            run.target(Target(text, "==", 0, wanted - arrived.distinct, "one to each", must=True))
    columns = ("candidate", "subscriptions", "seconds", "sessions", "lost", "stopped by")
    run.report.show(Table(f"{wanted:,} subscriptions on {wanted:,} channels", columns, tuple(rows)))


def subscribe_all(run: Run, name: str, guest: Guest, wanted: int) -> tuple[Ready, int, int, Collected]:
    """What the listener says, its sessions, those of them that pgconcert calls its listen link, and what arrived."""
    layout = Layout(subscriptions=wanted, apart=True)
    others = run.site.connections()
    ready: Ready = guest.ask("listen", layout, patience=120)
    sessions = run.site.connections() - others
    listening = run.site.sessions_named("%pgconcert-listen")
    messages = [(layout.channel(number), stamped(number, 0, STAMPED)) for number in range(ready.subscriptions)]
    arrived = Collected(0, 0, 0, 0.0)
    if ready.stopped is None:  # else there is no connection left to send with
        with sender(run.site.address, LISTENERS[name].make().transport) as outside:
            outside.send(messages)
            arrived = guest.ask("collect", len(messages), PATIENCE, None, patience=PATIENCE + 60)
    guest.ask("leave")
    return ready, sessions, listening, arrived
