"""Connection strings: where the address comes from, what it becomes, and how one is changed. Text in, parameters or
text out; no connection here.

An address may be a libpq connection string (URL or key=value), SQLAlchemy's ``postgresql+driver://`` form, a callable
that is asked at every connect (for credentials that rotate; plain or async), a SQLAlchemy engine, or a psycopg pool.
Without one, ``PGCONCERT_URL``, ``DATABASE_URL`` and libpq's own environment are tried in this order.

No error ever quotes the connection string: it may hold a password. libpq's own parse errors do quote it, and Python
keeps what is being handled as the context of what is raised; so whatever is refused is raised after the handling.

``with_parameters`` takes an address apart only as far as it must: of a URL everything that it does not change stays
as it was written, letter by letter.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode

from psycopg import Error, conninfo

from .errors import ConfigurationError, given
from .offloop import off_loop

__all__ = [
    "Address",
    "AddressSource",
    "environment_address",
    "from_environment",
    "is_parameter",
    "not_empty",
    "parse",
    "with_parameters",
]

T = TypeVar("T")

Address = str | Callable[[], str | Awaitable[str]] | Any
"""A connection string, a callable that returns one, a SQLAlchemy engine, or a psycopg pool."""

Parameter = str | int | None
"""The value of a parameter; a ``bool`` is written as libpq writes it, 1 or 0. ``None`` takes the parameter away."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PLAIN_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")
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
    parameters = _understood(text)
    if parameters is None:
        kind = "URL" if _URL.match(text) else "key=value string"
        raise ConfigurationError(
            f"the database address, a {kind} of {len(text)} characters, is not a valid PostgreSQL connection string "
            "(it is not shown here, because it may hold a password); in a URL, special characters of the password "
            "must be percent-encoded, and every parameter must be one of libpq's"
        )
    return parameters


def with_parameters(address: str, parameters: Mapping[str, Parameter]) -> str:
    """The same address with some parameters replaced, added, or (``None``) taken away.

    ``with_parameters("postgresql://ann@db/app", {"connect_timeout": 5, "dbname": "other"})`` is
    ``"postgresql://ann@db/other?connect_timeout=5"``. Nothing is connected to.

    A URL stays a URL with its scheme, its driver, its hosts and its other parameters as they were written; ``user``,
    ``password``, ``host``, ``port`` and ``dbname`` go where a URL has them, and are replaced there. Several hosts are
    kept; a new list of them (``"a,b"``) needs one port for all or one for each, as libpq wants it. A string of
    ``key=value`` is written anew. Values are plain: whatever a URL or libpq wants escaped is escaped here.

    :param address: ``postgresql://``, ``postgres://``, ``postgresql+driver://`` or ``key=value``.
    :param parameters: of libpq; with a driver in the address also those of the driver.
    :raises ConfigurationError: the address is none; a name is none of libpq's; a value is no text, int or bool, or is
        one that no address can hold. It names the parameter, and shows neither the address nor a value.
    """
    known = parse(not_empty(_text(address)))
    url = _URL.match(address)
    driver = url is not None and "+" in url[0]
    wanted = {_name(name, driver): _value(name, value) for name, value in parameters.items()}
    if url:
        changed = _changed_url(address.replace(" ", "%20"), wanted, known, driver)
    else:
        kept = {name: value for name, value in (known | wanted).items() if value is not None}
        changed = conninfo.make_conninfo("", **kept)
    if _understood(changed) is None:
        raise ConfigurationError(
            f"no connection string can hold what was given for {', '.join(sorted(wanted))} (values are not shown here)"
        )
    return changed


def _text(address: object) -> str:
    if not isinstance(address, str):
        raise ConfigurationError(
            f"with_parameters changes a connection string, not {type(address).__name__}; whatever a callable returns "
            "can be changed there"
        )
    return address


def _name(name: object, driver: bool) -> str:
    if isinstance(name, str) and name and name.isprintable() and (driver or is_parameter(name)):
        return name
    raise ConfigurationError(
        f"{given(name)} is no connection parameter of this libpq; a driver's own can be set where the address names "
        "the driver (postgresql+driver://)"
    )


def _value(name: str, value: object) -> str | None:
    if value is None:
        return None
    text = str(int(value)) if isinstance(value, int) and value.bit_length() <= 64 else value
    if not isinstance(text, str):
        raise ConfigurationError(f"{name} must be a text, an int, a bool or None, not {type(value).__name__}")
    if re.search("[\0\ud800-\udfff]", text):
        raise ConfigurationError(f"{name} has a character that no address can hold: NUL, or half of a surrogate pair")
    if name == "port" and not all(port.isdecimal() for port in text.split(",")):
        raise ConfigurationError("port must be a number, or one for each host (5432,5433)")
    if name == "host" and any(":" in host and not _is_ipv6(host) for host in text.split(",")):
        raise ConfigurationError(
            "host must be a name, an address or a folder, or several with commas; ports go to port"
        )
    return text


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False


def _changed_url(address: str, wanted: dict[str, str | None], known: dict[str, str], driver: bool) -> str:
    scheme, _, rest = address.partition("://")
    who, rest = _user_and_rest(rest)
    before, _, query = rest.partition("?")
    place, slash, database = before.partition("/")
    user, _, password = who.partition(":")

    given_anew = set(wanted)
    added = {name: value for name, value in wanted.items() if value is not None}
    if given_anew & {"host", "port"}:
        given_anew |= {"host", "port"}
        place, listed = _place(known | wanted)
        added = {name: value for name, value in added.items() if name not in ("host", "port")} | listed
    if "sslmode" in wanted and not driver:
        given_anew.add("ssl")  # another spelling of it, which libpq knows in URLs
    user, password, database = (
        quote(added.pop(name, ""), safe="") if name in wanted else as_it_was
        for name, as_it_was in (("user", user), ("password", password), ("dbname", database))
    )
    who = user + (":" + password if password else "")
    kept = [part for part in query.split("&") if part and unquote(part.partition("=")[0]) not in given_anew]
    kept += [f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in added.items()]
    path = "/" + database if slash or database else ""
    return f"{scheme}://{who}{'@' if who else ''}{place}{path}{'?' if kept else ''}{'&'.join(kept)}"


def _place(parameters: Mapping[str, str | None]) -> tuple[str, dict[str, str]]:
    """What stands between ``@`` and ``/``, and what does not fit there: a list, the folder of a socket."""
    host, port = parameters.get("host") or "", parameters.get("port") or ""
    hosts, ports = host.split(","), port.split(",")
    if len(ports) not in (1, len(hosts)):
        raise ConfigurationError(
            f"{len(ports)} ports for {len(hosts)} host{'s' * (len(hosts) > 1)}: give host and port together"
        )
    if len(hosts) == 1 and (_PLAIN_HOST.fullmatch(host) or ":" in host):
        shown = f"[{quote(host, safe=':')}]" if ":" in host else host
        return shown + (f":{port}" if port else ""), {}
    return "", {name: value for name, value in (("host", host), ("port", port)) if value}


def _user_and_rest(rest: str) -> tuple[str, str]:
    """What stands before the first ``@``, if no path has begun by then, as libpq has it; and all that follows."""
    user, at, place = rest.partition("@")
    return (user, place) if at and "/" not in user else ("", rest)


def _understood(text: str) -> dict[str, str] | None:
    """The parameters of a connection string; ``None`` if it is none, or what stands outside of its password may be a
    part of it."""
    url = _URL.match(text)
    try:
        parameters = {name: str(value) for name, value in conninfo.conninfo_to_dict(_plain_url(text)).items()}
    except (Error, ValueError, UnicodeError):
        return None
    # an unescaped @ or : of a password ends up in the host or the port, and would be shown with them
    hosts = parameters.get("host", "").split(",")
    ports = parameters.get("port", "").split(",")
    # only an abstract socket begins with @, and a URL writes that as %40
    abstract = url is None or "%40" in text
    path = _user_and_rest(text[url.end() :])[1].partition("?")[0] if url else ""
    if "@" in path or any("@" in host.strip()[abstract:] for host in hosts):
        return None
    return None if any(port and not port.strip().isdigit() for port in ports) else parameters


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
        if value is not None and is_parameter(name):
            parameters[name] = str(value)
    return parameters


def is_parameter(name: str) -> bool:
    """Whether libpq knows a parameter of this name."""
    if not name.isidentifier():
        return False
    try:
        conninfo.make_conninfo("", **{name: "1"})
    except (Error, TypeError):
        return False
    return True


def _plain_url(text: str) -> str:
    """Turn SQLAlchemy's URL into libpq's: no driver, only parameters that libpq knows, several hosts as lists."""
    if not _URL.match(text):
        return text
    scheme, separator, rest = text.partition("://")
    rest = rest.replace(" ", "%20")  # SQLAlchemy writes a space as it is, and libpq refuses it
    if "+" not in scheme or scheme.split("+")[0] not in ("postgresql", "postgres"):
        return scheme + separator + rest
    user, place = _user_and_rest(rest)
    before, _, query = place.partition("?")
    kept: list[tuple[str, str]] = []
    hosts: list[str] = []
    for part in filter(None, query.split("&")):
        ((name, value),) = parse_qsl(part, keep_blank_values=True, max_num_fields=1)
        if name == "ssl":
            kept.append(("sslmode", {"true": "require", "false": "disable"}.get(value.lower(), value)))
        elif name == "host":
            hosts.append(value)
        elif is_parameter(name):
            kept.append((name, value))
        elif "@" in part:
            raise ValueError  # the tail of a password with a question mark: what stands before it is no host
    if hosts:
        # one colon: of the port; more: of an IPv6 address
        pairs = [host.partition(":") if re.fullmatch(r"[^:]*:\d+", host) else (host, "", "") for host in hosts]
        kept.append(("host", ",".join(host for host, _, _ in pairs)))
        if any(port for _, _, port in pairs):
            kept.append(("port", ",".join(port for _, _, port in pairs)))
    asked = "?" + urlencode(kept, quote_via=quote) if kept else ""
    return f"postgresql://{user}{'@' if user else ''}{before}{asked}"
