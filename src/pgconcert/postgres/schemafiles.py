"""The versions of our tables as text: which there are, how they read for a schema, what is said when they are missing.

Pure: nothing here talks to a server. Version n is the file ``sql/000n_*.sql``. In these files the word ``pgconcert`` is
the name of the schema and nothing else, so that another name can be put in its place; a statement is a paragraph.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from ..errors import ConfigurationError, SchemaMissing, StatementFailed
from .link import Statement

__all__ = [
    "DEFAULT",
    "NOT_PERMITTED",
    "UNDEFINED",
    "apply_command",
    "checked",
    "drop_statements",
    "functions",
    "grants",
    "identifier",
    "in_schema",
    "missing_tables",
    "not_permitted",
    "quoted",
    "script",
    "sequences",
    "tables",
    "version_statements",
    "versions",
]

DEFAULT: Final = "pgconcert"
"""The name of the schema unless one is given."""

UNDEFINED: Final = frozenset(("42P01", "3F000", "42703", "42883"))
"""SQLSTATEs that mean: table, schema, column or function is not there."""
NOT_PERMITTED: Final = "42501"

_WORD: Final = re.compile(r"\bpgconcert\b")
_FILE: Final = re.compile(r"(\d{4})_\w+\.sql")
_TABLE: Final = re.compile(r"create table pgconcert\.(\w+)")
_SEQUENCE: Final = re.compile(r"create sequence pgconcert\.(\w+)")
_FUNCTION: Final = re.compile(r"create function pgconcert\.(\w+\(\))")
_MAX_BYTES: Final = 63
_OUR_QUOTES: Final = "$pgc"
"""With what the tags of our dollar quotes begin, inside of which names of schemas stand."""


@cache
def versions() -> Mapping[int, str]:
    """The SQL of every version, by its number, in order."""
    found = {}
    for file in _folder().iterdir():
        if match := _FILE.fullmatch(file.name):
            found[int(match[1])] = file.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


def script(schema: str = DEFAULT, version: int | None = None) -> str:
    """The SQL of one version, or of all, for ``schema``: to be run as one transaction, by whatever tool.

    Raises ``ConfigurationError`` for a schema that can be none and a version that is not there.
    """
    known = versions()
    if version is not None and version not in known:
        raise ConfigurationError(f"there is no version {version} of the schema; there are 1 to {max(known)}")
    wanted = known.values() if version is None else [known[version]]
    needs = "".join(f"--   {grant};\n" for grant in grants(schema, "your_role"))
    return (
        "\n".join(_WORD.sub(lambda _: quoted(schema), text) for text in wanted)
        + f"\n-- A role that is not the owner of these tables needs, to work with them:\n{needs}"
    )


def grants(schema: str, role: str) -> list[str]:
    """The statements that let a role work with the tables, but not make them."""
    place = quoted(schema)

    def ours(names: list[str]) -> str:
        return ", ".join(f"{place}.{name}" for name in names)

    changed = ours([name for name in tables() if name != "version"])
    return [
        f"grant usage on schema {place} to {identifier(role)}",
        f"grant select on {place}.version to {identifier(role)}",
        f"grant select, insert, update, delete on {changed} to {identifier(role)}",
        f"grant usage on sequence {ours(sequences())} to {identifier(role)}",
        f"grant execute on function {ours(functions())} to {identifier(role)}",
    ]


def checked(schema: str) -> str:
    """A name that a schema can have. Raises ``ConfigurationError`` for all others."""
    if not isinstance(schema, str):
        raise ConfigurationError(f"schema must be a text, not {type(schema).__name__}")
    try:
        size = len(schema.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= _MAX_BYTES or any(character < " " or character == "\x7f" for character in schema):
        raise ConfigurationError(
            f"schema must be a text of 1 to {_MAX_BYTES} encoded bytes without control characters, not {schema!r:.100}"
        )
    if _OUR_QUOTES in schema:
        raise ConfigurationError(f"schema must not contain {_OUR_QUOTES!r}, and {schema!r} does")
    return schema


def quoted(schema: str) -> str:
    """The name of a schema as SQL has it. Raises ``ConfigurationError`` for what can be none."""
    return identifier(checked(schema))


def identifier(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(plain: Statement, schema: str) -> Statement:
    """A statement that was written for the schema ``pgconcert``, for another. Raises ``ConfigurationError``."""
    mark = blake2b(schema.encode(), digest_size=6).hexdigest().encode()
    return Statement(plain.name + b"_" + mark, plain.sql.replace(b" pgconcert.", b" " + quoted(schema).encode() + b"."))


def version_statements(version: int, schema: str) -> list[Statement]:
    """What makes one version."""
    return _statements(versions()[version], schema)


def drop_statements(schema: str) -> list[Statement]:
    """What removes everything that the versions have made, but the schema itself."""
    return _statements((_folder() / "drop.sql").read_text(encoding="utf-8"), schema)


def _folder() -> Traversable:
    return resources.files("pgconcert.postgres") / "sql"


def tables() -> list[str]:
    """The names of all tables of all versions."""
    return _made(_TABLE)


def sequences() -> list[str]:
    """The names of all sequences of all versions, but those that belong to a column."""
    return _made(_SEQUENCE)


def functions() -> list[str]:
    """The names of all functions of all versions, with their parameters."""
    return _made(_FUNCTION)


def _made(kind: re.Pattern[str]) -> list[str]:
    return [name for text in versions().values() for name in kind.findall(text)]


def _statements(text: str, schema: str) -> list[Statement]:
    paragraphs = re.split(r"\n\s*\n", _WORD.sub(lambda _: quoted(schema), text).strip())
    return [
        Statement(b"", paragraph.encode())
        for paragraph in paragraphs
        if not all(line.startswith("--") for line in paragraph.splitlines())
    ]


def apply_command(schema: str) -> str:
    """What to type to make the tables."""
    return "pgconcert schema apply" + ("" if schema == DEFAULT else f" --schema {shlex.quote(schema)}")


def missing_tables(schema: str, detail: str) -> SchemaMissing:
    """The tables are not there, or older than this library."""
    return SchemaMissing(
        f"the tables of pgconcert are missing or old in schema {quoted(schema)} of this database ({detail}); make them "
        f"with: {apply_command(schema)} (or let a coordinator with the right to do so: migrate=True)"
    )


def not_permitted(schema: str, role: str, error: StatementFailed) -> ConfigurationError:
    """The role may not work with the tables."""
    return ConfigurationError(
        f"role {role} may not work with the tables of pgconcert ({error}); let their owner run: "
        + "; ".join(grants(schema, role))
    )
