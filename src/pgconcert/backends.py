"""Which backend an address means. PostgreSQL, unless its scheme is that of another: of ours, or of an entry point.

A distribution that brings a backend names a ``BackendFactory`` under its scheme in its metadata::

    [project.entry-points."pgconcert.backends"]
    toy = "toy_backend:make"

and ``AsyncCoordinator("toy://anything")`` finds it. ``AsyncCoordinator(backend=...)`` takes one that was made already.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points
from typing import Any, Final

from .backend import Backend, BackendFactory, Options
from .conninfo import Address, environment_address, not_empty
from .errors import ConfigurationError

__all__ = ["backend_for"]

_OURS: Final = {
    "memory": "pgconcert.memory:make",
    "null": "pgconcert.memory.null:make",
}
_POSTGRES: Final = re.compile(r"(postgres|postgresql|embedded)(\+[a-z0-9_]+)?$", re.ASCII)
_SCHEME: Final = re.compile(r"([a-z][a-z0-9_.+-]*)://", re.ASCII | re.IGNORECASE)


def backend_for(address: Address | None, options: Options) -> Backend:
    """Make the backend for an address. Raises ``ConfigurationError``."""
    address = environment_address() if address is None else not_empty(address)
    not_empty(options.direct_url)
    scheme = _scheme(address)
    if scheme is not None and isinstance(address, str) and not _POSTGRES.match(scheme):
        factory = _factory(scheme)
        if factory is not None:
            if options.direct_url is not None:
                raise ConfigurationError(f"direct_url is a way around a pooler; {scheme}:// has none, leave it out")
            return factory(address, options)
        known = sorted({*_OURS, *(point.name for point in entry_points(group="pgconcert.backends"))})
        raise ConfigurationError(
            f"no backend is installed for {scheme}://; known are postgresql, embedded, {', '.join(known)}"
        )
    from .postgres.engine import PostgresBackend

    return PostgresBackend(address, options)


def _scheme(address: Any) -> str | None:
    found = _SCHEME.match(address.strip()) if isinstance(address, str) else None
    return found[1].lower() if found else None


def _factory(scheme: str) -> BackendFactory | None:
    ours = _OURS.get(scheme)
    if ours is not None:
        module, _, name = ours.partition(":")
        factory: BackendFactory = getattr(importlib.import_module(module), name)
        return factory
    points = [*entry_points(group="pgconcert.backends", name=scheme)]
    if not points:
        return None
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise ConfigurationError(f"{scheme}:// is claimed by several backends: {', '.join(values)}; uninstall one")
    try:
        loaded: BackendFactory = points[0].load()
    except Exception as error:
        raise ConfigurationError(f"the backend for {scheme}:// ({values[0]}) cannot be imported: {error}") from error
    return loaded
