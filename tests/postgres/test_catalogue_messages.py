"""The acceptance catalogue of messages: what others got wrong, or promise, and which test of ours shows it.

Here lives the table, and those tests of messages that need to look at a server, or are about what only a server does;
those of connections stand in `test_catalogue_connections.py`. A name with a dot is a case of the conformance suite
(which runs over memory and over every server), one with a path stands in another file, a bare one below. What follows a
dash is why there is no test, or what is meant by it.

B1: test_a_burst_to_one_handler_and_to_many, publishing.order_is_kept
B2: asking.with_nobody_there_it_ends_in_time, asking.a_reply_is_what_the_handler_returns,
    asking.of_three_the_first_counts
B3: test_a_thousand_requests_leave_nothing, asking.two_hundred_requests_leave_nothing
B4: test_a_reply_too_large_is_an_error_at_the_requester, asking.replies_may_be_large
B5: handling.what_handlers_raise_is_contained, asking.what_a_responder_raises_is_told
B6: test_what_may_be_sent_is_the_same_everywhere, test_without_tables_a_notification_is_the_limit
B7: test_json_that_is_none, fanning.what_cannot_be_decoded_is_isolated
B8: publishing.a_new_channel_knows_nothing_of_the_old_one
B9: test_fifty_channels_are_one_session
B10: test_a_transaction_of_the_callers,
    tests/postgres/test_fanout_connections.py::test_a_value_goes_with_the_callers_transaction
B11: hearing.two_subscriptions_of_a_channel_ride_through, publishing.who_has_left_gets_nothing_and_others_go_on
B12: tests/conformance/test_conformance.py::test_memory, tests/postgres/test_conformance.py::test_postgres
B13: receiving.payloads_are_nobody_elses
B14: test_used_too_early_and_too_late, publishing.nothing_works_after_the_close,
    ending.one_that_was_never_opened_can_be_closed
C1: hearing.what_was_missed_is_covered, tests/postgres/test_messenger.py::test_killed_under_flood
C2: tests/postgres/test_listener.py::test_server_restart, tests/faults/test_message_losses.py::test_a_restart_under_load
C3: hearing.hooks_run_when_listening_is_proven, hearing.hooks_run_again_after_a_loss
C4: tests/postgres/test_catalogue_connections.py::test_listening_in_the_hook
C5: tests/postgres/test_catalogue_connections.py::test_a_limit_of_attempts_is_exact
C6: tests/postgres/test_pulse.py::test_a_stuck_ear_does_not_delay_the_proof,
    tests/postgres/test_catalogue_connections.py::test_a_dead_pinger_is_no_deafness
C7: tests/postgres/test_catalogue_connections.py::test_pings_that_make_no_sense
C8: hearing.bounces_are_one, tests/postgres/test_listen_links.py::test_bounce_while_connecting_does_nothing
C9: fanning.the_wire_ends_a_streak, fanning.a_streak_of_finds_bounces
F3: delivering.equal_payloads_are_different_messages, publishing.equal_messages_all_arrive
LA-T1: exclusion.two_coordinators_exclude_each_other
LA-T2: exclusion.two_coordinators_exclude_each_other, exclusion.a_try_does_not_wait
LA-T3: handling.handlers_get_messages_in_order
LA-T4: ending.listening_can_be_awaited, ending.leaving_while_it_is_opened_leaves_nothing
LA-T5: publishing.nothing_is_lost_after_entry
LA-T6: asking.a_reply_is_what_the_handler_returns
LA-T7: asking.what_a_responder_raises_is_told
LA-T8: asking.with_nobody_there_it_ends_in_time
LA-T9: tests/conformance/test_conformance.py::test_memory, tests/postgres/test_conformance.py::test_postgres
EL-T1: fanning.a_full_listener_starves_nobody
EL-T2: receiving.a_full_queue_can_be_the_end, fanning.a_full_listener_starves_nobody
EL-T3: fanning.values_there_and_back
EL-T4: fanning.what_cannot_be_decoded_is_isolated
EL-T5: fanning.overflow_is_raised_to_who_delivers
EL-T6: receiving.wrong_settings_are_refused, publishing.what_is_sent_arrives
EL-T7: fanning.a_streak_of_finds_bounces
EL-T8: fanning.the_wire_ends_a_streak
EL-T9: fanning.the_wire_ends_a_streak
EL-T10: fanning.a_streak_of_finds_bounces
EL-T11: fanning.a_streak_of_finds_bounces
EL-T12: fanning.recovery_can_be_set_anew - as statistics and the event PollFound; no library of metrics is assumed
TB-T1: publishing.with_no_listener_a_message_is_dropped
TB-T2: publishing.what_is_sent_arrives
TB-T3: publishing.everybody_gets_a_copy
TB-T4: publishing.everybody_gets_a_copy, publishing.a_new_channel_knows_nothing_of_the_old_one
TB-T5: publishing.who_has_left_gets_nothing_and_others_go_on, publishing.who_leaves_while_entering_leaves_nothing
TB-T6: publishing.a_cancelled_publish_ends
TB-T7: publishing.nothing_works_after_the_close
TB-T8: receiving.payloads_are_nobody_elses
PS-T1: - a coordinator is given an address, never a client
PS-T2: hearing.a_lost_connection_is_told_to_every_subscriber
PS-T3: tests/postgres/test_catalogue_connections.py::test_ready_is_told_once_after_failed_attempts,
    tests/postgres/test_catalogue_connections.py::test_a_limit_of_attempts_is_exact
PS-T4: hearing.two_subscriptions_of_a_channel_ride_through, hearing.a_lost_connection_is_told_to_every_subscriber
PS-T5: tests/postgres/test_catalogue_connections.py::test_closing_ends_the_attempts
PS-T6: tests/postgres/test_listener.py::test_odd_names, tests/postgres/test_listener.py::test_unlisten_lingers
PS-T7: delivering.one_process_gets_everything, delivering.each_message_is_handled_once,
    handling.catch_all_gets_everything
PS-T8: delivering.the_next_takes_over, delivering.entering_is_bounded_and_leaves_nothing
PS-T9: tests/postgres/test_publisher.py::test_odd_texts
PS-T10: delivering.each_channel_has_its_own_turn, delivering.one_process_gets_everything
PS-T11: tests/unit/test_channel_lock.py::test_release_without_it, tests/unit/test_channel_lock_life.py::test_all_of_them
PS-T12: publishing.our_own_can_be_left_out, tests/postgres/test_messenger.py::test_own_outlives_the_link
PS-T13: tests/unit/test_channel_lock_life.py::test_destroying_one_leaves_another_working
PS-T14: tests/unit/test_channel_lock.py::test_handlers_stay_when_it_stands_by_again,
    tests/unit/test_channel_lock.py::test_free_and_busy
PS-T15: tests/faults/test_shutdown.py::test_locks_are_free_and_the_status_is_the_programs,
    tests/faults/test_shutdown.py::test_a_closing_that_fails
PS-T16: tests/unit/test_envelope.py::test_what_has_no_json_form, publishing.what_is_no_payload_is_refused
PS-T17: publishing.what_is_sent_arrives
PS-T18: delivering.the_next_takes_over, delivering.one_process_gets_everything
PS-T19: tests/postgres/test_catalogue_connections.py::test_alone_it_is_active_again
PS-T20: tests/postgres/test_catalogue_connections.py::test_fifty_messages_and_three_that_have_just_come,
    delivering.each_message_is_handled_once
PS-T21: tests/postgres/test_catalogue_connections.py::test_one_that_is_closed_leaves_another_working
PS-T22: test_without_tables_a_notification_is_the_limit
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgconcert import (
    AsyncCoordinator,
    BrokerClosed,
    CoordinatorClosed,
    DecodeFailed,
    PayloadInvalid,
    PayloadTooLarge,
    RequestFailed,
)
from pgconcert.testing import eventually_async
from pgconcert.testing.conformance import cases
from tests.postgres.scenes import QUIET, role_pids, statements
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables(server: Server) -> Iterator[str]:
    """The URL of a database with our tables."""
    with database_with_tables(server) as url:
        yield url


@pytest.fixture(params=["memory", "postgres"])
def transport(request: pytest.FixtureRequest, tables: str) -> str:
    """An address on each transport."""
    return tables if request.param == "postgres" else f"memory://{secrets.token_hex(8)}"


# the table


def catalogue() -> dict[str, str]:
    """What is said about each item."""
    lines = (__doc__ or "").replace("\n    ", " ")
    return dict(re.findall(r"^([A-Z-]+T?\d+): (.*)$", lines, re.MULTILINE))


def test_every_item_is_in_the_table() -> None:
    """None is forgotten."""
    wanted = {"B": 14, "C": 9, "LA-T": 9, "EL-T": 12, "TB-T": 8, "PS-T": 22}
    assert [*catalogue()] == [
        *(f"B{number}" for number in range(1, 15)),
        *(f"C{number}" for number in range(1, 10)),
        "F3",
        *(f"{kind}{number}" for kind in ("LA-T", "EL-T", "TB-T", "PS-T") for number in range(1, wanted[kind] + 1)),
    ]


@pytest.mark.parametrize(("item", "said"), catalogue().items())
def test_every_name_in_the_table_exists(item: str, said: str) -> None:
    """Each case and each test is there."""
    names, _, reason = said.partition("- ")
    known = {str(case) for case in cases()}
    for name in filter(None, (part.strip() for part in names.split(","))):
        path, _, test = name.rpartition("::")
        if not path and "." in name:
            assert name in known, f"{item}: there is no case {name}"
        else:
            text = (ROOT / path).read_text() if path else Path(__file__).read_text()
            assert re.search(rf"^(async )?def {re.escape(test)}\(", text, re.MULTILINE), f"{item}: no test {name}"
    assert names.strip() or reason


# messages


async def test_a_burst_to_one_handler_and_to_many(database: str) -> None:
    """B1: a thousand messages at once to one handler, and to ten: all arrive, in order, and the listener lives on."""
    async with AsyncCoordinator(database) as a, AsyncCoordinator(database) as b:
        heard: list[list[str]] = [[] for _ in range(11)]
        listenings = [
            await b.listen({"burst": lambda message, place=place: heard[place].append(message.text)})  # type: ignore[misc]
            for place in range(11)
        ]
        await asyncio.gather(*(a.publish("burst", str(number)) for number in range(1000)))
        await a.publish("burst", "end")
        await eventually_async(lambda: all(texts[-1:] == ["end"] for texts in heard), 60, what="all were handled")
        for texts in heard:
            assert texts == [*map(str, range(1000)), "end"]
        for listening in listenings[1:]:
            await listening.close()
        await a.publish("burst", "more")
        await eventually_async(lambda: heard[0][-1] == "more", what="the first one lives on")


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.long)])
async def test_a_thousand_requests_leave_nothing(server: Server, database: str, count: int) -> None:
    """B3: a thousand requests need one channel for replies, one LISTEN, no further session and no further task."""
    async with (
        AsyncCoordinator(database, network_timeout=QUIET) as a,
        AsyncCoordinator(database, network_timeout=QUIET) as b,
        b.listen({"echo": lambda message: message.payload}),
    ):
        messenger: Any = a.backend.messenger
        listen, unlisten = messenger.listen, messenger.unlisten
        registered: list[str] = []
        ever: set[str] = set()

        def registering(channel: str, ear: Any) -> None:
            registered.append(channel)
            ever.add(channel)
            listen(channel, ear)

        def leaving(channel: str, ear: Any) -> None:
            registered.remove(channel)
            unlisten(channel, ear)

        messenger.listen, messenger.unlisten = registering, leaving
        await a.request("echo", "first")
        await eventually_async(lambda: not registered, what="nothing is registered between requests")
        tasks = {*asyncio.all_tasks()}
        sessions = {session.pid for session in server.sessions()}
        sent = statements(a, "listen")
        for number in range(count):
            assert (await a.request("echo", str(number))).text == str(number)
        await eventually_async(lambda: not registered, what="nothing is registered afterwards")
        assert len(ever) == 1
        assert statements(a, "listen") == sent, "a request has sent a LISTEN of its own"
        assert {session.pid for session in server.sessions()} <= sessions
        await eventually_async(lambda: {*asyncio.all_tasks()} <= tasks, what="no task is left")


async def test_a_reply_too_large_is_an_error_at_the_requester(database: str) -> None:
    """B4: where there are no tables a large reply is an error at once, which says what is missing, and no time-out."""
    async with (
        AsyncCoordinator(database) as a,
        AsyncCoordinator(database) as b,
        b.listen({"large": lambda message: b"x" * 9000}),
    ):
        with pytest.raises(RequestFailed, match="9000 bytes"):
            await a.request("large", timeout=30)


@pytest.mark.parametrize(
    "payload",
    ["x" * 7999, "x" * 8000, "ü" * 3999 + "x", "ü" * 4000, "a\0b", b"\xff\xfe", b"\x00" * 7999, "", b"pgconcert:1 {"],
    ids=[
        "7999",
        "8000",
        "7999 not ASCII",
        "8000 not ASCII",
        "NUL",
        "no UTF-8",
        "only NUL",
        "nothing",
        "looks like ours",
    ],
)
async def test_what_may_be_sent_is_the_same_everywhere(transport: str, unique: str, payload: str | bytes) -> None:
    """B6: whatever its size and its bytes, a payload arrives as it was sent."""
    async with AsyncCoordinator(transport) as a, AsyncCoordinator(transport) as b:
        async with b.subscribe(unique[-40:]) as messages:
            await a.publish(unique[-40:], payload)
            assert (await messages.get(30)).payload == (payload.encode() if isinstance(payload, str) else payload)
            nothing: Any = None
            with pytest.raises(PayloadInvalid):
                await a.publish(unique[-40:], nothing)
            with pytest.raises(PayloadInvalid):
                await a.publish(unique[-40:], "lone\ud800")


async def test_without_tables_a_notification_is_the_limit(database: str) -> None:
    """B6, PS-T22: without our tables 7,999 bytes arrive, and 8,000 are refused before anything is sent."""
    async with AsyncCoordinator(database) as c, c.subscribe("limit") as messages:
        for payload in ("x" * 7999, "ü" * 3999 + "x"):
            await c.publish("limit", payload)
            assert (await messages.get(30)).text == payload
        sent = statements(c, "publish")
        for large in ("x" * 8000, "ü" * 4000, b"\x00" * 7999):
            with pytest.raises(PayloadTooLarge, match="pgconcert schema apply"):
                await c.publish("limit", large)
        assert statements(c, "publish") == sent
        await c.publish("limit", "end")
        assert (await messages.get(30)).text == "end"


async def test_json_that_is_none(transport: str, unique: str) -> None:
    """B7: what is no JSON says so when it is read as such, and its text can be had; JSON's null is None."""
    async with AsyncCoordinator(transport) as c, c.subscribe(unique[-40:]) as messages:
        for payload in ("no JSON", "", "null", b"\xff"):
            await c.publish(unique[-40:], payload)
        one, two, three, four = [await messages.get(30) for _ in range(4)]
        for message in (one, two, four):
            with pytest.raises(DecodeFailed) as failed:
                message.json()
            assert failed.value.raw == message.payload
        assert (one.text, two.text) == ("no JSON", "")
        assert three.json() is None
        with pytest.raises(DecodeFailed):
            _ = four.text


async def test_fifty_channels_are_one_session(server: Server, database: str) -> None:
    """B9: fifty channels, each with two subscribers, and a handler for each, are heard on one connection."""
    async with AsyncCoordinator(database, name="fifty channels") as c:
        names = [f"channel {number}" for number in range(50)]
        subscriptions = [c.subscribe(name) for name in names * 2]
        await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
        async with c.listen({name: lambda message: None for name in names}):
            await c.publish_many([(name, name) for name in names])
            for subscription in subscriptions:
                assert (await subscription.get(30)).text == subscription.channels[0]
            assert len(role_pids(c, "listen")) == 1
            there = [session for session in server.sessions() if session.application_name.startswith("fifty channels")]
            # one that listens, one that publishes
            assert len(there) == 2, there
        for subscription in subscriptions:
            await subscription.close()


async def test_a_transaction_of_the_callers(database: str) -> None:
    """B10: on the caller's connection nothing is sent by a transaction that is rolled back, and what one publishes
    twice is delivered once, as the server does it; in two transactions it is delivered twice."""
    async with AsyncCoordinator(database) as c:
        texts = c.fanout("in a transaction", str)
        async with texts.subscribe() as listener, await psycopg.AsyncConnection.connect(database) as connection:
            await texts.publish("never", connection)
            await connection.rollback()
            for _ in range(2):
                await texts.publish("twice", connection)
                await texts.publish("twice", connection)
                await connection.commit()
            await texts.publish("end")
            assert [await listener.get(30) for _ in range(3)] == ["twice", "twice", "end"]


async def test_used_too_early_and_too_late(transport: str) -> None:
    """B14: before it is open and after it is closed a coordinator says so, by errors that are documented."""
    c = AsyncCoordinator(transport)
    for _ in range(2):
        for use in (c.publish("channel"), c.request("channel"), c.publish_many([])):
            with pytest.raises(CoordinatorClosed):
                await use
        for make in (lambda: c.subscribe("channel"), c.bounce, lambda: c.fanout("channel", str), lambda: c.listening):
            with pytest.raises(CoordinatorClosed):
                make()
        if _ == 0:
            await c.open()
            await c.close()
            await c.close()
    with pytest.raises(BrokerClosed):
        await c.publish("channel")
