"""Changing one part of a libpq connection string and leaving the rest alone.

Here lives only that. Theory: libpq itself takes the string apart, so every form it knows is understood; a URL stays a
URL and a list of ``key=value`` stays a list, because callers choose a backend by the scheme.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PLAIN_HOST = re.compile(r"[A-Za-z0-9._-]+\Z")


def rewrite(conninfo: str, **changes: str | int | None) -> str:
    """The same connection string with some libpq parameters replaced; None removes one.

    ``rewrite("postgresql://ann@db/app", dbname="other")`` is ``"postgresql://ann@db/other"``. Raises
    ``psycopg.ProgrammingError`` if libpq cannot read the string.
    """
    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    for name, value in changes.items():
        if value is None:
            parts.pop(name, None)
        else:
            parts[name] = str(value)
    if not conninfo.startswith(("postgresql://", "postgres://")):
        return make_conninfo("", **parts)
    return _as_url(parts)


def _as_url(parts: dict[str, str]) -> str:
    user, password, database = (parts.pop(name, None) for name in ("user", "password", "dbname"))
    place = ""
    # A socket folder, an IPv6 address or a list of hosts does not fit between '@' and '/'; the query part takes all.
    if _PLAIN_HOST.match(parts.get("host", "")) and parts.get("port", "0").isdigit():
        place = parts.pop("host")
        if port := parts.pop("port", None):
            place += f":{port}"
    who = quote(user, safe="") if user else ""
    if password:
        who += ":" + quote(password, safe="")
    url = f"postgresql://{who}{'@' if who else ''}{place}/{quote(database or '', safe='')}"
    return f"{url}?{urlencode(parts, quote_via=quote)}" if parts else url
