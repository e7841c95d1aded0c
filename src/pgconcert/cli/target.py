"""Where a command that looks at a server finds it: the options that such commands share, and what they come to.

A command never starts a server by itself: two machines that each looked at one of their own would see nothing. Only an
``embedded:`` address that somebody wrote down starts one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from ..conninfo import AddressSource, environment_address, not_empty

__all__ = ["direct_url_option", "namespace_option", "reachable", "url_option"]

url_option: Final = click.option(
    "--url",
    metavar="ADDRESS",
    help="The server; else PGCONCERT_URL, DATABASE_URL, or libpq's variables.",
)
direct_url_option: Final = click.option(
    "--direct-url", metavar="ADDRESS", help="The way around a transaction pooler, as direct_url= in programs."
)
namespace_option: Final = click.option(
    "--namespace", default="", metavar="TEXT", help="The coordinators' namespace, from which names derive."
)


@contextmanager
def reachable(url: str | None) -> Iterator[str]:
    """A connection string for the address that was given, or that the environment gives.

    Raises ``ConfigurationError`` if there is none or it cannot be read, ``EmbeddedServerError`` for what is embedded.
    """
    address = environment_address() if url is None else not_empty(url)
    if address is not None and address.startswith("embedded:"):
        from ..postgres.embedded import EmbeddedServer

        with EmbeddedServer.start(address) as server:
            yield server.url
        return
    AddressSource(address)  # says what is wrong with it
    yield address or ""
