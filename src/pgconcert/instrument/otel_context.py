"""Traces that go on in another process: the context travels in headers of messages and in payloads of tasks.

Theory. Nothing of this happens by itself. A message with headers travels in an envelope, and a task whose payload
carries a context has a key more: programs that are not ours, and expect a plain text, could not read them. So the
sender says that it shall be so, and the receiver looks for it; what comes without a context is done in a trace of its
own.

One message, or one task, goes on in the trace of its sender, or, with ``link=True``, in a trace of its own with a link
to it. Several tasks have several senders, and get links.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeVar, cast

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TracerProvider, get_current_span, get_tracer

from .. import __version__
from ..errors import ConfigurationError, given
from ..pubsub.envelope import MAX_HEADERS, compact_json
from ..pubsub.message import Message
from ..tasks.task import Task
from ..tasks.tasker import inside
from .spans import PROCESS, PUBLISH, RUN_TASKS

__all__ = ["CARRIED", "carry", "headers", "processing", "publishing", "traced", "working"]

H = TypeVar("H", bound=Callable[..., Any])

CARRIED: Final = "pgconcert:trace"
"""The key of a task's payload under which the context stands."""

_SYSTEM: Final = {"messaging.system": "postgresql"}


def headers(carrier: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers of ``carrier``, and those that say in which trace we are: for ``publish(headers=...)``.

    A message has room for 2,000 bytes of headers. What does not fit beside the carrier's own is left out, the longest
    first: baggage rather than the trace.
    """
    own = dict(carrier or {})
    told = _injected()
    while told and len(compact_json({**own, **told})) > MAX_HEADERS:
        del told[max(told, key=lambda name: len(told[name]))]
    return {**own, **told}


@contextmanager
def publishing(
    channel: str, carrier: Mapping[str, str] | None = None, *, tracer_provider: TracerProvider | None = None
) -> Iterator[dict[str, str]]:
    """A span around sending a message. What comes out are its headers, with those of ``carrier``: for
    ``publish(headers=...)``. What the block raises is an error of the span, unless it was cancelled."""
    about = {**_SYSTEM, "messaging.operation.name": "publish", "messaging.operation.type": "send"}
    about["messaging.destination.name"] = channel
    name = PUBLISH.name.format(channel=channel)
    with _span(tracer_provider, name, SpanKind.PRODUCER, about):
        yield headers(carrier)


@contextmanager
def processing(
    message: Message, *, link: bool = False, tracer_provider: TracerProvider | None = None
) -> Iterator[Span]:
    """A span around what is done with a message, in the trace of its sender if its headers name one; with ``link``, in
    the trace that we are in, with a link to the sender's. What the block raises is an error of the span, unless it was
    cancelled."""
    about: dict[str, str | int] = {
        **_SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": message.channel,
        "messaging.message.body.size": len(message.payload),
    }
    if message.id is not None:
        about["messaging.message.id"] = message.id
    name = PROCESS.name.format(channel=message.channel)
    with _span(tracer_provider, name, SpanKind.CONSUMER, about, (message.headers,), parent=not link) as span:
        yield span


def carry(payload: Mapping[str, Any]) -> dict[str, Any]:
    """A payload of a task that says in which trace we are, under the key ``pgconcert:trace``: for
    ``enqueue(json=carry({...}))``. Outside of any trace it says nothing more."""
    told = _injected()
    return {**payload, CARRIED: told} if told else dict(payload)


@contextmanager
def working(
    tasks: Task | Sequence[Task], *, link: bool = False, tracer_provider: TracerProvider | None = None
) -> Iterator[Span]:
    """A span around what is done with a task, in the trace in which it was enqueued if its payload carries one; with
    ``link``, and around several tasks, in the trace that we are in, with links to theirs. ``pgconcert.session`` and
    ``pgconcert.work`` are those of the span *doing work* of the runner."""
    each = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
    about: dict[str, str | int] = {"pgconcert.tasks": len(each)}
    if len(each) == 1:
        about |= {"pgconcert.task.id": each[0].id, "pgconcert.task.attempt": each[0].attempt}
    if calls := inside():
        about |= {"pgconcert.session": calls[-1].shift.session, "pgconcert.work": calls[-1].number}
    senders = [carried for task in each if (carried := _carried(task.payload))]
    parent = len(each) == 1 and not link
    with _span(tracer_provider, RUN_TASKS.name, SpanKind.CONSUMER, about, senders, parent=parent) as span:
        yield span


def traced(handler: H, /, *, link: bool = False, tracer_provider: TracerProvider | None = None) -> H:
    """A handler of ``listen``, or a tasker, async or plain, whose calls are spans: ``processing`` around a message,
    ``working`` around a task or a list of tasks. A method may be decorated, too; its last argument counts."""
    if not callable(handler):
        raise ConfigurationError(f"traced() takes a handler or a tasker, not {given(handler)}")

    def scope(what: object) -> Any:
        if isinstance(what, Message):
            return processing(what, link=link, tracer_provider=tracer_provider)
        if isinstance(what, Task) or (isinstance(what, list) and what and isinstance(what[0], Task)):
            return working(what, link=link, tracer_provider=tracer_provider)
        return nullcontext()

    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004

        @functools.wraps(handler)
        async def awaited(*args: Any) -> Any:
            with scope(args[-1]):
                return await handler(*args)

        return cast("H", awaited)

    @functools.wraps(handler)
    def called(*args: Any) -> Any:
        with scope(args[-1]):
            return handler(*args)

    return cast("H", called)


@contextmanager
def _span(
    provider: TracerProvider | None,
    name: str,
    kind: SpanKind,
    about: Mapping[str, str | int],
    carriers: Iterable[Mapping[str, str]] = (),
    *,
    parent: bool = False,
) -> Iterator[Span]:
    """A span that is the current one. ``carriers`` say whose children, or with whom linked, it is."""
    context: Context | None = None
    links: list[Link] = []
    for carrier in carriers:
        sender = _sender(carrier)
        if sender is None:
            continue
        if parent:
            context = propagate.extract(carrier)
        else:
            links.append(Link(sender))
    tracer = get_tracer("pgconcert", __version__, provider)
    with tracer.start_as_current_span(name, context, kind, about, links) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            raise


def _injected() -> dict[str, str]:
    told: dict[str, str] = {}
    propagate.inject(told)
    return told


def _sender(carrier: Mapping[str, str]) -> SpanContext | None:
    """Where a carrier comes from, if it says that in words we know."""
    context = get_current_span(propagate.extract(carrier, Context())).get_span_context()
    return context if context.is_valid else None


def _carried(payload: object) -> dict[str, str] | None:
    """The context that a payload carries."""
    if isinstance(payload, bytes):
        if CARRIED.encode() not in payload:
            return None
        try:
            payload = json.loads(payload)
        except (ValueError, RecursionError):
            return None
    told = payload.get(CARRIED) if isinstance(payload, Mapping) else None
    if not isinstance(told, dict):
        return None
    return {name: text for name, text in told.items() if isinstance(name, str) and isinstance(text, str)}
