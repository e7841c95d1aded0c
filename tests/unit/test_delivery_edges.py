"""What is hard about one-process and one-each: take-overs behind a slow fetch, claims without an answer, deaf leaders.

Here live messages that wait behind something: a payload that is being fetched, a claim that was not answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, Gap, Message, Unavailable
from pgconcert.events import Event, EventStream, HandlersAbandoned
from pgconcert.keys import KeySpace
from pgconcert.messenger import Answer, Ear, Messenger
from pgconcert.pubsub import oneeach
from pgconcert.pubsub.broker import Broker
from pgconcert.pubsub.envelope import Spill, encode
from pgconcert.pubsub.overflow import Inbox
from pgconcert.testing import eventually_async
from tests.unit.ears import turns
from tests.unit.ends import LIMIT, outcome
from tests.unit.memoryworld import handles

LARGE = "x" * 9000


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


class Slowly:
    """Calls of one verb of a messenger, kept back until they are let go, as on a slow link."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, c: AsyncCoordinator, verb: str) -> None:
        self._messenger: Messenger = handles(c).messenger
        self._verb = verb
        self._monkeypatch = monkeypatch
        self.calls: list[tuple[Any, ...]] = []
        self._do = getattr(self._messenger, verb)
        monkeypatch.setattr(self._messenger, verb, lambda *call: self.calls.append(call))

    def go_on(self) -> None:
        """Let them go, and hold up no more."""
        self._monkeypatch.setattr(self._messenger, self._verb, self._do)
        for call in self.calls:
            self._do(*call)


class Played:
    """A messenger that does nothing by itself."""

    def __init__(self) -> None:
        self.ears: dict[str, Ear] = {}
        self.fetches: list[Answer[bytes | None]] = []
        self.claims: list[Answer[bool]] = []

    def listen(self, channel: str, ear: Ear) -> None:
        """It hears at once."""
        self.ears[channel] = ear
        ear.ready()

    def unlisten(self, channel: str, ear: Ear) -> None:
        """It hears no more."""
        del self.ears[channel]

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        """Note it."""
        self.fetches.append(answer)

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        """Note it."""
        self.claims.append(answer)


class Stage:
    """A broker over a messenger that is played by hand."""

    def __init__(self) -> None:
        self.messenger = Played()
        messenger: Any = self.messenger
        loop = asyncio.get_running_loop()
        self.broker = Broker(messenger, loop, EventStream(), KeySpace(""), payloads=True, spill_ttl=60)

    def inbox(self) -> Inbox[Message]:
        return Inbox(("a",), self.broker.events, 100, "error", "yield")

    def hear(self, payload: bytes) -> None:
        self.messenger.ears["a"].heard(payload, 1, False)


def taken(inbox: Inbox[Message]) -> list[str]:
    """All that is queued: texts, and gaps as their reason and count."""
    found: list[str] = []
    while (item := inbox.take()) is not None:
        found.append(f"{item.reason} {item.count}" if isinstance(item, Gap) else item.text)
    return found


# behind a payload that is being fetched


@pytest.mark.parametrize("there", [True, False])
async def test_who_enters_behind_a_large_message_gets_nothing_of_it(there: bool) -> None:
    """Neither the message, nor the gap if its payload is gone: both were before the entry."""
    stage = Stage()
    early, late = stage.inbox(), stage.inbox()
    await stage.broker.enter(["a"], early)
    stage.hear(encode(b"", spill=Spill.of(1, b"large")))
    stage.hear(b"behind it")
    await stage.broker.enter(["a"], late)
    stage.hear(b"after the entry")
    stage.messenger.fetches[0].set_result(b"large" if there else None)
    assert taken(early) == ["large" if there else "payload 1", "behind it", "after the entry"]
    assert taken(late) == ["after the entry"]
    await stage.broker.close()


async def test_who_enters_while_nothing_is_heard_is_told_of_no_loss() -> None:
    """Even if the word of the loss waits behind a large message until after the entry."""
    stage = Stage()
    early, late = stage.inbox(), stage.inbox()
    await stage.broker.enter(["a"], early)
    stage.hear(encode(b"", spill=Spill.of(1, b"large")))
    ear = stage.messenger.ears["a"]
    ear.deaf("the link is down")
    entering = asyncio.create_task(stage.broker.enter(["a"], late))
    await turns()
    assert not entering.done()
    ear.ready()
    await entering
    stage.hear(b"after the entry")
    stage.messenger.fetches[0].set_result(b"large")
    assert taken(early) == ["large", "reconnect None", "after the entry"]
    assert taken(late) == ["after the entry"]
    await stage.broker.close()


async def test_a_take_over_begins_behind_what_is_still_being_fetched(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process before has handled is not handled again, although its payload comes here after the take-over."""
    async with (
        AsyncCoordinator(world) as a,
        AsyncCoordinator(world) as b,
        a.subscribe("c", delivery="one-process") as first,
        b.subscribe("c", delivery="one-process", gaps="yield") as second,
    ):
        slowly = Slowly(monkeypatch, b, "fetch")
        await a.publish("c", LARGE)
        await a.publish("c", "behind it")
        assert [len((await first.get(LIMIT)).payload) for _ in range(2)] == [len(LARGE), len("behind it")]
        await eventually_async(lambda: slowly.calls)
        await first.close()
        await eventually_async(lambda: second.active)
        slowly.go_on()
        await a.publish("c", "after the take-over")
        gap, message = [await second.get(LIMIT) for _ in range(2)]
        assert isinstance(gap, Gap)
        assert gap.reason == "takeover"
        assert isinstance(message, Message)
        assert message.text == "after the take-over"


# one-process


async def test_who_cannot_prove_that_it_hears_keeps_nobody_out(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next in line is active instead; once it hears again it takes its turn like everybody else."""

    def deaf(answer: Answer[float]) -> None:
        answer.set_exception(Unavailable("the way of notifications is broken"))

    async with AsyncCoordinator(world) as a, AsyncCoordinator(world) as b:
        leader = await b.subscribe("c", delivery="one-process").__aenter__()
        async with a.subscribe("c", delivery="one-process") as next_one:
            with monkeypatch.context() as patched:
                patched.setattr(handles(a).messenger, "prove", deaf)
                async with b.subscribe("c", delivery="one-process") as hearing:
                    await leader.close()
                    await eventually_async(lambda: hearing.active)
                    assert not next_one.active
            await eventually_async(lambda: next_one.active)


# one-each


class Busy:
    """Handlers to which three messages have come, of which it is not known yet whose they are."""

    def __init__(self, c: AsyncCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.c = c
        self._monkeypatch = monkeypatch
        self.heard: list[str] = []
        self.abandoned: list[HandlersAbandoned] = []
        c.events.subscribe(self._note, HandlersAbandoned)

    def _note(self, event: Event) -> None:
        assert isinstance(event, HandlersAbandoned)
        self.abandoned.append(event)

    async def begin(self) -> Slowly:
        handlers = {"a": lambda message: self.heard.append(message.text)}
        self.listening = await self.c.listen(handlers, delivery="one-each", close_timeout=3600)
        slowly = Slowly(self._monkeypatch, self.c, "claim")
        for text in ("1", "2", "3"):
            await self.c.publish("a", text, id=True)
        await eventually_async(lambda: len(slowly.calls) == 3)
        return slowly


@pytest.mark.parametrize("ours", [True, False])
async def test_closing_waits_for_claims(world: str, monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    """A message that is ours by its claim is handled by nobody else, so it is handled before the end; closing takes no
    longer than that, if it is not ours too."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other:
        busy = Busy(c, monkeypatch)
        if ours:
            slowly = await busy.begin()
        else:
            async with other.subscribe("a", delivery="one-each") as quicker:
                slowly = await busy.begin()
                assert [(await quicker.get(LIMIT)).text for _ in range(3)] == ["1", "2", "3"]
        closing = asyncio.create_task(busy.listening.close())
        await turns()
        assert not closing.done()
        slowly.go_on()
        assert await outcome(closing) is None
        assert (busy.heard, busy.abandoned) == (["1", "2", "3"] if ours else [], [])


async def test_what_was_perhaps_claimed_is_counted_as_abandoned(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time for closing is over before the claims are answered, that is told with their number."""
    async with AsyncCoordinator(world) as c:
        busy = Busy(c, monkeypatch)
        slowly = await busy.begin()
        await busy.listening.close(timeout=0)
        slowly.go_on()
        await turns()
        assert busy.heard == []
        assert [(event.channel, event.running, event.queued) for event in busy.abandoned] == [("a", 0, 3)]


async def test_an_id_is_known_in_its_namespace(world: str) -> None:
    """One id on two channels of two namespaces is two messages, however alike the names are when put together."""
    async with (
        AsyncCoordinator(world, namespace="x") as a,
        AsyncCoordinator(world, namespace="x:y") as b,
        a.subscribe("y:z", delivery="one-each") as ones,
        b.subscribe("z", delivery="one-each") as twos,
    ):
        for messages, c, channel in ((ones, a, "y:z"), (twos, b, "z")):
            await c.publish(channel, "it", id="1")
            await c.publish(channel, "end", id="2")
            assert [(await messages.get(LIMIT)).text for _ in range(2)] == ["it", "end"]


async def test_the_line_behind_an_unanswered_claim_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """For messages without an id as well, which claim nothing and only wait their turn; what is too much is told."""
    monkeypatch.setattr(oneeach, "_MOST_UNCLAIMED", 3)
    stage = Stage()
    inbox = stage.inbox()
    each = oneeach.OneEach(stage.broker, ("a",), inbox)
    await stage.broker.enter(["a"], each.sinks["a"])
    stage.hear(encode(b"first", message_id="1"))
    for number in range(5):
        stage.hear(b"%d" % number)
    stage.hear(encode(b"last", message_id="2"))
    assert each.pending <= 3 + 1, "a gap stands in the line too"
    assert len(stage.messenger.claims) == 1
    stage.messenger.claims[0].set_result(True)
    assert taken(inbox) == ["first", "0", "1", "claim 4"]
    assert each.pending == 0
    await stage.broker.close()
