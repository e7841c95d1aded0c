"""Libpq closes its socket by itself when a connection fails; whoever gets its number next is not harmed by that."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from pgconcert.postgres.link import statement
from pgconcert.testing import eventually_async
from tests.postgres.scenes import link_to
from tests.servers import Server

pytestmark = pytest.mark.both_loops


async def test_a_number_that_is_used_again(database: str) -> None:
    """The loop lets go of our copy, not of the stranger that has libpq's old number; uvloop would abort the process."""
    loop = asyncio.get_running_loop()
    link, ear = await link_to(database)
    here, there = socket.socketpair()
    with here, there:
        number = link._pg.socket
        link._pg.finish()  # as libpq does inside a call that finds the connection dead
        os.dup2(here.fileno(), number)
        heard = asyncio.Event()
        loop.add_reader(number, heard.set)
        link.close("it was found dead")
        await eventually_async(lambda: bool(ear.lost))
        there.send(b"x")
        await asyncio.wait_for(heard.wait(), 10)
        loop.remove_reader(number)
        os.close(number)


async def test_nothing_stays_open(database: str) -> None:
    """The copy goes with the link: the server's session ends at once, and no descriptor is left."""
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(5):
        link, _ = await link_to(database)
        link.close("enough")
    assert len([*Path("/proc/self/fd").iterdir()]) <= before


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has no such bound")
async def test_little_waits_unsent(server: Server, database: str) -> None:
    """The kernel takes a large statement piece by piece, so that a slow network gives signs of life in between."""
    link, _ = await link_to(server.over_tcp(database))
    try:
        with socket.socket(fileno=os.dup(link._pg.socket)) as again:
            assert again.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 65536
        before = link.signs
        size = 2**24
        answer = await link.execute(statement("select length($1)"), (b"x" * size,))
        assert answer == [(b"%d" % size,)]
        assert link.signs > before + 1, "some came before the answer"
    finally:
        link.close("enough")
