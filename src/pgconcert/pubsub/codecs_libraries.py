"""The types of other libraries that bring their own JSON: msgspec and pydantic. Nothing else may live here.

Neither is imported: somebody who has such a type has imported it already, so it is looked for among the modules that
are loaded. What they write travels as it is.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from ..errors import ConfigurationError
from .codecs_values import Mismatch

__all__ = ["library_codec"]


def library_codec(kind: object) -> _Codec | None:
    """The codec of a ``msgspec.Struct`` or a pydantic model; ``None`` for every other type."""
    if not isinstance(kind, type):
        return None
    msgspec, pydantic = sys.modules.get("msgspec"), sys.modules.get("pydantic")
    if msgspec is not None and issubclass(kind, msgspec.Struct):
        return _Struct(msgspec, kind)
    if pydantic is not None and issubclass(kind, pydantic.BaseModel):
        if not hasattr(kind, "model_validate_json"):
            raise ConfigurationError(
                f"{kind.__name__} is a model of pydantic 1; pydantic 2 is needed, or give a codec="
            )
        return _Model(pydantic, kind)
    return None


class _Codec(Protocol):
    def encode(self, value: Any, /) -> bytes: ...
    def decode(self, raw: bytes, /) -> Any: ...


class _Struct:
    __slots__ = ("_decoder", "_encoder", "_kind")

    def __init__(self, msgspec: Any, kind: type) -> None:
        self._kind = kind
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(kind)

    def encode(self, value: object) -> bytes:
        if not isinstance(value, self._kind):
            raise Mismatch(f"is no {self._kind.__name__}")
        encoded: bytes = self._encoder.encode(value)
        return encoded

    def decode(self, raw: bytes) -> object:
        return self._decoder.decode(raw)


class _Model:
    __slots__ = ("_kind", "_wrong")

    def __init__(self, pydantic: Any, kind: Any) -> None:
        self._kind = kind
        self._wrong = pydantic.ValidationError

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, self._kind):
            raise Mismatch(f"is no {self._kind.__name__}")
        encoded: str = value.model_dump_json(by_alias=True, round_trip=True)
        return encoded.encode()

    def decode(self, raw: bytes) -> object:
        try:
            return self._kind.model_validate_json(raw)
        except self._wrong as error:
            # its own text shows what came, which may be secret
            found = error.errors(include_input=False, include_url=False, include_context=False)
            place = ".".join(map(str, found[0]["loc"]))
            raise Mismatch(f"is wrong ({found[0]['msg']}; {len(found)} errors in all)").at(place) from None
