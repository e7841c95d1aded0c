"""The SQL of the store, and how its parameters and rows are written. No logic.

A statement is written once, with ``pgconcert`` as the schema, and gets the real name when a store is made. Every
statement takes arrays, of one element or of many. Payloads travel as base64: a third more than their bytes, where the
server's own form of bytes would be twice as much; and no element of an array needs to be quoted.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from .link import Statement, statement
from .schemafiles import in_schema

__all__ = [
    "PAYLOADS_AT_ONCE",
    "StoreStatements",
    "array",
    "bytes_of",
    "element",
    "name_of",
    "packed",
    "store_statements",
]

PAYLOADS_AT_ONCE: Final = 20
"""How many expired payloads go in one statement: each may have thousands of rows of its own behind it."""
CLAIMS_AT_ONCE: Final = 500
_LONGEST_NAME: Final = 500

# Identities are given out in the order of the rows, and rows come back in the order in which they were put in.
_SPILL: Final = """
    insert into pgconcert.message_payload (payload, expires)
    select decode(p, 'base64'), clock_timestamp() + make_interval(secs => t)
      from unnest($1::text[], $2::float8[]) with ordinality q(p, t, n) order by n
    returning id
"""
_FETCH: Final = """
    select id, encode(payload, 'base64') from pgconcert.message_payload
     where id = any ($1::int8[]) and expires > clock_timestamp()
"""
# In order, so that two statements with the same claims wait for each other instead of forming a cycle; and not for
# long, which is said here because a transaction pooler leaves no other place for it.
_CLAIM: Final = """
    insert into pgconcert.message_claim (scope, id)
    select s, i from unnest($1::text[], $2::text[]) q(s, i)
     where set_config('lock_timeout', '100ms', true) is not null
     order by s collate "C", i collate "C"
    on conflict do nothing
    returning scope, id
"""
# Arrays, because a subquery with a limit could be asked again for every row.
_PURGE: Final = f"""
    with payloads as (
        delete from pgconcert.message_payload where id = any (array(
            select id from pgconcert.message_payload where expires < statement_timestamp()
             order by expires limit {PAYLOADS_AT_ONCE} for update skip locked)) returning 1
    ), claims as (
        delete from pgconcert.message_claim where ctid = any (array(
            select ctid from pgconcert.message_claim where claimed < statement_timestamp() - make_interval(hours => 1)
             order by claimed limit {CLAIMS_AT_ONCE} for update skip locked)) returning 1
    )
    select (select count(*) from payloads) >= {PAYLOADS_AT_ONCE} or (select count(*) from claims) >= {CLAIMS_AT_ONCE}
"""


class StoreStatements(NamedTuple):
    """The statements of a store."""

    spill: Statement
    fetch: Statement
    claim: Statement
    purge: Statement
    """Answers whether there may be more to purge."""


def store_statements(schema: str) -> StoreStatements:
    """The statements for a schema. Raises ``ConfigurationError`` for what can be none."""
    return StoreStatements(*(in_schema(statement(text), schema) for text in (_SPILL, _FETCH, _CLAIM, _PURGE)))


def packed(payload: bytes) -> bytes:
    """A payload as an element of an array."""
    return b2a_base64(payload, newline=False) or b'""'


def bytes_of(value: bytes | None) -> bytes:
    """A payload from a row."""
    return a2b_base64(value or b"")


def array(values: Sequence[bytes]) -> bytes:
    """An array of elements that need no quotes, or have them."""
    return b"{" + b",".join(values) + b"}"


def name_of(text: str) -> bytes:
    """A text that others have chosen, as the tables have it: what a column or an index would not take is hashed."""
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > _LONGEST_NAME or b"\0" in encoded or not _is_utf8(encoded):
        return b"blake2b:" + blake2b(encoded, digest_size=32).hexdigest().encode()
    return encoded


def element(name: bytes) -> bytes:
    """Any text as an element of an array."""
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _is_utf8(encoded: bytes) -> bool:
    try:
        encoded.decode()
    except UnicodeDecodeError:
        return False
    return True
