"""Connection strings: where the address comes from, and what it becomes. Text in, parameters out; no connection here.

An address may be a libpq connection string (URL or key=value), SQLAlchemy's ``postgresql+driver://`` form, a callable
that is asked at every connect (for credentials that rotate; plain or async), a SQLAlchemy engine, or a psycopg pool.
Without one, ``PGCONCERT_URL``, ``DATABASE_URL`` and libpq's own environment are tried in this order.

No error ever quotes the connection string: it may hold a password. libpq's own parse errors do quote it, so they are
not passed on.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from psycopg import Error, conninfo

from .errors import ConfigurationError
from .offloop import off_loop

__all__ = ["Address", "AddressSource", "environment_address", "from_environment", "not_empty", "parse"]

T = TypeVar("T")

Address = str | Callable[[], str | Awaitable[str]] | Any
"""A connection string, a callable that returns one, a SQLAlchemy engine, or a psycopg pool."""

_LIBPQ_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")
_NO_ADDRESS = (
    "no database address: pass one to the coordinator, or set PGCONCERT_URL or DATABASE_URL, or libpq's PGHOST, "
    "PGDATABASE and friends. To try things out on one machine without a server, use the address embedded:// "
    "(on the command line: --url embedded://)"
)


class AddressSource:
    """Gives the connection parameters anew at every connect."""

    def __init__(self, address: Address | None) -> None:
        self._ask = _asker(address)

    async def parameters(self) -> dict[str, str]:
        """The parameters now. Raises ``ConfigurationError``; an error of the caller's callable passes through."""
        answer = await self._ask()
        return parse(answer) if isinstance(answer, str) else dict(answer)


def from_environment() -> tuple[str, str] | None:
    """What in the environment gives an address, and the address; the empty text leaves everything to libpq."""
    for name in ("PGCONCERT_URL", "DATABASE_URL"):
        if address := os.environ.get(name):
            return name, address
    return ("libpq's own variables", "") if any(map(os.environ.get, _LIBPQ_ENVIRONMENT)) else None


def environment_address() -> str | None:
    """The address from the environment; the empty text leaves everything to libpq."""
    found = from_environment()
    return None if found is None else found[1]


def not_empty(address: T) -> T:
    """An address that somebody gave. Raises ``ConfigurationError`` for the empty text: libpq would take it for whatever
    server listens on this machine, and two machines would each lock on their own."""
    if isinstance(address, str) and not address.strip():
        raise ConfigurationError(
            "the address is the empty text (an unset variable?); leave it out to use PGCONCERT_URL, DATABASE_URL or "
            "libpq's variables, or write postgresql:///name for the server of this machine"
        )
    return address


def parse(text: str) -> dict[str, str]:
    """The parameters of a connection string. Raises ``ConfigurationError`` without quoting it."""
    try:
        parameters = {name: str(value) for name, value in conninfo.conninfo_to_dict(_plain_url(text)).items()}
        # an unescaped @ or : of a password ends up in the host or the port, and would be shown with them
        hosts = parameters.get("host", "").split(",")
        ports = parameters.get("port", "").split(",")
        # only an abstract socket begins with @, and a URL writes that as %40
        abstract = "://" not in text or "%40" in text
        strange = any("@" in host.strip()[abstract:] for host in hosts) or (
            "://" in text and "@" in parameters.get("dbname", "")
        )
        if strange or any(port and not port.strip().isdigit() for port in ports):
            raise ValueError
        return parameters
    except (Error, ValueError, UnicodeError):
        kind = "URL" if "://" in text else "key=value string"
        raise ConfigurationError(
            f"the database address, a {kind} of {len(text)} characters, is not a valid PostgreSQL connection string "
            "(it is not shown here, because it may hold a password); in a URL, special characters of the password "
            "must be percent-encoded, and every parameter must be one of libpq's"
        ) from None


def _asker(address: Address | None) -> Callable[[], Awaitable[str | Mapping[str, str]]]:
    if address is None:
        address = environment_address()
        if address is None:
            raise ConfigurationError(_NO_ADDRESS)
    if isinstance(address, str):
        fixed = parse(address)

        async def give() -> Mapping[str, str]:
            return fixed

        return give
    if hasattr(address, "dialect") and hasattr(getattr(address, "url", None), "render_as_string"):
        engine: Any = address
        parse(engine.url.render_as_string(hide_password=False))

        async def from_engine() -> str:
            return cast(str, engine.url.render_as_string(hide_password=False))

        return from_engine
    if hasattr(address, "conninfo") and hasattr(address, "kwargs"):
        return lambda: _from_pool(address)
    if callable(address):
        asked = cast("Callable[[], str | Awaitable[str]]", address)
        return lambda: _from_callable(asked)
    raise ConfigurationError(
        f"an address is a connection string, a callable, a SQLAlchemy engine or a psycopg pool, not "
        f"{type(address).__name__}"
    )


async def _from_callable(address: Callable[[], str | Awaitable[str]]) -> str:
    if inspect.iscoroutinefunction(address):
        answer = await address()
    else:
        answer = await off_loop(address)
        if inspect.isawaitable(answer):
            answer = await answer
    if not isinstance(answer, str):
        raise ConfigurationError(f"the address callable returned {type(answer).__name__}; it must return text")
    return not_empty(answer)


async def _from_pool(pool: Any) -> dict[str, str]:
    async def asked(value: Any) -> Any:
        if callable(value):
            value = value()
        return await value if inspect.isawaitable(value) else value

    parameters = parse(await asked(pool.conninfo) or "")
    for name, value in (await asked(pool.kwargs) or {}).items():
        if value is not None and _is_parameter(name):
            parameters[name] = str(value)
    return parameters


def _is_parameter(name: str) -> bool:
    try:
        conninfo.make_conninfo("", **{name: "1"})
    except (Error, TypeError):
        return False
    return True


def _plain_url(text: str) -> str:
    """Turn SQLAlchemy's URL into libpq's: no driver, only parameters that libpq knows, several hosts as lists."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    rest = rest.replace(" ", "%20")  # SQLAlchemy writes a space as it is, and libpq refuses it
    if "+" not in scheme or scheme.split("+")[0] not in ("postgresql", "postgres"):
        return scheme + separator + rest
    user, at, place = rest.partition("@")
    if not at or "/" in user:
        user, at, place = "", "", rest
    parts = urlsplit("postgresql://" + place)
    kept: list[tuple[str, str]] = []
    hosts: list[str] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "ssl":
            kept.append(("sslmode", {"true": "require", "false": "disable"}.get(value.lower(), value)))
        elif name == "host":
            hosts.append(value)
        elif _is_parameter(name):
            kept.append((name, value))
        elif "@" in name + value:
            raise ValueError  # the tail of a password with a question mark: what stands before it is no host
    if hosts:
        pairs = [host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "") for host in hosts]
        kept.append(("host", ",".join(host for host, _, _ in pairs)))
        if any(port for _, _, port in pairs):
            kept.append(("port", ",".join(port for _, _, port in pairs)))
    plain = parts._replace(netloc=user + at + parts.netloc, query=urlencode(kept, quote_via=quote))
    return urlunsplit(plain)
