"""A PostgreSQL of our own for trials and tests: binaries from a package, the manager from here."""

from .server import EmbeddedServer, server_binaries

__all__ = ["EmbeddedServer", "server_binaries"]
