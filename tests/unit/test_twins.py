"""Every class of the blocking twin says the same as its async original: names, parameters, defaults, words.

Here live the table of what may differ, each with its reason, and the comparison. Theory: whoever knows one twin knows
the other. So a text is translated by a few words (``async with`` is ``with``, a task is a thread) and must then be
equal; what differs on purpose stands in the table, and an entry of the table that no longer differs is an error too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

import pgconcert
from pgconcert import blocking
from pgconcert.blocking.sessionhold import SessionHold
from pgconcert.sessions.hold import AsyncSessionHold

TWINS: Final = {
    "Coordinator": (pgconcert.AsyncCoordinator, blocking.Coordinator),
    "Lock": (pgconcert.AsyncLock, blocking.Lock),
    "LockSet": (pgconcert.AsyncLockSet, blocking.LockSet),
    "Semaphore": (pgconcert.AsyncSemaphore, blocking.Semaphore),
    "Hold": (pgconcert.AsyncHold, blocking.Hold),
    "JobLock": (pgconcert.AsyncJobLock, blocking.JobLock),
    "JobHold": (pgconcert.AsyncJobHold, blocking.JobHold),
    "ChannelLock": (pgconcert.AsyncChannelLock, blocking.ChannelLock),
    "Subscription": (pgconcert.AsyncSubscription, blocking.Subscription),
    "Listening": (pgconcert.AsyncListening, blocking.Listening),
    "FanOut": (pgconcert.AsyncFanOut, blocking.FanOut),
    "FanOutSubscription": (pgconcert.AsyncFanOutSubscription, blocking.FanOutSubscription),
    "Election": (pgconcert.AsyncElection, blocking.Election),
    "Candidacy": (pgconcert.AsyncCandidacy, blocking.Candidacy),
    "Leadership": (pgconcert.AsyncLeadership, blocking.Leadership),
    "Group": (pgconcert.AsyncGroup, blocking.Group),
    "Joining": (pgconcert.AsyncJoining, blocking.Joining),
    "Membership": (pgconcert.AsyncMembership, blocking.Membership),
    "Changes": (pgconcert.AsyncChanges, blocking.Changes),
    "Runner": (pgconcert.AsyncRunner, blocking.Runner),
    "RunnerGroup": (pgconcert.AsyncRunnerGroup, blocking.RunnerGroup),
    "TaskQueue": (pgconcert.AsyncTaskQueue, blocking.TaskQueue),
}

BASES: Final = {"SessionHold": (AsyncSessionHold, SessionHold)}
"""Twins that are not public. What a class has from a base that is a twin itself is compared there."""

WORDS: Final = (
    (r"\basync with\b", "with"),
    (r"\basync for\b", "for"),
    (r"\bawait ", ""),
    (r"\b([Aa])n (`*)Async(?=[A-Z])", r"\1 \2"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\btask\b", "thread"),
    (r"\btasks\b", "threads"),
    (r"\bTask\[object\]", "Thread"),
    (r"\basyncio\.Thread\b", "threading.Thread"),
    (r"\bCancelled\b", "Interrupted"),
    (r"\bfailing or cancelled\b", "failing or interrupted"),
    (r"\bCoroutineType\[Any, Any, (.*)\]", r"\1"),
)
"""From the words of asyncio to those of threads."""

NO_CANCEL: Final = "a body that runs in a thread cannot be cancelled, so it asks"
HANDED_IN: Final = "a release is handed in and not waited for"
ON_THREADS: Final = "handlers and hooks run on threads of their own, and are plain functions"
ON_ENGINE: Final = "filters run on the engine thread"
NO_AWAIT: Final = "what can be awaited to be opened has open() here"
FOR_A_WHILE: Final = "a wait that nobody can cancel has a time limit"

DIFFERENT: Final = {
    "Coordinator.engine": "the blocking twin has the engine thread and no other",
    "Coordinator doc": "no parameter engine; threads, exit and fork need words of their own",
    "Coordinator.lock.on_lost": NO_CANCEL,
    "Coordinator.lock_all.on_lost": NO_CANCEL,
    "Coordinator.job_lock.on_lost": NO_CANCEL,
    "Coordinator.job_lock doc": "no parameter on_lost",
    "Coordinator.run_in_job_lock.fn": "a plain function",
    "Coordinator.run_in_job_lock.stop": NO_CANCEL,
    "Coordinator.run_in_job_lock returns": "it can be ended by an event",
    "Coordinator.run_in_job_lock doc": NO_CANCEL,
    "Coordinator.exclusive.on_lost": NO_CANCEL,
    "Coordinator.exclusive returns": "it decorates plain functions",
    "Coordinator.exclusive doc": "it decorates plain functions; no parameter on_lost",
    "Coordinator.semaphore.on_lost": NO_CANCEL,
    "Coordinator.lock doc": "no parameter on_lost",
    "Coordinator.semaphore doc": "no parameter on_lost",
    "Coordinator.close doc": "it tells what an interrupt does",
    "Coordinator.handler_threads": ON_THREADS,
    "Coordinator.subscribe doc": ON_ENGINE + "; messages are taken in batches, by any thread",
    "Coordinator.listen doc": ON_THREADS + "; " + NO_AWAIT,
    "Coordinator.on_reconnect doc": ON_THREADS,
    "Coordinator.listening returns": "the twin of AsyncListening has the name of this type",
    "ChannelLock.on_release doc": ON_THREADS,
    "FanOut.publish doc": "only a blocking connection will do",
    "FanOut.subscribe doc": ON_ENGINE,
    "Listening doc": NO_AWAIT,
    "Listening.close doc": "a handler on a thread cannot be cancelled, so it is left alone",
    "Listening.wait_closed.timeout": FOR_A_WHILE,
    "Listening.wait_closed returns": FOR_A_WHILE,
    "Listening.wait_closed doc": FOR_A_WHILE,
    "Lock doc": NO_CANCEL,
    "JobLock doc": NO_CANCEL,
    "JobLock.run doc": NO_CANCEL,
    "JobLock.run.fn": "a plain function",
    "JobLock.stop doc": NO_CANCEL,
    "JobLock.stop.timeout": FOR_A_WHILE,
    "JobLock.stop returns": FOR_A_WHILE,
    "JobHold doc": NO_CANCEL,
    "Hold doc": NO_CANCEL,
    "Hold.tell_loss name": NO_CANCEL,
    "Hold.wait_lost.timeout": NO_CANCEL + " for a while, too",
    "Hold.wait_lost returns": "None when the time is over",
    "Hold.wait_lost doc": "it tells what timeout means",
    "Hold.release doc": HANDED_IN,
    "SessionHold.wait_release_requested.timeout": FOR_A_WHILE,
    "SessionHold.wait_release_requested returns": FOR_A_WHILE,
    "SessionHold.wait_release_requested doc": FOR_A_WHILE,
    "Election.lead.on_lost": NO_CANCEL,
    "Election.lead.on_request": NO_CANCEL,
    "Election.lead doc": "no parameters on_lost and on_request",
    "Election.resign doc": NO_CANCEL,
    "Election.stop.timeout": FOR_A_WHILE,
    "Election.stop returns": FOR_A_WHILE,
    "Election.stop doc": FOR_A_WHILE,
    "Candidacy doc": NO_CANCEL,
    "Leadership doc": NO_CANCEL,
    "Group.join.on_lost": NO_CANCEL,
    "Group.join doc": "no parameter on_lost",
    "Joining doc": NO_CANCEL,
    "Membership doc": NO_CANCEL,
    "Membership.leave doc": HANDED_IN,
    "Coordinator.runner doc": NO_CANCEL,
    "Runner doc": NO_CANCEL,
    "Runner.start doc": "an interrupt cannot wait for the end of what it ends",
    "Runner.run doc": "an interrupt has the patience of a Ctrl-C",
    "Runner.stop doc": NO_CANCEL,
    "Runner.ended.timeout": FOR_A_WHILE,
    "Runner.ended returns": FOR_A_WHILE,
    "Runner.ended doc": FOR_A_WHILE,
    "Runner.wake doc": "any thread may call it",
    "RunnerGroup.start doc": "an interrupt cannot wait for the end of what it ends",
    "RunnerGroup.run doc": "an interrupt has the patience of a Ctrl-C",
}
"""What may differ, and why."""


class Said(NamedTuple):
    """One thing that a class says: a name, a parameter, a result, a text."""

    what: str
    words: str


def translated(text: str) -> str:
    """In the words of threads, on one line."""
    for pattern, word in WORDS:
        text = re.sub(pattern, word, text)
    return " ".join(text.split())


def compared_elsewhere(name: str, attribute: str) -> bool:
    """Whether both have it from a pair of bases that is compared by itself."""
    pair = (TWINS | BASES)[name]
    return any(
        all(
            one is not base
            and issubclass(one, base)
            and getattr_or_none(one, attribute) is getattr_or_none(base, attribute)
            for one, base in zip(pair, bases, strict=True)
        )
        for bases in (TWINS | BASES).values()
    )


def getattr_or_none(cls: type, attribute: str) -> object:
    return inspect.getattr_static(cls, attribute, None)


def says(name: str, cls: type) -> Iterator[Said]:
    """Everything that a class says in public."""
    yield Said(f"{name} doc", translated(inspect.getdoc(cls) or ""))
    if name == "Coordinator":  # the others are made by it
        yield from of_call(name, inspect.getattr_static(cls, "__init__"))
    for attribute in dir(cls):
        if attribute.startswith("_") and attribute not in ("__aenter__", "__aexit__", "__enter__", "__exit__"):
            continue
        if name in TWINS | BASES and compared_elsewhere(name, attribute):
            continue
        member = inspect.getattr_static(cls, attribute)
        full = f"{name}.{translated(attribute)}"
        if isinstance(member, property):
            assert member.fget is not None
            yield Said(f"{full} name", "property")
            yield from of_call(full, member.fget)
        elif callable(member):
            yield Said(f"{full} name", "method")
            yield from of_call(full, member)
        else:
            yield Said(f"{full} name", "attribute")
            continue
        yield Said(f"{full} doc", translated(inspect.getdoc(member) or ""))


def of_call(name: str, function: Any) -> Iterator[Said]:
    """Its parameters, with kind, default and annotation, and its result."""
    signature = inspect.signature(function)
    parameters = [*signature.parameters.values()][1:]
    for parameter in parameters:
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        words = translated(f"{parameter.kind.description}: {parameter.annotation}{default}")
        yield Said(f"{name}.{translated(parameter.name)}", words)
    order = [translated(parameter.name) for parameter in parameters]
    yield Said(f"{name} parameters", " ".join(one for one in order if f"{name}.{one}" not in DIFFERENT))
    yield Said(f"{name} returns", translated(str(signature.return_annotation)))


@pytest.mark.parametrize("name", [*TWINS, *BASES])
def test_the_twins_say_the_same(name: str) -> None:
    original, twin = (dict(says(name, cls)) for cls in (TWINS | BASES)[name])
    different = {what for what in original.keys() | twin.keys() if original.get(what) != twin.get(what)}
    # a name that only one of them has explains its parameters, result and text
    lone = tuple(what.removesuffix(" name") for what in different & DIFFERENT.keys() if what.endswith(" name"))
    unexplained = {what for what in different - DIFFERENT.keys() if not what.startswith(lone or ("-",))}
    assert not unexplained, "\n".join(
        f"{what}:\n  async:    {original.get(what)}\n  blocking: {twin.get(what)}" for what in sorted(unexplained)
    )
    explained = {what for what in DIFFERENT if re.match(rf"{name}\b", what)}
    assert explained <= different, f"these do not differ any more: {sorted(explained - different)}"


def test_every_public_class_has_a_twin() -> None:
    """Who adds a primitive to one side has to add it to the other."""
    originals = {name.removeprefix("Async") for name in pgconcert.__all__ if name.startswith("Async")}
    assert originals == set(blocking.__all__) == set(TWINS)


def test_the_words_tell_a_difference() -> None:
    """The comparison is not blind: a changed default, kind or word is seen."""

    class One:
        """Used by tasks."""

        async def acquire(self, timeout: float | None = None) -> None:
            """Wait."""

    class Other:
        """Used by threads."""

        def acquire(self, *, timeout: float | None = 1) -> None:
            """Wait for it."""

    one, other = dict(says("X", One)), dict(says("X", Other))
    assert {what for what in one if one[what] != other[what]} == {"X.acquire.timeout", "X.acquire doc"}
