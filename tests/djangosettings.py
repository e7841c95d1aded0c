"""Django inside the process of the tests, which it may be configured in only once.

Here live the settings that all tests share, an alias or a project for the time of a test, and its command line. The
default database is none, so that whoever forgets to name one finds out.
"""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Iterator
from typing import Any

from psycopg.conninfo import conninfo_to_dict

SECRET = "not-to-be-shown"

_KEYS = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}


def setup_django() -> None:
    """Configure Django and load its applications; again it does nothing."""
    import django
    from django.apps import apps
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            SECRET_KEY="a test has no secrets",
            DATABASES={"default": {"ENGINE": "django.db.backends.dummy"}},
            INSTALLED_APPS=["pgconcert.contrib.django"],
            USE_TZ=True,
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            LOGGING_CONFIG=None,  # logging belongs to the tests
        )
    if not apps.ready:
        django.setup()


def database_settings(url: str) -> dict[str, Any]:
    """The entry of ``DATABASES`` for an address."""
    given = conninfo_to_dict(url)
    known = {_KEYS[key]: str(given.pop(key)) for key in [*given] if key in _KEYS}
    return {"ENGINE": "django.db.backends.postgresql", **known, "OPTIONS": given}


@contextlib.contextmanager
def alias(url: str, name: str | None = None, **settings: Any) -> Iterator[str]:
    """An alias of Django's databases, there until the end of the block; the connection of this thread is closed then.

    A connection that another thread opened (connections belong to threads) is closed by that thread:
    ``connections[alias].close()``.

    :param settings: more of its entry, for example ``AUTOCOMMIT=False`` or ``CONN_MAX_AGE=60``.
    """
    setup_django()
    from django.db import connections

    name = name or f"test_{secrets.token_hex(4)}"
    databases: Any = connections.settings  # its type is that of a property, for some checkers
    databases[name] = connections.configure_settings({**databases, name: database_settings(url) | settings})[name]
    try:
        yield name
    finally:
        with contextlib.suppress(AttributeError):
            connections[name].close()
            del connections[name]
        del databases[name]


@contextlib.contextmanager
def project(url: str, **settings: Any) -> Iterator[str]:
    """An alias that the setting ``PGCONCERT`` names, with a password that nobody needs and nobody may show.

    :param settings: more of ``PGCONCERT``.
    """
    with alias(url, PASSWORD=SECRET) as name:
        from django.test import override_settings

        with override_settings(PGCONCERT={"DATABASE": name, **settings}):
            yield name


def said(*command: str) -> str:
    """What ``manage.py pgconcert`` writes. Raises ``SystemExit`` with a code that is not 0."""
    from django.core.management import call_command

    out = io.StringIO()
    call_command("pgconcert", *command, stdout=out)
    return out.getvalue()
