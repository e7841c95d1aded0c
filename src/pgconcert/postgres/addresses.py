"""From connection parameters to single addresses to try: services, several hosts, name look-ups.

libpq looks names up inside ``PQconnectStart`` and ``PQconnectPoll``, which would stop the event loop for as long as the
resolver takes, at every reconnect of a failover. So the names are looked up here, off the loop, anew at every attempt,
and libpq gets ``hostaddr`` (with ``host`` kept for TLS and the password file). One attempt is one address, so that each
has a time limit of its own; ``target_session_attrs`` and ``load_balance_hosts`` keep their meaning.
"""

from __future__ import annotations

import configparser
import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from psycopg import conninfo

from ..errors import ConfigurationError, Unavailable

__all__ = ["Attempt", "attempts", "time_limit"]

_DEFAULT_PORT = "5432"


class Attempt(NamedTuple):
    """One address to try: ``conninfo`` for libpq and a ``label`` without secrets for people."""

    conninfo: str
    label: str


def attempts(parameters: Mapping[str, str]) -> list[Attempt]:
    """The addresses to try, in order. Blocks for name look-ups and files: call it off the loop.

    Raises ``ConfigurationError`` for an unknown service or lists that do not fit, ``Unavailable`` if no name resolves.
    """
    known = _with_service(dict(parameters))
    hosts = _split(known.pop("host", None) or os.environ.get("PGHOST"))
    addresses = _split(known.pop("hostaddr", None) or os.environ.get("PGHOSTADDR"))
    ports = _split(known.pop("port", None) or os.environ.get("PGPORT"))
    count = max(len(hosts), len(addresses), 1)
    for name, values in (("host", hosts), ("hostaddr", addresses), ("port", ports)):
        if values and len(values) != count and not (name == "port" and len(values) == 1):
            raise ConfigurationError(f"the database address names {count} hosts but {len(values)} values of {name}")
    balance = known.pop("load_balance_hosts", None) or os.environ.get("PGLOADBALANCEHOSTS", "disable")
    found: list[dict[str, str]] = []
    unresolved: list[str] = []
    for index in range(count):
        host = hosts[index] if hosts else ""
        address = addresses[index] if addresses else ""
        port = ports[index if len(ports) == count else 0] if ports else ""
        if address or not host or host.startswith(("/", "@")):
            found.append({"host": host, "hostaddr": address, "port": port})
            continue
        try:
            found.extend({"host": host, "hostaddr": numeric, "port": port} for numeric in _look_up(host, port))
        except UnicodeError:
            unresolved.append(f"{host}: not a host name")
        except OSError as error:
            unresolved.append(f"{host}: {error.strerror or error}")
    if not found:
        raise Unavailable("the host name could not be looked up: " + "; ".join(unresolved))
    if balance == "random":
        random.shuffle(found)
    return [_attempt({**known, **wanted}, place) for wanted in _session_attributes(known) for place in found]


def time_limit(text: str, default: float) -> float:
    """For how many seconds an attempt to connect may go on: ``connect_timeout`` of the address, if it has one. Raises
    ``ConfigurationError``."""
    try:
        seconds = float(text or 0)
    except ValueError:
        raise ConfigurationError(f"connect_timeout of the address must be a number of seconds, not {text!r}") from None
    return seconds if seconds > 0 else default


def _session_attributes(known: Mapping[str, str]) -> list[dict[str, str]]:
    attributes = known.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS", "")
    if attributes == "prefer-standby":
        # libpq means: first all hosts as standby, then all as they are
        return [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]
    return [{}]


def _attempt(known: Mapping[str, str], place: Mapping[str, str]) -> Attempt:
    given = {name: value for name, value in place.items() if value}
    where = place["host"] or place["hostaddr"] or "the default socket"
    label = where if where.startswith("/") else f"{where}:{place['port'] or _DEFAULT_PORT}"
    if place["hostaddr"] and place["host"] and place["hostaddr"] != place["host"]:
        label += f" ({place['hostaddr']})"
    return Attempt(conninfo.make_conninfo("", **{**known, **given}), label)


def _look_up(host: str, port: str) -> list[str]:
    answers = socket.getaddrinfo(host, port or _DEFAULT_PORT, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _with_service(parameters: dict[str, str]) -> dict[str, str]:
    service = parameters.pop("service", None) or os.environ.get("PGSERVICE")
    if not service:
        return parameters
    places = [Path(os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")]
    if "PGSYSCONFDIR" in os.environ:
        places.append(Path(os.environ["PGSYSCONFDIR"]) / "pg_service.conf")
    places.append(Path("/etc/postgresql-common/pg_service.conf"))
    for place in places:
        reader = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=False)
        try:
            # libpq ignores white space in front of a line, which configparser takes for its continuation
            reader.read_string("\n".join(line.strip() for line in place.read_text().splitlines()))
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        if reader.has_section(service):
            return {**dict(reader.items(service)), **parameters}
    raise ConfigurationError(f"service {service!r} is not defined in {', '.join(str(place) for place in places)}")
