"""What the settings of a Django project say: the dict ``PGCONCERT``, and the entry of ``DATABASES`` that it names.

Settings are read when they are first needed, never at import, and again after ``override_settings``. What is wrong with
them is told in sentences (``problems``), by ``manage.py check`` and by whoever needs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from psycopg.conninfo import make_conninfo

from ...blocking import Coordinator
from ...conninfo import Address, AddressSource, is_parameter
from ...coordinator import AsyncCoordinator
from ...errors import ConfigurationError, PgconcertError, given
from ...keys import KeySpace
from ...postgres.schemafiles import DEFAULT, checked

__all__ = ["Conf", "address_of", "conf", "parameters", "problems", "text_address"]

_KEYS: Final = ("DATABASE", "NAMESPACE", "SCHEMA", "ADDRESS", "COORDINATOR")
_SAID_ELSEWHERE: Final = {
    "address": "it is the database's own, or PGCONCERT['ADDRESS']",
    "namespace": "write PGCONCERT['NAMESPACE']",
    "schema": "write PGCONCERT['SCHEMA']",
    "backend": "write PGCONCERT['ADDRESS'], as memory://tests",
}


@dataclass(frozen=True, slots=True)
class Conf:
    """The setting ``PGCONCERT``, with what is left out filled in."""

    database: str = "default"
    """The alias whose server coordinates, where nobody says ``using=``."""
    namespace: str = ""
    schema: str = DEFAULT
    address: Address | None = None
    """An address instead of that of the alias: past a pooler, or ``memory://tests``."""
    coordinator: Mapping[str, Any] | None = None
    """More parameters of coordinators."""


@cache
def conf() -> Conf:
    """What the settings say. Raises ``ConfigurationError`` with everything that is wrong."""
    if wrong := problems():
        raise ConfigurationError("; ".join(wrong))
    given_settings: Mapping[str, Any] = getattr(settings, "PGCONCERT", {})
    return Conf(**{key.lower(): value for key, value in given_settings.items()})


def problems() -> list[str]:
    """What is wrong with the setting, in sentences that quote no address. Nothing is connected."""
    setting: object = getattr(settings, "PGCONCERT", {})
    if not isinstance(setting, Mapping):
        return [f"the setting PGCONCERT must be a dict, not {given(setting)}"]
    found = [
        f"PGCONCERT has no key {key!r}: it knows {', '.join(_KEYS)}" for key in setting if key not in _KEYS
    ] + _problems_of_coordinator(setting.get("COORDINATOR", {}))
    if (problem := _refused(lambda: KeySpace(setting.get("NAMESPACE", "")))) is not None:
        found.append(f"PGCONCERT['NAMESPACE']: {problem}")
    if (problem := _refused(lambda: checked(setting.get("SCHEMA", DEFAULT)))) is not None:
        found.append(f"PGCONCERT['SCHEMA']: {problem}")
    address = setting.get("ADDRESS")
    if address is None:
        problem = _refused(lambda: text_address(setting.get("DATABASE", "default"), "PGCONCERT['DATABASE']"))
    elif (problem := _refused(lambda: _check_address(address))) is not None:
        problem = f"PGCONCERT['ADDRESS']: {problem}"
    if problem is not None:
        found.append(problem)
    return found


def parameters(kind: type[Coordinator | AsyncCoordinator]) -> dict[str, Any]:
    """The parameters for a coordinator of one kind, without its address."""
    ours = conf()
    known = inspect.signature(kind).parameters
    more = {name: value for name, value in (ours.coordinator or {}).items() if name in known}
    return {"namespace": ours.namespace, "schema": ours.schema, **more}


def address_of(using: str | None) -> Address:
    """The address for a coordinator: of an alias, asked anew at every connect, because tests give a database another
    name, and a password may change. ``None``: what the settings say."""
    ours = conf()
    if using is None and ours.address is not None:
        return ours.address
    alias = using or ours.database
    text_address(alias)  # says now what is wrong with it
    return lambda: text_address(alias)


def text_address(alias: object, said: str = "using") -> str:
    """The connection string that Django would use; it may hold a password. Raises ``ConfigurationError``."""
    try:
        wanted = _connection(alias, said).get_connection_params()
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"the database {alias!r}: {error}") from error
    known = {name: str(value) for name, value in wanted.items() if value is not None and is_parameter(name)}
    known.pop("client_encoding", None)
    return make_conninfo("", **known)


def _connection(alias: object, said: str) -> Any:
    if not isinstance(alias, str) or alias not in connections:
        raise ConfigurationError(
            f"{said} must be an alias of DATABASES ({', '.join(sorted(connections))}), not {given(alias)}"
        )
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"the database {alias!r} is {connection.vendor}, and pgconcert needs PostgreSQL: name another alias as "
            f"{said}"
        )
    return connection


def _check_address(address: Any) -> None:
    Coordinator(address)  # which looks closer at an address of PostgreSQL when it is opened
    if not isinstance(address, str) or "://" not in address or address.startswith("postgres"):
        AddressSource(address)


def _problems_of_coordinator(setting: object) -> list[str]:
    if not isinstance(setting, Mapping):
        return [f"PGCONCERT['COORDINATOR'] must be a dict, not {given(setting)}"]
    known = {*inspect.signature(Coordinator).parameters, *inspect.signature(AsyncCoordinator).parameters}
    known -= _SAID_ELSEWHERE.keys()
    return [
        f"PGCONCERT['COORDINATOR'] cannot have {name!r}: "
        f"{_SAID_ELSEWHERE.get(name) or 'a coordinator has ' + ', '.join(sorted(known))}"
        for name in setting
        if name not in known
    ]


def _refused(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except PgconcertError as error:
        return str(error)
    return None
