"""What a lock key may be, and the 64 bits that it becomes. Pure functions; nothing here talks to anybody.

A key is an ``int`` of 64 bits (the server's ``bigint``, unchanged) or a text. Text becomes the first 8 bytes of::

    BLAKE2b( "pgconcert:1" NUL namespace NUL text )        digest of 8 bytes, read big-endian, signed

which any language with BLAKE2b reproduces on any processor; ``tests/unit/test_keys.py`` holds the vectors. Two
different texts share a key with a chance of 2.7e-8 among a million live names; what happens then is that they exclude
each other, never that exclusion is lost.

The two-int space of advisory locks belongs to this library (an application's own pair locks must stay out of the kinds
below). The first four bits of a pair are its *kind*, the other sixty come from the key: the lower 28 bits of its upper
half, with the topmost four bits folded in (exclusive or), then its lower half. Two keys that share a mark cost a vain
wake-up and nothing else. The server computes the same from the key, so only keys travel.

============  ======================================================================================
kind 1        interest: held shared while somebody waits for the key
============  ======================================================================================

It is not the key itself, because the bigint 42 would then be marked by (0, 42), a likely pair of somebody else.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from .errors import ConfigurationError, KeyInvalid

__all__ = ["MAX_TEXT_BYTES", "KeySpace", "LockKey", "interest_pair", "wake_bucket"]

MAX_TEXT_BYTES: Final = 1000
"""The longest text key, in UTF-8 bytes."""

_MAX_NAMESPACE_BYTES: Final = 200
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_INTEREST: Final = 1


class LockKey:
    """A key that was checked: ``name`` as the caller wrote it, ``value`` as the server knows it."""

    __slots__ = ("name", "value")

    def __init__(self, name: int | str, value: int) -> None:
        self.name = name
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LockKey) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"LockKey({self.name!r}, {self.value})"


class KeySpace:
    """Derives keys inside one namespace. Coordinators that share locks must share the namespace."""

    __slots__ = ("_base", "namespace")

    def __init__(self, namespace: str = "") -> None:
        if not isinstance(namespace, str):
            raise ConfigurationError(f"namespace must be text, not {type(namespace).__name__}")
        encoded = _encode(namespace, "namespace", ConfigurationError)
        if len(encoded) > _MAX_NAMESPACE_BYTES:
            raise ConfigurationError(f"namespace has {len(encoded)} bytes; at most {_MAX_NAMESPACE_BYTES} are allowed")
        self.namespace = namespace
        self._base = blake2b(b"pgconcert:1\0" + encoded + b"\0", digest_size=8)

    def key(self, name: int | str) -> LockKey:
        """Check ``name`` and derive its 64 bits. Raises ``KeyInvalid``."""
        if type(name) is str:
            try:
                encoded = name.encode()
            except UnicodeEncodeError:
                encoded = _encode(name, "lock key", KeyInvalid)
            if not 0 < len(encoded) <= MAX_TEXT_BYTES or b"\0" in encoded:
                raise _bad_text(name, encoded)
            state = self._base.copy()
            state.update(encoded)
            return LockKey(name, int.from_bytes(state.digest(), "big", signed=True))
        if isinstance(name, bool) or not isinstance(name, (int, str)):
            raise KeyInvalid(f"a lock key is an int or a text, not {type(name).__name__}: {name!r:.100}")
        if isinstance(name, str):
            return self.key(str.__str__(name))  # the text itself: str() of an enum's member is its name
        value = int(name)
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise KeyInvalid(
                f"a lock key of {value.bit_length()} bits does not fit the server's 64 ({_INT64_MIN} to {_INT64_MAX}); "
                "use a text key for larger names"
            )
        return LockKey(name, value)


def interest_pair(value: int) -> tuple[int, int]:
    """The pair of int4 that marks interest in a key."""
    upper = ((value >> 32) ^ ((value >> 60) & 0xF)) & 0x0FFFFFFF
    return (_INTEREST << 28) | upper, ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def wake_bucket(value: int) -> int:
    """The one of 256 wake channels on which waiters for a key are woken: its lowest byte."""
    return value & 0xFF


def _encode(text: str, what: str, error: type[ConfigurationError]) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as bad:
        raise error(f"{what} {text!r:.100} has a lone surrogate at position {bad.start}; it is not text") from None
    if b"\0" in encoded:
        raise error(f"{what} {text!r:.100} contains a NUL character, which PostgreSQL cannot store")
    return encoded


def _bad_text(name: str, encoded: bytes) -> KeyInvalid:
    if not encoded:
        return KeyInvalid("a lock key cannot be the empty text")
    if len(encoded) > MAX_TEXT_BYTES:
        return KeyInvalid(f"lock key {name!r:.60}… has {len(encoded)} bytes; at most {MAX_TEXT_BYTES} are allowed")
    return KeyInvalid(f"lock key {name!r:.100} contains a NUL character, which PostgreSQL cannot store")
