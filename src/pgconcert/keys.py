"""What a lock key may be, and the 64 bits that it becomes. Pure functions; nothing here talks to anybody.

A key is an ``int`` of 64 bits (the server's ``bigint``, unchanged) or a text. Text becomes the first 8 bytes of::

    BLAKE2b( "pgconcert:1" NUL namespace NUL text )        digest of 8 bytes, read big-endian, signed

which any language with BLAKE2b reproduces on any processor; ``tests/unit/test_keys.py`` holds the vectors. Two
different texts share a key with a chance of 2.7e-8 among a million live names; what happens then is that they exclude
each other, never that exclusion is lost. The 64 bits of a semaphore come from ``"semaphore" NUL name`` in place of the
text, which no text of a lock can be.

The two-int space of advisory locks belongs to this library (an application's own pair locks must stay out of the kinds
below). The first four bits of a pair are its *kind*, the others come from the key; the server computes the same, so
only keys travel.

=======  ========================================================================================================
kind 1   interest: held shared while somebody waits for the key
kind 2   gate: held exclusively by the first waiting writer, so that new readers stay outside
kind 3   slot of a semaphore: held exclusively by whoever has that permit
kind 4   agreement: held shared by whoever uses a semaphore, under the number of permits it believes in
=======  ========================================================================================================

Kinds 1 and 2 carry sixty bits of the key: the lower 28 bits of its upper half, with the topmost four folded in
(exclusive or), then its lower half. Two keys that share them cost a vain wake-up or a short wait at the gate, and
nothing else. Kinds 3 and 4 carry ten bits of number (slot, permits), then the lowest fifty bits of the key: two
semaphores share them with a chance of 4e-10 among a thousand live names, and would then share permits.

It is not the key itself, because the bigint 42 would then be marked by (0, 42), a likely pair of somebody else.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from .errors import ConfigurationError, KeyInvalid, given

__all__ = [
    "AGREEMENT",
    "BEYOND",
    "GATE",
    "INTEREST",
    "MAX_PERMITS",
    "MAX_TEXT_BYTES",
    "SLOT",
    "KeySpace",
    "LockKey",
    "agreement_pair",
    "gate_pair",
    "interest_pair",
    "numbered_pair",
    "slot_pair",
    "wake_bucket",
]

MAX_TEXT_BYTES: Final = 1000
"""The longest text key, in UTF-8 bytes."""

MAX_PERMITS: Final = 1000
"""The most permits a semaphore can have."""

_MAX_NAMESPACE_BYTES: Final = 200
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
BEYOND: Final = 2**64
"""What is added to the value of a semaphore, so that it lies beyond the server's range."""

INTEREST: Final = 1
GATE: Final = 2
SLOT: Final = 3
AGREEMENT: Final = 4


class LockKey:
    """A key that was checked: ``name`` as the caller wrote it, ``value`` as the server knows it.

    A semaphore has ``permits``, of a lock they are 0. The ``value`` of a semaphore lies beyond the server's range
    (2**64 is added), so that it never equals a lock's; its pairs do not change by that.
    """

    __slots__ = ("name", "permits", "value")

    def __init__(self, name: int | str, value: int, permits: int = 0) -> None:
        self.name = name
        self.value = value
        self.permits = permits

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

    def digest(self, encoded: bytes) -> int:
        """64 bits of something else that has a name in this namespace, for the bookkeeping of one process."""
        state = self._base.copy()
        state.update(encoded)
        return int.from_bytes(state.digest(), "big", signed=True)

    def semaphore(self, name: str, permits: int) -> LockKey:
        """Check the name and the permits of a semaphore and derive its 64 bits. Raises ``KeyInvalid``."""
        called: object = permits
        if not isinstance(name, str):
            raise KeyInvalid(f"the name of a semaphore is a text, not {type(name).__name__}: {name!r:.100}")
        if isinstance(called, bool) or not isinstance(called, int) or not 1 <= called <= MAX_PERMITS:
            raise KeyInvalid(
                f"the permits of a semaphore are a whole number from 1 to {MAX_PERMITS}, not {given(permits)}"
            )
        encoded = _encode(str.__str__(name), "semaphore name", KeyInvalid)
        if not 0 < len(encoded) <= MAX_TEXT_BYTES:
            raise KeyInvalid(
                f"the name of a semaphore has 1 to {MAX_TEXT_BYTES} encoded bytes, and {name!r:.60} has {len(encoded)}"
            )
        state = self._base.copy()
        state.update(b"semaphore\0" + encoded)
        return LockKey(name, int.from_bytes(state.digest(), "big", signed=True) + BEYOND, int(permits))


def interest_pair(value: int) -> tuple[int, int]:
    """The pair of int4 that marks interest in a key."""
    return _folded(INTEREST, value)


def gate_pair(value: int) -> tuple[int, int]:
    """The pair of int4 that closes the gate of a key to new readers."""
    return _folded(GATE, value)


def slot_pair(value: int, slot: int) -> tuple[int, int]:
    """The pair of int4 that is one slot of a semaphore."""
    return _numbered(SLOT, value, slot)


def agreement_pair(value: int, permits: int) -> tuple[int, int]:
    """The pair of int4 that says with how many permits a semaphore is used."""
    return _numbered(AGREEMENT, value, permits)


def numbered_pair(pair: tuple[int, int]) -> tuple[int, int, int]:
    """Read a pair of kind 3 or 4: its kind, its number, and the fifty bits that it has of the key."""
    return pair[0] >> 28, (pair[0] >> 18) & 0x3FF, ((pair[0] & 0x3FFFF) << 32) | (pair[1] & 0xFFFFFFFF)


def _folded(kind: int, value: int) -> tuple[int, int]:
    return (kind << 28) | ((value >> 32) ^ ((value >> 60) & 0xF)) & 0x0FFFFFFF, _lower(value)


def _numbered(kind: int, value: int, number: int) -> tuple[int, int]:
    return (kind << 28) | (number << 18) | ((value >> 32) & 0x3FFFF), _lower(value)


def _lower(value: int) -> int:
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


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
