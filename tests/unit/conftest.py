"""Fixtures of the tests without a database: an echo server, and the fault proxy before it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pgconcert.testing import FaultProxy
from tests.unit.echo import Echo


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo(socket.create_server(("127.0.0.1", 0)))
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as running:
        yield running
