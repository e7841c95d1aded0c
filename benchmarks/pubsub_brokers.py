"""What speaks another protocol or another language: redis and nats as yardsticks, @imqueue/pg-pubsub under node.

What may live here: their candidates, and the pipe to node. Their servers are started in `yardstick.py`.

Theory. A broker that was made for messages says what could be expected, not what can be replaced. A program in another
language does its own turns, because the pipe to it is slower than what is measured; only the result comes back by it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from array import array
from importlib import import_module
from pathlib import Path
from typing import Any

from candidate import Address, Key
from pubsub_candidate import CHANNEL, LOOK, QUIET, Caller, Collected, Layout, Listener, Payload, Publisher, Sink
from turns import Window

PATIENCE = 10.0
LONGEST_ANSWER = 1 << 26
CONNECTIONS = 5000
"""More than redis-py's own limit, which ends a program of many tasks."""


def redis_client(address: Address) -> Any:
    client = import_module("redis.asyncio")
    if address.redis_socket is None:
        raise ModuleNotFoundError("no redis-server on this machine", name="redis-server")
    return client.Redis(unix_socket_path=address.redis_socket, max_connections=CONNECTIONS)


class RedisPublisher(Publisher):
    """Its client lets every task that publishes at the same time have a connection."""

    transport = "redis"

    async def open(self, address: Address, tasks: int) -> None:
        self.client = redis_client(address)
        await self.client.ping()

    async def cycle(self, key: Key) -> None:
        await self.client.publish(CHANNEL, key)

    async def close(self) -> None:
        await self.client.aclose()


class RedisListener(Listener):
    transport = "redis"

    async def open(self, address: Address) -> None:
        self.client = redis_client(address)
        self.subscriptions: list[Any] = []
        self.readers: list[asyncio.Task[None]] = []

    async def subscribe(self, channel: str, sink: Sink) -> None:
        subscription = self.client.pubsub()
        await subscription.subscribe(channel)
        await subscription.get_message(timeout=PATIENCE)
        self.subscriptions.append(subscription)

        async def read() -> None:
            async for message in subscription.listen():
                if message["type"] == "message":
                    sink(message["data"])

        self.readers.append(asyncio.create_task(read()))

    async def close(self) -> None:
        for reader in self.readers:
            reader.cancel()
        await asyncio.gather(*self.readers, return_exceptions=True)
        for subscription in self.subscriptions:
            await subscription.aclose()
        await self.client.aclose()


async def nats_client(address: Address) -> Any:
    nats = import_module("nats")
    if address.nats_port is None:
        raise ModuleNotFoundError("no nats-server on this machine", name="nats-server")
    return await nats.connect(f"nats://127.0.0.1:{address.nats_port}")


class NatsPublisher(Publisher):
    """Its publish puts the message into a buffer and returns, so a cycle ends with the answer to a ping."""

    transport = "nats"

    async def open(self, address: Address, tasks: int) -> None:
        self.client = await nats_client(address)

    async def cycle(self, key: Key) -> None:
        await self.client.publish(CHANNEL, str(key).encode())
        await self.client.flush(int(PATIENCE))

    async def close(self) -> None:
        await self.client.close()


class NatsListener(Listener):
    transport = "nats"

    async def open(self, address: Address) -> None:
        self.client = await nats_client(address)
        self.readers: list[asyncio.Task[None]] = []

    async def subscribe(self, channel: str, sink: Sink) -> None:
        subscription = await self.client.subscribe(channel)
        await self.client.flush()

        async def read() -> None:
            async for message in subscription.messages:
                sink(message.data)

        self.readers.append(asyncio.create_task(read()))

    async def close(self) -> None:
        for reader in self.readers:
            reader.cancel()
        await asyncio.gather(*self.readers, return_exceptions=True)
        await self.client.close()


class NatsCaller(Caller):
    transport = "nats"

    async def open(self, address: Address) -> None:
        self.client = await nats_client(address)

    async def answer(self) -> None:
        async def asked(message: Any) -> None:
            await message.respond(message.data)

        await self.client.subscribe("questions", cb=asked)
        await self.client.flush()

    async def prepare(self) -> None:
        pass

    async def call(self, payload: str) -> Payload:
        reply = await self.client.request("questions", payload.encode(), timeout=PATIENCE)
        return bytes(reply.data)

    async def close(self) -> None:
        await self.client.close()


class Node:
    """The other program, and the pipe to it. Raises `ModuleNotFoundError` where node or its library is missing."""

    async def open(self, address: Address) -> None:
        program = shutil.which("node")
        if program is None:
            raise ModuleNotFoundError("no node on this machine", name="node")
        script = Path(__file__).with_name("pubsub_imqueue.js")
        self.process = await asyncio.create_subprocess_exec(
            program,
            str(script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LONGEST_ANSWER,
        )
        options = {"host": address.host, "port": address.port, "user": address.user, "database": address.dbname}
        await self.ask("open", options=options | ({"password": address.password} if address.password else {}))

    async def ask(self, verb: str, **words: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"verb": verb, **words}).encode() + b"\n")
        answer = json.loads(await self.process.stdout.readline() or '{"error": "node ended without an answer"}')
        if "missing" in answer:
            raise ModuleNotFoundError(answer["missing"], name="@imqueue/pg-pubsub")
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    async def close(self) -> None:
        try:
            async with asyncio.timeout(5):
                await self.ask("close")
                await self.process.wait()
        except (RuntimeError, OSError, TimeoutError):
            self.process.kill()
            await self.process.wait()


class ImqueuePublisher(Publisher):
    """Does its own windows."""

    async def open(self, address: Address, tasks: int) -> None:
        self.tasks = tasks
        self.node = Node()
        await self.node.open(address)

    async def window(self, size: int, same: bool, seconds: float | None, cycles: int | None) -> Window:
        words = {"tasks": self.tasks, "seconds": seconds, "cycles": cycles, "size": size, "same": same}
        return Window(**await self.node.ask("window", channel=CHANNEL, **words))

    async def close(self) -> None:
        await self.node.close()


class ImqueueListener(Listener):
    """Does its own collecting; one subscription for a channel."""

    async def open(self, address: Address) -> None:
        self.node = Node()
        await self.node.open(address)

    async def listen(self, layout: Layout) -> int:
        self.layout = layout
        self.stopped = None
        channels = [layout.channel(number) for number in range(layout.subscriptions)]
        return int(await self.node.ask("listen", channels=list(dict.fromkeys(channels)), timed=layout.timed))

    async def collect(self, expected: int, patience: float, since: float | None) -> Collected:
        words = {"expected": expected, "patience": patience, "since": since, "quietness": QUIET, "look": LOOK}
        found = await self.node.ask("collect", **words, timed=self.layout.timed)
        return Collected(**found | {"latencies": array("q", found["latencies"])})

    async def close(self) -> None:
        await self.node.close()
