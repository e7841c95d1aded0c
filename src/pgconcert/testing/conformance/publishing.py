"""Cases of messages: what is sent is what arrives, to whom, in which order, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

from ... import AsyncCoordinator, BrokerClosed, ChannelInvalid, ConfigurationError, Message, PayloadInvalid
from .reading import texts, up_to
from .suite import Stage, cancelled_everywhere, case, raises, turns


@case("messages")
async def with_no_listener_a_message_is_dropped(stage: Stage) -> None:
    """Publishing to nobody succeeds, and who comes later does not get it."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    await a.publish(channel, "early")
    async with b.subscribe(channel) as messages:
        await a.publish(channel, "late")
        assert await texts(messages, 1) == ["late"]


@case("messages")
async def what_is_sent_arrives(stage: Stage) -> None:
    """Text, bytes, nothing and JSON arrive as they were sent, with the channel, and whether it is our own."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    sent: list[bytes | str] = ["text", "", "ü€𝄞\n\t'\"\\", b"\x00\xff\xfe", bytes(range(256)), b"pgconcert:1 {}\nx"]
    async with a.subscribe(channel) as own, b.subscribe(channel) as messages:
        for payload in sent:
            await a.publish(channel, payload)
        await a.publish(channel, bytearray(b"array"))
        await a.publish(channel, json={"a": [1, None, "ü"]})
        for payload in [*sent, b"array"]:
            message = await messages.get()
            assert message.payload == (payload.encode() if isinstance(payload, str) else payload)
            assert (message.channel, message.own, message.malformed) == (channel, False, None)
        assert (await messages.get()).json() == {"a": [1, None, "ü"]}
        assert (await own.get()).own


@case("messages")
async def equal_messages_all_arrive(stage: Stage) -> None:
    """Twenty tasks that publish one text twenty times each make four hundred deliveries."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()

    async def publish() -> None:
        for _ in range(20):
            await a.publish(channel, "same")

    async with b.subscribe(channel) as messages:
        await asyncio.gather(*(publish() for _ in range(20)))
        await a.publish(channel, "end")
        assert await up_to(messages, "end") == ["same"] * 400


@case("messages")
async def order_is_kept(stage: Stage) -> None:
    """What one task sends arrives in its order, sent singly or many at once, whatever else is sent."""
    a, b = await stage.open(), await stage.open()
    channel, other = stage.channel(), stage.channel()

    async def noise() -> None:
        for _ in range(100):
            await a.publish(other, "noise")

    async with b.subscribe(channel) as messages:
        noises = asyncio.create_task(noise())
        for number in range(100):
            await a.publish(channel, str(number))
        await a.publish_many([(channel, str(number)) for number in range(100, 300)])
        assert await texts(messages, 300) == [str(number) for number in range(300)]
        await noises


@case("messages")
async def everybody_gets_a_copy(stage: Stage) -> None:
    """All subscribers of a channel get its messages, in one coordinator and in several, and no other's."""
    a, b = await stage.open(), await stage.open()
    channel, other = stage.channel(), stage.channel()
    async with (
        a.subscribe(channel) as one,
        b.subscribe(channel) as two,
        b.subscribe(channel, other) as three,
        b.subscribe(other) as four,
    ):
        await a.publish(channel, "1")
        await a.publish(other, "2")
        for messages in (one, two):
            assert await texts(messages, 1) == ["1"]
        assert sorted(await texts(three, 2)) == ["1", "2"]
        assert await texts(four, 1) == ["2"]
        await stage.settle()
        assert not any(messages.statistics.queued for messages in (one, two, three, four))


@case("messages")
async def who_has_left_gets_nothing_and_others_go_on(stage: Stage) -> None:
    """A closed subscription gets nothing more, whoever iterates over it comes to the end, and others are unharmed."""
    a = await stage.open()
    channel = stage.channel()
    async with a.subscribe(channel) as stays:
        leaves = a.subscribe(channel)
        async with leaves:
            reader = await stage.waiting(_all(leaves))
        assert await reader == []
        await leaves.close()
        await a.publish(channel, "x")
        assert await texts(stays, 1) == ["x"]
        assert leaves.statistics.received == 0
        with raises(BrokerClosed):
            await leaves.get()


async def _all(messages: Any) -> list[str]:
    return [message.text async for message in messages]


@case("messages")
async def a_new_channel_knows_nothing_of_the_old_one(stage: Stage) -> None:
    """Who leaves one channel and enters another never gets a message of the first."""
    a, b = await stage.open(), await stage.open()
    old, new = stage.channel(), stage.channel()
    async with b.subscribe(old):
        await a.publish(old, "old")
    async with b.subscribe(new) as messages:
        await a.publish(old, "old")
        await a.publish(new, "new")
        assert await texts(messages, 1) == ["new"]


@case("messages")
async def nothing_is_lost_after_entry(stage: Stage) -> None:
    """Forty times in and out, under a flood of messages: everything from the entry on is there, without a hole."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    ended = False

    async def flood() -> None:
        number = 0
        while not ended:
            await a.publish(channel, str(number))
            await turns(1)  # where publishing takes no time, it gives nobody else a turn
            number += 1

    flooding = asyncio.create_task(flood())
    for _ in range(40):
        async with b.subscribe(channel, gaps="yield") as messages:
            found = [await messages.get() for _ in range(5)]
            numbers = [int(message.text) for message in found if isinstance(message, Message)]
            assert numbers == [*range(numbers[0], numbers[0] + 5)]
    ended = True
    await flooding


@case("messages")
async def nothing_works_after_the_close(stage: Stage) -> None:
    """After its coordinator is closed everything about messages raises ``BrokerClosed``; closing again is no error."""
    a = await stage.open()
    channel = stage.channel()
    messages = a.subscribe(channel)
    async with messages:
        await a.publish(channel, "queued")
        while not messages.statistics.received:
            await stage.settle()
        await a.close()
        reader = asyncio.create_task(_read_to_the_end(messages))
        found, end = await reader
        assert isinstance(end, BrokerClosed)
        assert found == ["queued"]
    await a.close()
    for use in (a.publish(channel, "x"), a.publish_many([(channel, "x")]), a.request(channel), a.notify(channel, "x")):
        with raises(BrokerClosed):
            await use
    for make in (lambda: a.subscribe(channel), lambda: a.listen({channel: print}), a.bounce):
        with raises(BrokerClosed):
            make()


async def _read_to_the_end(messages: Any) -> tuple[list[str], Exception | None]:
    found: list[str] = []
    try:
        async for message in messages:
            found.append(message.text)  # noqa: PERF401 - what was found before the error counts
    except BrokerClosed as error:
        return found, error
    return found, None


@case("messages")
async def names_are_used_as_they_are(stage: Stage) -> None:
    """Every text of 1 to 63 bytes is a channel of its own: quotes, blanks, upper case, other scripts."""
    a, b = await stage.open(), await stage.open()
    unique = stage.channel()[:16]
    names = [unique, unique.upper(), f'{unique}"', f"{unique}'", f"{unique} ;--", f"{unique}ü€𝄞"]
    names += [unique.ljust(63, "x"), unique.ljust(62, "x"), f"{unique}{'ü' * 23}"]
    async with b.subscribe(*names) as messages:
        for name in names:
            await a.publish(name, name)
        found = [await messages.get() for _ in names]
        assert all(message.channel == message.text for message in found)
        assert sorted(message.channel for message in found) == sorted(names)


@case("messages")
async def what_is_no_channel_is_refused(stage: Stage) -> None:
    """A name that the server would cut off or not know is refused before anything is sent, and so are our own."""
    a = await stage.open()
    bad: list[Any] = ["", "x" * 64, "ü" * 32, "nul\0", "lone\ud800", "pgconcert:x", None, 1, b"bytes"]
    for name in bad:
        with raises(ChannelInvalid):
            a.subscribe(name)
        with raises(ChannelInvalid):
            _ = a.listen({name: print})
        with raises(ChannelInvalid):
            await a.publish(name, "x")
    with raises(ConfigurationError, "at least one channel"):
        a.subscribe()


@case("messages")
async def what_is_no_payload_is_refused(stage: Stage) -> None:
    """Neither text nor bytes, text that cannot be encoded, what has no JSON form: refused, and nothing is sent."""
    a = await stage.open()
    channel = stage.channel()
    bad: list[Any] = [None, 1, {"a": 1}, "lone\ud800"]
    async with a.subscribe(channel) as messages:
        for payload in bad:
            with raises(PayloadInvalid):
                await a.publish(channel, payload)
            with raises(PayloadInvalid):
                await a.publish_many([(channel, "good"), (channel, payload)])
        for value in (object(), float("nan"), {1, 2}):
            with raises(PayloadInvalid):
                await a.publish(channel, json=value)
        with raises(ConfigurationError, "not both"):
            await a.publish(channel, "x", json={})
        with raises(PayloadInvalid):
            await a.publish(channel, headers={"a": 1})  # type: ignore[dict-item]
        await a.publish(channel, "end")
        assert await texts(messages, 1) == ["end"]


@case("messages")
async def ids_and_headers_travel(stage: Stage) -> None:
    """A message can carry an id, of its own or given, and headers; none of them makes one."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel) as messages:
        await a.publish(channel, "x", id=True, headers={"trace": "ü"})
        await a.publish(channel, "x", id=True)
        await a.publish(channel, b"\xff", id="mine")
        await a.publish(channel, "x")
        one, two, three, four = [await messages.get() for _ in range(4)]
        assert dict(one.headers) == {"trace": "ü"}
        assert one.id
        assert two.id
        assert one.id != two.id
        assert (three.id, three.payload) == ("mine", b"\xff")
        assert (four.id, dict(four.headers)) == (None, {})


@case("messages")
async def the_longest_notification_arrives(stage: Stage) -> None:
    """7,999 bytes of text travel as they are."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel) as messages:
        for payload in ("x" * 7998, "x" * 7999, "ü" * 3999 + "x"):
            await a.publish(channel, payload)
            assert (await messages.get()).text == payload


@case("messages", "payloads")
async def large_payloads_reach_everybody(stage: Stage) -> None:
    """What is too large for a notification reaches every subscriber, in its place among the others."""
    a, b, c = await stage.open(), await stage.open(), await stage.open()
    channel = stage.channel()
    sent: list[str | bytes] = ["small", "x" * 8000, "small", bytes(range(256)) * 400, "y" * 1_000_000, "small"]
    async with b.subscribe(channel) as one, c.subscribe(channel) as two, c.subscribe(channel) as three:
        for payload in sent[:3]:
            await a.publish(channel, payload)
        await a.publish_many([(channel, payload) for payload in sent[3:]])
        for messages in (one, two, three):
            for payload in sent:
                got = (await messages.get()).payload
                assert got == (payload.encode() if isinstance(payload, str) else payload)


@case("messages")
async def our_own_can_be_left_out(stage: Stage) -> None:
    """With ``skip_own`` a coordinator's own messages do not come, sent plain or in an envelope; others' do."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with a.subscribe(channel, skip_own=True) as messages:
        await a.publish(channel, "own")
        await a.publish(channel, "own", id=True)
        await b.publish(channel, "other")
        await b.publish(channel, "other", id=True)
        assert await texts(messages, 2) == ["other", "other"]


@case("messages")
async def who_leaves_while_entering_leaves_nothing(stage: Stage) -> None:
    """Cancelled at any of its awaits, an entry leaves nothing behind, and the next one works."""
    a = await stage.open()
    channel = stage.channel()

    async def enter() -> AsyncCoordinator:
        async with a.subscribe(channel) as messages:
            await a.publish(channel, "x")
            assert await texts(messages, 1) == ["x"]
        return a

    async for _ in cancelled_everywhere(enter):
        pass
    await enter()


@case("messages")
async def a_cancelled_wait_takes_nothing(stage: Stage) -> None:
    """Whoever is cancelled while it waits for a message leaves it to the next; a wait can have a limit."""
    a = await stage.open()
    channel = stage.channel()
    async with a.subscribe(channel) as messages:
        with raises(TimeoutError):
            await messages.get(timeout=0.01)
        leaving, staying = await stage.waiting(messages.get()), await stage.waiting(messages.get())
        await a.publish(channel, "1")
        leaving.cancel()
        await asyncio.wait([leaving])
        if leaving.cancelled():
            assert (await staying).text == "1", "what a cancelled waiter left was not given to the next"
        else:
            assert leaving.result().text == "1"
            staying.cancel()
            await asyncio.wait([staying])
        await a.publish(channel, "2")
        rest = await messages.get()
        assert rest.text == "2"


@case("messages")
async def a_cancelled_publish_ends(stage: Stage) -> None:
    """Cancelled at any of its awaits, publishing ends at once; the message was sent or not, once, and the next one goes
    out as ever."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel) as messages:
        numbers = iter(range(1000))
        async for _ in cancelled_everywhere(lambda: a.publish(channel, str(next(numbers)))):
            pass
        async for _ in cancelled_everywhere(lambda: a.publish(channel, str(next(numbers)), id=True)):
            pass
        await a.publish(channel, "end")
        sent = [int(text) for text in await up_to(messages, "end")]
        assert sent == sorted({*sent}), f"sent twice, or out of order: {sent}"
        assert {*sent} <= {*range(next(numbers))}
