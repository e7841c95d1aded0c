"""Cases of queues: what is put there, how it is shown, and what is refused before anything is sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ... import ConfigurationError, KeyInvalid, NewTask, QueueTasks, Task
from ...errors import PayloadInvalid
from .sharing import FAR, Work, emptied, filled
from .suite import Stage, case, raises


@case("tasks")
async def queues_are_apart(stage: Stage) -> None:
    """A queue is known by its name and the namespace; what is in one is in no other, and all are shown by name."""
    a, b = await stage.open(), await stage.open(namespace=f"conformance {stage.number()}")
    names = ["Queue", "queue", "queue ", "queue'\\%ü", "x" * 1000]
    for count, name in enumerate(names, 1):
        await filled(a, count, name)
    await filled(b, 7)
    shown = await a.queues()
    assert {info.name: info.waiting for info in shown} == {name: count for count, name in enumerate(names, 1)}
    assert [info.name for info in await b.queues()] == ["queue"]
    work = Work()
    async with a.runner("runner", work, QueueTasks("queue"), tick=FAR):
        await emptied(a.queue("queue"))
    assert len(work.done) == 2
    assert (await b.queue("queue").statistics()).waiting == 7
    assert (await a.queue("nothing").statistics()).waiting == 0


@case("tasks")
async def a_queue_shows_its_tasks(stage: Stage) -> None:
    """Tasks are shown with their payloads, bytes, text and JSON, in their order, by state, as many as were wanted."""
    c = await stage.open()
    queue = c.queue("queue")
    raw = bytes(range(256))
    texts: list[Any] = [raw, bytearray(raw), memoryview(raw), "ü\0'", b"", NewTask(b"own", attempts=3)]
    first = await queue.enqueue(json={"a": [1, None, "ü"]})
    put = (first, *await queue.enqueue_many(texts, attempts=7))
    assert await queue.enqueue_many(iter([])) == ()
    tasks = await queue.tasks()
    assert tuple(task.id for task in tasks) == put
    assert [task.payload for task in tasks[1:]] == [raw, raw, raw, "ü\0'".encode(), b"", b"own"]
    assert Task("1", tasks[0].payload).json() == {"a": [1, None, "ü"]}
    assert [task.attempts for task in tasks] == [20, 7, 7, 7, 7, 7, 3]
    assert [task.id for task in await queue.tasks("waiting", 2)] == [*put[:2]]
    assert await queue.tasks("dead") == ()
    assert (await queue.retry(), await queue.retry(first), await queue.discard(first, "no such")) == (0, 0, 0)
    assert (await queue.statistics()).waiting == 7


@case("tasks")
async def finished_tasks_may_be_kept(stage: Stage) -> None:
    """With ``retention`` finished tasks are shown for a while; without they are gone."""
    c = await stage.open()
    for retention, kept in ((0.0, 0), (FAR, 3)):
        queue, put = await filled(c, 3)
        async with c.runner("runner", Work(), QueueTasks("queue", retention=retention), tick=FAR):
            await emptied(queue)
        finished = await queue.tasks("finished")
        assert sorted(task.id for task in finished) == sorted(put)[: len(finished)]
        assert (len(finished), (await queue.statistics()).finished) == (kept, kept)
        assert all(task.finished is not None for task in finished)


@case("tasks")
async def what_is_wrong_is_said_at_once(stage: Stage) -> None:
    """Names, payloads, times and numbers are checked before anything is sent."""
    c = await stage.open()
    wrong: Any
    for wrong in ("", "x" * 1001, "a\0b", "\ud800", 7, None):
        with raises(KeyInvalid):
            c.queue(wrong)
        with raises(KeyInvalid):
            c.runner(wrong, Work(), QueueTasks("queue"))
    queue = c.queue("queue")
    for wrong in (7, None, ["a"], "\ud800"):
        with raises(PayloadInvalid):
            await queue.enqueue(wrong)
        with raises(PayloadInvalid):
            await queue.enqueue_many(["a", wrong])
    for wrong in (
        {"run_in": -1},
        {"run_in": "1"},
        {"run_in": 1, "run_at": datetime.now(UTC)},
        {"run_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"run_at": 7},
        {"attempts": 0},
        {"attempts": 32_768},
        {"json": object()},
        {"payload": b"a", "json": 1},
    ):
        with raises(ConfigurationError):
            await queue.enqueue(**wrong)
    for wrong in ({"state": "done"}, {"limit": 0}, {"limit": True}):
        with raises(ConfigurationError):
            await queue.tasks(**wrong)
    for wrong in (
        {"tick": 0},
        {"tick": "1"},
        {"jitter": 2},
        {"jitter": -0.1},
        {"tasks_per_session": -1},
        {"batch": 0},
        {"concurrency": 0},
        {"per_task": 1},
        {"ttl": 0},
        {"ttl": 4, "interval": 2},
    ):
        with raises(ConfigurationError):
            c.runner("runner", Work(), QueueTasks("queue"), **wrong)
    for wrong in (None, "queue", 7):
        with raises(ConfigurationError):
            c.runner("runner", Work(), wrong)
        with raises(ConfigurationError):
            c.runner("runner", wrong, QueueTasks("queue"))
    assert await c.queues() == ()
