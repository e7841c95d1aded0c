"""The life of a candidate's process, one for each trade, and the verbs that it answers to.

What may live here: hosts, and nothing that decides when a verb is asked.

Theory. A publisher stays connected between its turns. A listener and a caller are opened when their turn begins and are
closed when it ends, because the server wakes every session that listens, to whatever channel, for every notification of
its database: an idle listener would slow down all others.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from candidate import Address, Spec, loop_factory
from pubsub_brokers import ImqueuePublisher
from pubsub_candidate import BlockingPublisher, Caller, Layout, Listener, Publisher, payload_maker
from turns import THREADS, Window, confessing, first_line, window, window_blocking


@dataclass(frozen=True)
class Ready:
    """What a listener says when it listens: subscriptions made, seconds that took, and what stopped it early."""

    subscriptions: int
    seconds: float
    stopped: str | None


@dataclass(frozen=True)
class Calls:
    """What a caller did in a window; the times of the calls in nanoseconds. `wrong` are answers to another question."""

    cycles: int
    seconds: float
    times: list[int]
    wrong: int

    @property
    def rate(self) -> float:
        return self.cycles / self.seconds


def host_publisher(spec: Spec[Publisher | BlockingPublisher], address: Address, tasks: int, pipe: Any) -> None:
    """Answers to "window" (seconds, size, same) and "messages" (count, size, same), both with a `Window`."""
    with confessing(pipe, spec.pip):
        candidate = spec.make()
        if isinstance(candidate, BlockingPublisher):
            publish_blocking(candidate, address, tasks, pipe)
        else:
            with asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner:
                runner.run(publish(candidate, address, tasks, pipe))


async def publish(candidate: Publisher, address: Address, tasks: int, pipe: Any) -> None:
    await candidate.open(address, tasks)
    pipe.send(("ok", None))
    used = itertools.count()
    try:
        while (command := await asyncio.to_thread(pipe.recv))[0] != "stop":
            verb, length, size, same = command
            bounds = (length, None) if verb == "window" else (None, length)
            if isinstance(candidate, ImqueuePublisher):
                done: Window = await candidate.window(size, same, *bounds)
            else:
                done = await window(candidate, tasks, payload_maker(size, same), used, *bounds)
            pipe.send(("ok", done))
    finally:
        await candidate.close()
    pipe.send(("ok", None))


def publish_blocking(candidate: BlockingPublisher, address: Address, tasks: int, pipe: Any) -> None:
    candidate.open(address, tasks)
    pipe.send(("ok", None))
    width = min(tasks, THREADS)
    used = itertools.count()
    pool = ThreadPoolExecutor(width) if width > 1 else None
    try:
        while (command := pipe.recv())[0] != "stop":
            verb, length, size, same = command
            bounds = (length, None) if verb == "window" else (None, length)
            pipe.send(("ok", window_blocking(candidate, pool, width, payload_maker(size, same), used, *bounds)))
    finally:
        if pool is not None:
            pool.shutdown()
        candidate.close()
    pipe.send(("ok", None))


def host_listener(spec: Spec[Listener], address: Address, pipe: Any) -> None:
    """Answers to "listen" (a `Layout`) with `Ready`, to "collect" (see `Listener.collect`) and to "leave"."""
    with confessing(pipe, spec.pip), asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner:
        runner.run(hear(spec.make, address, pipe))


async def hear(make: Callable[[], Listener], address: Address, pipe: Any) -> None:
    candidate = make()
    await candidate.open(address)  # once at the beginning: whoever is not installed is found out now
    await candidate.close()
    pipe.send(("ok", None))
    while (command := await asyncio.to_thread(pipe.recv))[0] != "stop":
        verb, *arguments = command
        match verb:
            case "listen":
                candidate = make()
                pipe.send(("ok", await listen(candidate, address, *arguments)))
            case "collect":
                pipe.send(("ok", await candidate.collect(*arguments)))
            case _:
                await candidate.close()
                pipe.send(("ok", None))
    pipe.send(("ok", None))


async def listen(candidate: Listener, address: Address, layout: Layout) -> Ready:
    await candidate.open(address)
    begun = time.perf_counter()
    count = await candidate.listen(layout)
    stopped = None if candidate.stopped is None else first_line(candidate.stopped)
    return Ready(count, time.perf_counter() - begun, stopped)


def host_caller(spec: Spec[Caller], address: Address, pipe: Any) -> None:
    """Answers to "answer" and "prepare", to "window" (seconds, size) with `Calls`, and to "leave"."""
    with confessing(pipe, spec.pip), asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner:
        runner.run(converse(spec.make, address, pipe))


async def converse(make: Callable[[], Caller], address: Address, pipe: Any) -> None:
    candidate = make()
    await candidate.open(address)
    await candidate.close()
    pipe.send(("ok", None))
    while (command := await asyncio.to_thread(pipe.recv))[0] != "stop":
        verb, *arguments = command
        value: Calls | None = None
        match verb:
            case "answer":
                candidate = make()
                await candidate.open(address)
                await candidate.answer()
            case "prepare":
                candidate = make()
                await candidate.open(address)
                await candidate.prepare()
            case "window":
                value = await call(candidate, *arguments)
            case _:
                await candidate.close()
        pipe.send(("ok", value))
    pipe.send(("ok", None))


async def call(candidate: Caller, seconds: float, size: int) -> Calls:
    clock, make = time.perf_counter_ns, payload_maker(size, False)
    times: list[int] = []
    wrong = 0
    await candidate.call(make(0))  # makes what is made at the first call
    begun = asked = clock()
    deadline = begun + int(seconds * 1e9)
    while asked < deadline:
        question = make(len(times) + 1)
        reply = await candidate.call(question)
        now = clock()
        wrong += question != (reply if isinstance(reply, str) else reply.decode())
        times.append(now - asked)
        asked = now
    return Calls(len(times), (asked - begun) / 1e9, times, wrong)
