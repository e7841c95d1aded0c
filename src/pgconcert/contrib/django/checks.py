"""What ``manage.py check`` finds out: the settings always, our tables when a database is checked (``--database``).

``pgconcert.E001``: the setting is wrong. ``pgconcert.W001``: the tables are missing, or old. ``pgconcert.W002``: the
database could not be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from django.core.checks import CheckMessage, Error, Warning  # noqa: A004

from ...conninfo import AddressSource
from ...errors import PgconcertError
from ...events import EventStream
from ...postgres import schema as tables
from ...postgres.context import Context
from .conf import conf, problems, text_address

__all__ = ["check_settings", "check_tables"]

_CONNECT_TIMEOUT: Final = 10.0
_NETWORK_TIMEOUT: Final = 10.0


def check_settings(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """The setting ``PGCONCERT``, without any connection."""
    return [Error(problem, id="pgconcert.E001") for problem in problems()]


def check_tables(app_configs: Any, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Whether our tables are there, if the database is one of those to be checked."""
    if problems() or conf().database not in (databases or ()):
        return []
    ours = conf()
    if ours.address is not None:
        return []  # the tables are wherever that leads to
    try:
        found = asyncio.run(_look(text_address(ours.database), ours.schema))
    except PgconcertError as error:
        return [Warning(f"the tables of pgconcert could not be looked for: {error}", id="pgconcert.W002")]
    if not found.missing:
        return []
    return [
        Warning(
            f"the tables of pgconcert in schema {ours.schema!r} of the database {ours.database!r} are {found.verdict}",
            hint="locks and plain messages need none; for all else run: manage.py pgconcert schema apply",
            id="pgconcert.W001",
        )
    ]


async def _look(address: str, schema: str) -> tables.Found:
    context = Context(
        address=AddressSource(address),
        direct_address=None,
        name="pgconcert check",
        network_timeout=_NETWORK_TIMEOUT,
        connect_timeout=_CONNECT_TIMEOUT,
        events=EventStream(),
        loop=asyncio.get_running_loop(),
    )
    async with tables.visit(context) as link:
        return await tables.look(link, schema)
