"""Which task of this process is inside what and waits for what; and the cycle that another wait would close.

Theory. An edge goes from a waiting task to every task that is inside the scope (``async with``) of what it waits for.
Only scopes count: of those it is known which task will give them back, and that it cannot before it goes on. A wait is
*hopeless* if it can only end after the wait itself has ended:

* for a lock, if one of its holders is the waiter, or waits hopelessly itself;
* for a permit, if all of them are held inside scopes, and every holder is the waiter or waits hopelessly.

A shared lock that is held shared is only waited for while a writer waits for it too. A cycle comes into being with the
last wait that closes it, so each wait is looked at once, before it begins; and only if its task is inside something,
because no other can close a cycle. Waits with a time limit count as well: such a cycle would end, by the failure
of one that the others cannot see coming. Holds that were acquired without ``async with``, other coordinators and other
processes are out of sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .backend import Claim
from .errors import WouldDeadlock
from .keys import LockKey

__all__ = ["Actor", "Scopes"]

Actor = Any
"""Who is inside and who waits: with asyncio a task (the word used here), in the blocking twin a thread."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """A task that waits. The ``serial`` tells who came first."""

    task: Actor
    key: LockKey
    shared: bool
    serial: int


class Scopes:
    """The scopes and waits of one coordinator."""

    __slots__ = ("_inside", "_name", "_noun", "_serial", "_waits", "held")

    def __init__(self, noun: str, name: Callable[[Actor], str]) -> None:
        """``noun`` and ``name`` tell in messages who somebody is: *task*, and a function from a task to its name."""
        self._noun = noun
        self._name = name
        self.held: dict[Actor, list[Claim]] = {}
        """What each task is inside of."""
        self._inside: dict[int, dict[Claim, Actor]] = {}
        self._waits: dict[Actor, _Wait] = {}
        self._serial = 0

    def enter(self, claim: Claim, task: Actor) -> None:
        """A task enters the scope of a hold."""
        mine = self.held.get(task)
        if mine is None:
            self.held[task] = [claim]
        else:
            mine.append(claim)
        value = claim.key.value
        holders = self._inside.get(value)
        if holders is None:
            self._inside[value] = {claim: task}
        else:
            holders[claim] = task

    def leave(self, claim: Claim, task: Actor) -> None:
        """It leaves the scope. A lost hold perhaps, while another task has the key."""
        mine = self.held[task]
        mine.remove(claim)
        if not mine:
            del self.held[task]
        holders = self._inside[claim.key.value]
        del holders[claim]
        if not holders:
            del self._inside[claim.key.value]

    def concerns(self, task: Actor, key: LockKey) -> bool:
        """Whether a wait of this task for this key can be part of a cycle: it is inside something, or others are inside
        this and it may be the writer that keeps a reader outside."""
        return task in self.held or key.value in self._inside

    def begin_wait(self, task: Actor, key: LockKey, shared: bool) -> None:
        """A task is about to wait. Raises ``WouldDeadlock`` if that would never end."""
        self._serial += 1
        wait = _Wait(task, key, shared, self._serial)
        path = self._circle(wait) if task in self.held else None
        if path is not None:
            raise WouldDeadlock(self._in_words(wait, path))
        self._waits[task] = wait

    def end_wait(self, task: Actor) -> None:
        """The wait has ended, however."""
        self._waits.pop(task, None)

    def _holders(self, key: LockKey) -> list[tuple[Claim, Actor]]:
        found = self._inside.get(key.value)
        if not found:
            return []
        return [(claim, task) for claim, task in found.items() if not claim.over and claim.reason is None]

    def _circle(self, wait: _Wait) -> list[tuple[Actor, LockKey]] | None:
        """The steps from whoever holds what is waited for to whoever waits first; None if there is hope.

        Everybody that the wait depends on is taken to have none, and hope is then spread from those who do not wait.
        Who is left waits for others who are left: nothing but this circle could end its wait.
        """
        known: dict[Actor, _Wait | None] = {wait.task: wait}
        in_the_way: dict[Actor, list[Actor]] = {}
        fresh: list[Actor] = []
        todo = [wait]
        while todo:
            looked_at = todo.pop()
            holders = in_the_way[looked_at.task] = self._in_the_way(looked_at)
            if not holders:
                fresh.append(looked_at.task)
            for holder in holders:
                if holder not in known:
                    further = known[holder] = self._waits.get(holder)
                    if further is None:
                        fresh.append(holder)
                    else:
                        todo.append(further)
        behind: dict[Actor, list[Actor]] = {}
        for task, holders in in_the_way.items():
            for holder in holders:
                behind.setdefault(holder, []).append(task)
        stuck = {task: len(holders) for task, holders in in_the_way.items()}
        hope = set(fresh)
        while fresh:
            for task in behind.get(fresh.pop(), ()):
                known_wait = known[task]
                assert known_wait is not None
                # a lock needs all of its holders to go, a permit any of them
                stuck[task] = 0 if known_wait.key.permits else stuck[task] - 1
                if not stuck[task] and task not in hope:
                    hope.add(task)
                    fresh.append(task)
        if wait.task in hope:
            return None
        steps: list[tuple[Actor, LockKey]] = []
        met: set[Actor] = set()
        waits: _Wait | None = wait
        while waits is not None and waits.task not in met:
            met.add(waits.task)
            left = [holder for holder in in_the_way[waits.task] if holder not in hope]
            holder = wait.task if wait.task in left else left[0]
            steps.append((holder, waits.key))
            waits = known[holder]
        return steps

    def _in_the_way(self, wait: _Wait) -> list[Actor]:
        """Whom a wait depends on; nobody, if it will end without them or if they cannot be seen."""
        key = wait.key
        holders = self._holders(key)
        if not holders or (key.permits and len(holders) < key.permits):
            return []
        if wait.shared and all(claim.shared for claim, _ in holders) and not self._stays_outside(wait, holders):
            return []
        return [*dict.fromkeys(task for _, task in holders)]

    def _stays_outside(self, wait: _Wait, holders: Iterable[tuple[Claim, Actor]]) -> bool:
        """Whether a reader is kept outside although only readers are inside: it is inside itself, or a writer of this
        process came before it and waits."""
        if any(holder is wait.task for _, holder in holders):
            return True
        return any(
            other.key == wait.key and not other.shared and other.serial < wait.serial for other in self._waits.values()
        )

    def _in_words(self, wait: _Wait, path: Sequence[tuple[Actor, LockKey]]) -> str:
        task, key, shared = wait.task, wait.key, wait.shared
        if path[0][0] is task and not key.permits:
            mine = next(claim for claim, holder in self._holders(key) if holder is task)
            if mine.shared and not shared:
                return (
                    f"this {self._noun} holds {key.name!r} shared and would wait for itself for ever; a shared lock "
                    "cannot be upgraded: release it first, and look again at what you have read"
                )
            return (
                f"this {self._noun} holds {key.name!r} already and would wait for itself for ever; locks are not "
                "re-entrant: pass the hold on, or use try_acquire()"
            )
        words = f"this {self._noun} would wait for {_what(key)} for ever:"
        for holder, waited in path:
            who = f"this {self._noun}" if holder is task else f"{self._noun} {self._name(holder)!r}"
            words += f" {_what(waited)} {_is_held(waited)} by {who}"
            further = self._waits.get(holder) if holder is not task else None
            words += f", which waits for {_what(further.key)};" if further is not None else ";"
        return f"{words[:-1]}. Take them in one order everywhere, or all at once with lock_all()"


def _what(key: LockKey) -> str:
    return f"a permit of {key.name!r}" if key.permits else repr(key.name)


def _is_held(key: LockKey) -> str:
    return "is held" if not key.permits else "(none is free) is held"
