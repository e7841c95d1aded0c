"""What cannot be a source, a task or a place is refused where it is said, in a sentence of ours."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from pgconcert import (
    AsyncCoordinator,
    ConfigurationError,
    Coordinator,
    FunctionTasks,
    KeyInvalid,
    QueueTasks,
    TableTasks,
    Task,
)
from pgconcert.tasks.newtask import new_task, new_tasks

LONE = "\ud800"


@pytest.mark.parametrize("attempts", [0, -1, 32_768, 2.0, float("nan"), float("inf"), True, "3", None])
def test_attempts_of_a_queue(attempts: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"attempts is a whole number from 1 to 32,767"):
        QueueTasks("a", attempts=attempts)


@pytest.mark.parametrize("what", ["table", "finish", "id", "where", "order_by", "session"])
@pytest.mark.parametrize("text", [LONE, "a\0b", 3, None, b"x"])
def test_texts_of_a_table(what: str, text: Any) -> None:
    texts: dict[str, Any] = {"table": "orders", "finish": "delete", what: text}
    with pytest.raises(ConfigurationError, match=f"{what} of TableTasks is a text of SQL"):
        TableTasks(**texts)


@pytest.mark.parametrize("what", ["schema", "id"])
@pytest.mark.parametrize("text", [LONE, "", "a\0b", "é" * 32, 3])
def test_names_of_functions(what: str, text: Any) -> None:
    names: dict[str, Any] = {what: text}
    with pytest.raises(ConfigurationError, match=f"{what} of FunctionTasks is a name of 1 to 63 bytes"):
        FunctionTasks(**names)


@pytest.mark.parametrize("payloads", [None, 3])
def test_payloads_that_are_none(payloads: Any) -> None:
    with pytest.raises(ConfigurationError, match="enqueue_many takes an iterable of payloads"):
        new_tasks(payloads)


def test_what_all_payloads_share_is_the_fault_of_none() -> None:
    with pytest.raises(ConfigurationError, match="run_in is 0 to") as told:
        new_tasks(["a"], run_in=-1)
    assert not getattr(told.value, "__notes__", [])
    with pytest.raises(ConfigurationError, match="payload") as told:
        new_tasks(["a", 3])  # type: ignore[list-item]
    assert told.value.__notes__ == ["this was number 1 of the payloads, from 0"]


def test_the_last_time_there_is() -> None:
    with pytest.raises(ConfigurationError, match="run_at is from 1970 to the end of 9999"):
        new_task(run_at=datetime.max.replace(tzinfo=UTC))


async def _generator(tasks: list[Task]) -> AsyncIterator[Task]:
    for task in tasks:
        yield task


SOURCES: list[tuple[Any, type[Exception]]] = [
    (QueueTasks, ConfigurationError),
    (QueueTasks(""), KeyInvalid),
    (QueueTasks("x" * 1001), KeyInvalid),
    (QueueTasks(LONE), KeyInvalid),
    (3, ConfigurationError),
    (None, ConfigurationError),
]


@pytest.mark.parametrize(("source", "error"), SOURCES, ids=lambda value: str(value)[:30])
async def test_what_is_no_source(source: Any, error: type[Exception]) -> None:
    async with AsyncCoordinator(f"memory://{secrets.token_hex(8)}") as c:
        with pytest.raises(error):
            c.runner("r", print, source)


@pytest.mark.parametrize(("source", "error"), SOURCES, ids=lambda value: str(value)[:30])
def test_what_is_no_source_for_threads(source: Any, error: type[Exception]) -> None:
    with Coordinator(f"memory://{secrets.token_hex(8)}") as c, pytest.raises(error):
        c.runner("r", print, source)


def test_an_async_generator_is_no_tasker() -> None:
    tasker: Callable[..., Any] = _generator
    with (
        Coordinator(f"memory://{secrets.token_hex(8)}") as c,
        pytest.raises(ConfigurationError, match="plain function"),
    ):
        c.runner("r", tasker, QueueTasks("q"))
