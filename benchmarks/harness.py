"""Hosting a candidate of the lock benchmark: what its process answers to, and finding out how it locks.

What may live here: the verbs of a candidate's process, keys, `explore`. How turns are taken stands in `turns.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from candidate import Address, AsyncCandidate, BlockingCandidate, Candidate, Key, Spec, loop_factory
from turns import THREADS, Guest, confessing, first_line, window, window_blocking

KeyKind = Literal["text", "int"]
HELD_PATIENCE = 5.0
"""Seconds without progress after which a candidate is said to hold no further lock."""


@dataclass(frozen=True)
class Exclusion:
    """What was found out about a candidate: do two objects of one name exclude, how many bits of a name count."""

    excludes: bool
    key_bits: int | None


def key_maker(kind: KeyKind, first: int) -> Callable[[int], Key]:
    """Fresh keys: the number itself, or a short name that contains it."""
    if kind == "int":
        return lambda number: first + number
    return lambda number: f"lock:{first + number}"


def host(spec: Spec[Candidate], address: Address, tasks: int, pipe: Any) -> None:
    """The whole life of a candidate's process."""
    with confessing(pipe, spec.pip):
        candidate = spec.make()
        if isinstance(candidate, BlockingCandidate):
            host_blocking(candidate, address, tasks, pipe)
        else:
            with asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner:
                runner.run(host_async(candidate, address, tasks, pipe))


async def host_async(candidate: AsyncCandidate, address: Address, tasks: int, pipe: Any) -> None:
    await candidate.open(address, tasks)
    pipe.send(("ok", None))
    held: list[Any] = []
    used = itertools.count()
    try:
        while True:
            verb, *arguments = await asyncio.to_thread(pipe.recv)
            match verb:
                case "window":
                    seconds, kind = arguments
                    value: Any = await window(candidate, tasks, key_maker(kind, 0), used, seconds, None)
                case "cycles":
                    cycles, kind = arguments
                    before = candidate.statements()
                    await window(candidate, tasks, key_maker(kind, 0), used, None, cycles)
                    after = candidate.statements()
                    value = None if before is None or after is None else after - before
                case "hold":
                    value = await hold(candidate, arguments[0], held)
                case "take":
                    token = await candidate.acquire(arguments[0])
                    held.append(token)
                    value = token is not None
                case "try":
                    token = await candidate.try_acquire(arguments[0])
                    if token is not None:
                        held.append(token)
                    value = token is not None
                case "drop":
                    while held:
                        await candidate.release(held.pop())
                    value = None
                case _:
                    break
            pipe.send(("ok", value))
    finally:
        await candidate.close()
    pipe.send(("ok", None))


async def hold(candidate: AsyncCandidate, wanted: int, held: list[Any]) -> tuple[int, str | None]:
    for number in range(wanted):
        try:
            async with asyncio.timeout(HELD_PATIENCE):
                held.append(await candidate.acquire(f"held:{number}"))
        except Exception as error:
            return len(held), first_line(error)
    return len(held), None


def host_blocking(candidate: BlockingCandidate, address: Address, tasks: int, pipe: Any) -> None:
    candidate.open(address, tasks)
    pipe.send(("ok", None))
    width = min(tasks, THREADS)
    held: list[Any] = []
    used = itertools.count()
    # One task runs on the main thread: a pool would only add its own hand-over to the first and last cycle.
    pool = ThreadPoolExecutor(width) if width > 1 else None
    try:
        while True:
            verb, *arguments = pipe.recv()
            match verb:
                case "window":
                    seconds, kind = arguments
                    value: Any = window_blocking(candidate, pool, width, key_maker(kind, 0), used, seconds, None)
                case "cycles":
                    cycles, kind = arguments
                    window_blocking(candidate, pool, width, key_maker(kind, 0), used, None, cycles)
                    value = None
                case "hold":
                    value = hold_blocking(candidate, arguments[0], held)
                case "take" | "try":
                    token = candidate.acquire(*arguments) if verb == "take" else candidate.try_acquire(*arguments)
                    if token is not None:
                        held.append(token)
                    value = token is not None
                case "drop":
                    while held:
                        candidate.release(held.pop())
                    value = None
                case _:
                    break
            pipe.send(("ok", value))
    finally:
        if pool is not None:
            pool.shutdown()
        candidate.close()
    pipe.send(("ok", None))


def hold_blocking(candidate: BlockingCandidate, wanted: int, held: list[Any]) -> tuple[int, str | None]:
    for number in range(wanted):
        try:
            held.append(candidate.acquire(f"held:{number}"))
        except Exception as error:
            return len(held), first_line(error)
    return len(held), None


def explore(guest: Guest, advisory_keys: Callable[[], list[int]]) -> Exclusion:
    """Find out whether two lock objects of one name exclude each other, and how many bits reach the server."""
    guest.ask("take", "same name")
    excludes = not guest.ask("try", "same name")
    guest.ask("drop")
    seen: list[int] = []
    for number in range(48):
        guest.ask("take", f"bits:{number}")
        seen += advisory_keys()
        guest.ask("drop")
    varying = 0
    for key in seen:
        varying |= (key ^ seen[0]) & (2**64 - 1)
    return Exclusion(excludes, varying.bit_count() if seen else None)
