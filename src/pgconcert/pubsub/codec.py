"""How the values of a type become payloads and come back. Here stands the choice; what is chosen has files of its own.

=======================================  =============================================================================
the type                                 what travels
=======================================  =============================================================================
``bytes``                                the bytes, in an envelope where they are no text
``str``                                  the text
``msgspec.Struct``                       what ``msgspec.json`` makes of it
``pydantic.BaseModel``                   its JSON, by alias
a dataclass, and everything else         JSON by the rules of ``codecs_types.py``
=======================================  =============================================================================

The type alone decides: which of those libraries is installed never changes what travels, and none of them is imported
here, because whoever has such a type has imported it. Whoever wants another form gives an object with ``encode`` and
``decode``. Whatever goes wrong, ``encode`` raises ``PayloadInvalid`` and ``decode`` raises ``DecodeFailed``; what
our own codec says there shows no values.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar, overload

from ..errors import ConfigurationError, DecodeFailed, PayloadInvalid
from .codecs_libraries import library_codec
from .codecs_types import form_of, shown_type
from .codecs_values import Mismatch, from_json
from .envelope import compact_json, payload_bytes

__all__ = ["Codec", "codec_for"]

T = TypeVar("T")


class Codec(Protocol[T]):
    """Turns values into payloads and back. ``decode`` makes a new value each time; it belongs to whoever gets it."""

    def encode(self, value: T, /) -> bytes: ...
    def decode(self, raw: bytes, /) -> T: ...


@overload
def codec_for(kind: type[T], codec: Codec[T] | None = None) -> Codec[T]: ...
@overload
def codec_for(kind: Any, codec: Codec[Any] | None = None) -> Codec[Any]: ...
def codec_for(kind: Any, codec: Codec[Any] | None = None) -> Codec[Any]:
    """The way of the values of ``kind``, or that of ``codec``. Raises ``ConfigurationError`` for what has none."""
    if codec is None:
        codec = _Bytes() if kind is bytes else _Text() if kind is str else library_codec(kind) or _Values(kind)
    elif not callable(getattr(codec, "encode", None)) or not callable(getattr(codec, "decode", None)):
        raise ConfigurationError(f"codec must have encode(value) and decode(raw), which {codec!r:.100} has not")
    return _Contained(shown_type(kind), codec)


class _Contained(Generic[T]):
    """A codec of whatever kind, with our errors."""

    __slots__ = ("_codec", "_name")

    def __init__(self, name: str, codec: Codec[T]) -> None:
        self._name = name
        self._codec = codec

    def encode(self, value: T) -> bytes:
        try:
            return payload_bytes(self._codec.encode(value))
        except Exception as error:
            raise PayloadInvalid(
                f"this {type(value).__name__} cannot be sent as {self._name}: {_told(error)}"
            ) from error

    def decode(self, raw: bytes) -> T:
        try:
            return self._codec.decode(raw)
        except Exception as error:
            raise DecodeFailed(f"a payload of {len(raw)} bytes is no {self._name}: {_told(error)}", raw) from error


class _Bytes:
    def encode(self, value: object) -> bytes:
        if isinstance(value, str):
            raise Mismatch("is a text, not bytes")
        return payload_bytes(value)

    def decode(self, raw: bytes) -> bytes:
        return raw


class _Text:
    def encode(self, value: object) -> bytes:
        if not isinstance(value, str):
            raise Mismatch("is no text")
        return payload_bytes(value)

    def decode(self, raw: bytes) -> str:
        return raw.decode()


class _Values:
    __slots__ = ("_form",)

    def __init__(self, kind: object) -> None:
        self._form = form_of(kind)

    def encode(self, value: object) -> bytes:
        return compact_json(self._form.encode(value))

    def decode(self, raw: bytes) -> object:
        return self._form.decode(from_json(raw))


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Mismatch) else f"{type(error).__name__}: {error}"
