"""Messages between threads, each with an event loop of its own: one order for everybody, and nothing lost. And `fork`.

Theory: whoever listens with everybody else ends only when it has heard as much as was published, because nothing looks
again for what was lost.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from pgconcert.errors import NotifyQueueFull
from pgconcert.memory import MemoryBackend, World
from pgconcert.testing import eventually, eventually_async
from tests.processes import Worker
from tests.unit.ears import Diary, claiming, listening, opened, proving, publishing
from tests.unit.test_memory_threads import in_threads

THREADS = 4
EACH = 2000


def test_every_listener_hears_one_order(unique: str) -> None:
    world, start = World.named(unique), threading.Barrier(THREADS)
    diaries: list[Diary] = []
    claims: list[bool] = []

    async def work(number: int) -> None:
        backend = await opened(world)
        ear = await listening(backend)
        await asyncio.to_thread(start.wait)
        answers = []
        for count in range(EACH):
            answers.append(publishing(backend.messenger, b"%d %d" % (number, count)))
            if count % 100 == 0:
                claims.append(await claiming(backend.messenger, "s", str(count)))
        assert all(await asyncio.gather(*answers))
        await eventually_async(lambda: len(ear.told) == THREADS * EACH)
        assert sum(own for _, own in ear.senders) == EACH
        diaries.append(ear)
        await asyncio.to_thread(start.wait)
        await backend.close()

    in_threads(work)
    first = diaries[0].payloads()
    assert [diary.payloads() for diary in diaries] == [first] * THREADS
    for number in range(THREADS):
        mine = [payload for payload in first if payload.startswith(b"%d " % number)]
        assert mine == [b"%d %d" % (number, count) for count in range(EACH)]
    assert sum(claims) == EACH // 100
    assert (world.empty, world.members) == (True, set())


def test_an_ear_is_called_on_its_own_loop(unique: str) -> None:
    world, threads = World.named(unique), set[tuple[int, str]]()

    class Place(Diary):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def heard(self, payload: bytes, pid: int, own: bool) -> None:
            super().heard(payload, pid, own)
            threads.add((self.number, threading.current_thread().name))

    names: set[tuple[int, str]] = set()
    start = threading.Barrier(THREADS)

    async def work(number: int) -> None:
        names.add((number, threading.current_thread().name))
        backend, ear = await opened(world), Place(number)
        backend.messenger.listen("c", ear)
        await proving(backend.messenger)
        await asyncio.to_thread(start.wait)
        await publishing(backend.messenger, b"x")
        await eventually_async(lambda: len(ear.payloads()) == THREADS)
        await asyncio.to_thread(start.wait)
        await backend.close()

    in_threads(work)
    assert threads == names


def test_losses_from_other_threads_never_go_unreported(unique: str) -> None:
    """Each ear hears the numbers in their order; and where some are missing, it was deaf."""
    world, ending = World.named(unique), threading.Event()
    listeners: list[MemoryBackend] = []
    diaries: list[Diary] = []

    async def work(number: int) -> None:
        backend = await opened(world)
        if number == 0:
            for count in range(3000):
                await publishing(backend.messenger, b"%d" % count)
                if count % 50 == 0:
                    await asyncio.sleep(0)
                if count % 300 == 0:
                    for victim in [*listeners]:
                        victim.lose_connection()
            ending.set()
        else:
            ear = Diary()
            backend.messenger.listen("c", ear)
            await proving(backend.messenger)
            assert ear.told[0] == "ready"
            diaries.append(ear)
            listeners.append(backend)
            while not ending.is_set():
                await asyncio.sleep(0)
                backend.messenger.bounce("again")
                await proving_again(backend)
            listeners.remove(backend)
        await backend.close()

    async def proving_again(backend: MemoryBackend) -> None:
        try:
            await proving(backend.messenger)
        except ConnectionError:
            pass

    in_threads(work)
    for diary in diaries:
        last: int | None = None
        for one in diary.told:
            if not isinstance(one, bytes):
                last = None
                continue
            number = int(one)
            assert last is None or number == last + 1
            last = number
    assert (world.empty, world.members) == (True, set())


def test_a_listener_that_blocks_its_loop_is_named(unique: str) -> None:
    world, hears, stop = World.named(unique), threading.Event(), threading.Event()
    world.queue_limit = 100

    async def sleep() -> None:
        backend = await opened(world, "sleeper")
        ear = await listening(backend)
        hears.set()
        stop.wait()
        await eventually_async(lambda: len(ear.told) == 100)
        await backend.close()

    async def publish() -> None:
        backend = await opened(world)
        for _ in range(100):
            await publishing(backend.messenger, b"x")
        with pytest.raises(NotifyQueueFull, match=r"sleeper .* has 100 notifications"):
            await publishing(backend.messenger, b"x")
        await backend.close()

    sleeper = threading.Thread(target=lambda: asyncio.run(sleep()))
    sleeper.start()
    hears.wait()
    try:
        asyncio.run(publish())
    finally:
        stop.set()
        eventually(lambda: not sleeper.is_alive())
    assert world.empty


CHILD = """
import asyncio, os, sys
from pgconcert.errors import BrokerClosed
from pgconcert.events import EventStream
from pgconcert.enginethread import ThreadedBackend
from pgconcert.memory import MemoryBackend, World

class Ear:
    told = []
    def heard(self, payload, pid, own): self.told.append(payload)
    def ready(self): self.told.append("ready")
    def deaf(self, reason): self.told.append("deaf")
    def failed(self, error): self.told.append(type(error))

world = World.named("w")
runner = asyncio.Runner()
inner = MemoryBackend(world)
backend = ThreadedBackend(inner) if sys.argv[1] == "thread" else inner
runner.run(backend.open(EventStream()))

async def answered(ask, *arguments):
    answer = asyncio.get_running_loop().create_future()
    ask(*arguments, answer)
    return await answer

ear = Ear()

async def listen():
    backend.messenger.listen("c", ear)
    await answered(backend.messenger.prove)
    await answered(backend.messenger.spill, b"kept", 60.0)

runner.run(listen())
pid = os.fork()
if not pid:
    try:
        async def child():
            assert world.empty
            inherited = backend.messenger
            for ask in (
                lambda: answered(inherited.publish, b"c", b"1"), lambda: answered(inherited.prove),
                lambda: answered(inherited.fetch, 1), lambda: answered(inherited.claim, "s", "1"),
            ):
                try:
                    await ask()
                except BrokerClosed:
                    pass
                else:
                    raise AssertionError("a child may not use it")
            late = Ear()
            late.told = []
            inherited.listen("c", late)
            inherited.unlisten("c", ear)
            inherited.bounce("nothing")
            assert late.told == [BrokerClosed], late.told
            mine = MemoryBackend(world)
            await mine.open(EventStream())
            assert await answered(mine.messenger.fetch, 1) is None
            assert await answered(mine.messenger.publish, b"c", b"in the child")
            await mine.close()
            assert world.empty
        asyncio.run(child())
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

async def after():
    await answered(backend.messenger.publish, b"c", b"in the parent")
    await answered(backend.messenger.prove)
    assert ear.told == ["ready", b"in the parent"], ear.told

runner.run(after())
runner.run(backend.close())
runner.close()
assert world.empty
print("done", flush=True)
"""


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_child_hears_nothing_and_says_nothing_in_the_parent_s_world(
    worker: Callable[..., Worker], engine: str
) -> None:
    process = worker(CHILD, engine)
    process.expect("done", 50.0)
    assert process.wait() == 0
