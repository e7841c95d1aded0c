"""What travels in a notification: a payload as it is, or an envelope around it. Pure functions, and their records.

A payload that is UTF-8 text without NUL, of at most 7,999 bytes, travels as it is, so that any program which knows
LISTEN and NOTIFY can read and send it. What has more to say, or cannot be such a text, gets an envelope::

    pgconcert:1 {"id":"…","from":"…",…}\\n<body>

that is: a version, one line of JSON, and the body, as it is if it is such a text, else in base64 (``"enc":"base64"``).
Payloads that begin with ``pgconcert:`` get one too, so nothing that was published as a text is ever read as an
envelope. Of version 1 these keys are known, all may be missing, and others are ignored:

========  ===========================================================================================
``id``    the id of the message
``from``  the id of the coordinator that sent it
``h``     the headers, texts by name
``enc``   ``"base64"``: how the body is written
``reply`` the channel on which replies are awaited; it begins with ``pgconcert:reply:``
``re``    the id of the request that this message answers
``err``   what went wrong with that request
``spill`` ``{"n", "size", "sum"}``: the payload lies in the database under this number; the body is empty
========  ===========================================================================================

``parse`` raises ``Malformed`` for whatever begins like an envelope and is none; the message is then delivered as it
came, with that reason. What ``encode`` returns is always UTF-8 without NUL, and always fits a notification when it
carries a ``Spill``: headers and errors are limited so that it does.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ..errors import ChannelInvalid, PayloadInvalid, given
from ..messenger import MAX_NOTIFICATION
from .channels import REPLY_PREFIX, check_channel
from .message import NO_HEADERS

__all__ = [
    "MAX_HEADERS",
    "Envelope",
    "Malformed",
    "Spill",
    "check_sum",
    "compact_json",
    "encode",
    "fits",
    "json_bytes",
    "looks_enveloped",
    "needs_envelope",
    "parse",
    "payload_bytes",
]

MAX_HEADERS: Final = 2000
"""The most bytes that the headers of one message may have, as JSON."""

_MARK: Final = b"pgconcert:"
_VERSION_1: Final = b"pgconcert:1 "
_MAX_ERROR: Final = 2000
_ID: Final = re.compile(r"[!-~]{1,64}")
_SUM: Final = re.compile(r"[0-9a-f]{16}")
_INT64_MAX: Final = 2**63 - 1


class Malformed(Exception):
    """This begins like an envelope and is none. The text says why."""


class Spill(NamedTuple):
    """Where a payload lies that is too large for a notification, and how it is known to be the right one."""

    number: int
    size: int
    sum: str

    @classmethod
    def of(cls, number: int, payload: bytes) -> Spill:
        """The one of ``payload``, which lies under ``number``."""
        return cls(number, len(payload), check_sum(payload))

    def matches(self, payload: bytes) -> bool:
        """Whether this is the payload that was sent."""
        return len(payload) == self.size and check_sum(payload) == self.sum


class Envelope(NamedTuple):
    """What an envelope says. ``sender`` is the id of a coordinator, ``answers`` that of a request."""

    payload: bytes
    id: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    sender: str | None = None
    reply_to: str | None = None
    answers: str | None = None
    error: str | None = None
    spill: Spill | None = None


def payload_bytes(value: object) -> bytes:
    """The bytes of a payload that a caller gave; they are the caller's no more. Raises ``PayloadInvalid``."""
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        return _utf8(str.__str__(value), "a payload")
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return memoryview(value).tobytes()
        except ValueError as error:
            raise PayloadInvalid(f"a payload cannot be read: {error}") from None
    raise PayloadInvalid(
        f"a payload is bytes or a text, not {type(value).__name__}: {given(value)}; give a value as json="
    )


def json_bytes(value: object) -> bytes:
    """The bytes of what a caller gave as ``json=``. Raises ``PayloadInvalid``."""
    try:
        return compact_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadInvalid(f"json= was given a {type(value).__name__} that has no JSON form: {error}") from None


def compact_json(value: object) -> bytes:
    """A value as JSON, in UTF-8 and without needless blanks; raises what ``json`` raises."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def check_sum(payload: bytes) -> str:
    """What tells a payload apart from a wrong one: BLAKE2b of 8 bytes, in hexadecimal digits."""
    return blake2b(payload, digest_size=8).hexdigest()


def needs_envelope(payload: bytes) -> bool:
    """Whether a payload that has nothing else to say cannot travel as it is."""
    return len(payload) > MAX_NOTIFICATION or not _is_text(payload) or payload.startswith(_MARK)


def looks_enveloped(raw: bytes) -> bool:
    """Whether this must be given to ``parse``; everything else is a payload."""
    return raw.startswith(_MARK)


def fits(wire: bytes) -> bool:
    """Whether a notification can carry this."""
    return len(wire) <= MAX_NOTIFICATION


def encode(
    payload: bytes,
    *,
    message_id: str | None = None,
    headers: Mapping[str, str] | None = None,
    sender: str | None = None,
    reply_to: str | None = None,
    answers: str | None = None,
    error: str | None = None,
    spill: Spill | None = None,
) -> bytes:
    """What travels: the payload as it is where that is possible, else an envelope.

    It may be too long for a notification (``fits``). Then the payload is spilled, and this is called again with an
    empty payload and ``spill``; the result fits. Ids are 1 to 64 printable ASCII characters, headers have at most
    ``MAX_HEADERS`` bytes; an ``error`` is shortened to what fits. Raises ``PayloadInvalid``.
    """
    texts = {} if headers is None else _checked_headers(headers)
    plain = message_id is None and sender is None and answers is None and reply_to is None
    if plain and not texts and error is None and spill is None and not needs_envelope(payload):
        return payload  # the hot path
    line: dict[str, object] = {}
    for key, name in (("id", message_id), ("from", sender), ("re", answers)):
        if name is not None:
            line[key] = _checked_id(name)
    if texts:
        line["h"] = texts
    if reply_to is not None:
        line["reply"] = reply_to
    if error is not None:
        line["err"] = _shortened(error)
    if spill is not None:
        line["spill"] = {"n": spill.number, "size": spill.size, "sum": spill.sum}
    if not _is_text(payload):
        line["enc"] = "base64"
        payload = binascii.b2a_base64(payload, newline=False)
    return b"%b%b\n%b" % (_VERSION_1, compact_json(line), payload)


def parse(raw: bytes) -> Envelope:
    """Read what begins with ``pgconcert:``. Raises ``Malformed``, and nothing else."""
    if not raw.startswith(_VERSION_1):
        version = raw[len(_MARK) :].partition(b" ")[0][:20].decode(errors="replace")
        raise Malformed(f"envelopes of version {version!r} are not known here")
    head, newline, body = raw[len(_VERSION_1) :].partition(b"\n")
    if not newline:
        raise Malformed("the first line has no end")
    try:
        line: object = json.loads(head.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the first line is not JSON: {error}") from None
    if not isinstance(line, dict):
        raise Malformed(f"the first line is a JSON {type(line).__name__}, not an object")
    encoding = line.get("enc")
    if encoding == "base64":
        try:
            body = binascii.a2b_base64(body, strict_mode=True)
        except binascii.Error as error:
            raise Malformed(f"the body is not base64: {error}") from None
    elif encoding is not None:
        raise Malformed(f"a body in {_told(encoding)} cannot be read here")
    spill = _read_spill(line.get("spill"))
    if spill is not None and body:
        raise Malformed(f"the payload lies in the database, and there is a body of {len(body)} bytes as well")
    return Envelope(
        payload=body,
        id=_read_id(line, "id"),
        headers=_read_headers(line.get("h")),
        sender=_read_id(line, "from"),
        reply_to=_read_reply(line.get("reply")),
        answers=_read_id(line, "re"),
        error=_read_text(line, "err"),
        spill=spill,
    )


def _is_text(payload: bytes) -> bool:
    if b"\0" in payload:
        return False
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as bad:
        raise PayloadInvalid(
            f"{what} of {len(text)} characters has a lone surrogate at position {bad.start}; it is not text"
        ) from None


def _checked_id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise PayloadInvalid(
            f"the id of a message is a text of 1 to 64 printable ASCII characters without blanks, not {given(value)}"
        )
    return value


def _checked_headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise PayloadInvalid(f"headers are a mapping of texts, not {type(headers).__name__}: {given(headers)}")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise PayloadInvalid(f"headers are texts, and {given(name)} is {given(value)}")
        _utf8(name, "the name of a header")
        _utf8(value, f"header {name!r:.60}")
        checked[name] = value
    size = len(compact_json(checked))
    if size > MAX_HEADERS:
        raise PayloadInvalid(
            f"{len(checked)} headers have {size} bytes; at most {MAX_HEADERS} are allowed, so put more into the payload"
        )
    return checked


def _shortened(text: str) -> str:
    """A text that says what went wrong, as far as there is room. It must never fail itself."""
    cut = text[:_MAX_ERROR].encode(errors="replace").decode()
    while len(compact_json(cut)) > _MAX_ERROR:
        cut = cut[: len(cut) * 7 // 8]
    return cut


def _read_id(line: dict[str, Any], key: str) -> str | None:
    value = line.get(key)
    if value is not None and (not isinstance(value, str) or not _ID.fullmatch(value)):
        raise Malformed(f"{key!r} is {_told(value)}, which is no id")
    return value


def _read_text(line: dict[str, Any], key: str) -> str | None:
    value = line.get(key)
    if value is not None and not _is_utf8(value):
        raise Malformed(f"{key!r} is {_told(value)}, which is no text")
    return value


def _read_headers(value: object) -> Mapping[str, str]:
    if value is None:
        return NO_HEADERS
    if not isinstance(value, dict) or not all(_is_utf8(name) and _is_utf8(text) for name, text in value.items()):
        raise Malformed(f"the headers are {_told(value)}, which are no texts by name")
    return MappingProxyType(value)


def _read_reply(value: object) -> str | None:
    if value is None:
        return None
    # whoever could name any channel here could make others publish there
    if not isinstance(value, str) or not value.startswith(REPLY_PREFIX):
        raise Malformed(f"replies are awaited on {_told(value)}, which is no channel for replies")
    try:
        check_channel(value, ours=True)
    except ChannelInvalid as error:
        raise Malformed(f"replies are awaited where nobody can listen: {error}") from None
    return value


def _read_spill(value: object) -> Spill | None:
    if value is None:
        return None
    if isinstance(value, dict):
        named: dict[str, Any] = value
        found = Spill(named.get("n", -1), named.get("size", -1), named.get("sum", ""))
        if _is_count(found.number) and _is_count(found.size) and _is_sum(found.sum):
            return found
    raise Malformed(f"'spill' is {_told(value)}, which names no kept payload")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _INT64_MAX


def _is_sum(value: object) -> bool:
    return isinstance(value, str) and _SUM.fullmatch(value) is not None


def _is_utf8(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told(value: object) -> str:
    # what is nested as deeply as could just be read is too deep to be shown
    return given(value) if isinstance(value, (str, int, float)) else f"a JSON {type(value).__name__}"
