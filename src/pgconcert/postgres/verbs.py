"""What an owner can ask of the server about its key: a table of verbs, with their statements and whom they tell.

A verb over locks takes keys and answers one letter for each; a verb over semaphores takes several arrays and answers a
letter or a list of slots for each. Which letter means what stands beside the SQL (``statements.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .keyowner import KeyOwner
from .link import Rows, Statement
from .owner import Owner
from .slotowner import SlotOwner
from .statements import (
    AGREE,
    CLOSE,
    CLOSE_MANY,
    GIVE,
    JOIN,
    JOIN_MANY,
    LEAVE,
    MARK,
    MARK_AT_GATE,
    MARK_AT_GATE_MANY,
    MARK_MANY,
    MARK_SHARED,
    MARK_SHARED_MANY,
    MARK_SLOTS,
    MARK_TO_JOIN,
    MARK_TO_JOIN_MANY,
    OPEN,
    OPEN_MANY,
    RETRY,
    RETRY_MANY,
    TAKE,
    TRY,
    TRY_MANY,
    TRY_SHARED,
    TRY_SHARED_MANY,
    UNLOCK,
    UNLOCK_MANY,
    UNLOCK_SHARED,
    UNLOCK_SHARED_MANY,
    UNMARK,
    UNMARK_MANY,
)

__all__ = ["VERBS", "OwnerVerb"]

_BRACE: Final = ord("{")

Parameters = Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class OwnerVerb:
    """One thing that can be asked. ``answered`` hands every owner of a batch its part of the answer."""

    one: Statement
    one_parameters: Callable[[Any], Parameters]
    many: Statement
    many_parameters: Callable[[Sequence[Any]], Parameters]
    answered: Callable[[Sequence[Any], Rows], None]


def _letter(one: Statement, many: Statement, tell: Callable[[Any, int], None]) -> OwnerVerb:
    def answered(batch: Sequence[Owner], rows: Rows) -> None:
        text = rows[0][0]
        assert text is not None
        if len(batch) == 1 and text[0] != _BRACE:
            tell(batch[0], text[0])
            return
        for owner, answer in zip(batch, text[1::2], strict=True):
            tell(owner, answer)

    return OwnerVerb(one, _key, many, _keys, answered)


def _listed(
    many: Statement, parameters: Callable[[Sequence[SlotOwner]], Parameters], tell: Callable[[SlotOwner, bytes], None]
) -> OwnerVerb:
    def answered(batch: Sequence[SlotOwner], rows: Rows) -> None:
        text = rows[0][0]
        assert text is not None
        for owner, answer in zip(batch, text[1:-1].split(b","), strict=True):
            tell(owner, answer)

    return OwnerVerb(many, lambda owner: parameters((owner,)), many, parameters, answered)


def _first(tell: Callable[[SlotOwner, int], None]) -> Callable[[SlotOwner, bytes], None]:
    return lambda owner, answer: tell(owner, answer[0])


def _key(owner: Owner) -> Parameters:
    return (owner.raw,)


def _keys(batch: Sequence[Owner]) -> Parameters:
    return (_array([owner.raw for owner in batch]),)


def _candidates(batch: Sequence[SlotOwner]) -> Parameters:
    asked = [owner.candidates() for owner in batch]
    return (
        *_keys(batch),
        _numbers(permits for permits, _, _, _ in asked),
        _numbers(start for _, start, _, _ in asked),
        _numbers(wanted for _, _, wanted, _ in asked),
        _lists(ours for _, _, _, ours in asked),
    )


def _given(batch: Sequence[SlotOwner]) -> Parameters:
    return (*_keys(batch), _lists(owner.given() for owner in batch))


def _agreements(batch: Sequence[SlotOwner]) -> Parameters:
    return (*_keys(batch), _numbers(owner.agreement() for owner in batch))


def _agreed(batch: Sequence[SlotOwner]) -> Parameters:
    return (*_keys(batch), _numbers(owner.agreed for owner in batch))


def _array(items: Sequence[bytes]) -> bytes:
    return b"{" + b",".join(items) + b"}"


def _numbers(numbers: Any) -> bytes:
    return _array([b"%d" % number for number in numbers])


def _lists(lists: Any) -> bytes:
    return _array([b'"' + _numbers(numbers) + b'"' for numbers in lists])


VERBS: Final = {
    "try": _letter(TRY, TRY_MANY, KeyOwner.tried_with),
    "retry": _letter(RETRY, RETRY_MANY, KeyOwner.tried_with),
    "mark": _letter(MARK, MARK_MANY, KeyOwner.marked_with),
    "mark_at_gate": _letter(MARK_AT_GATE, MARK_AT_GATE_MANY, KeyOwner.marked_with),
    "unlock": _letter(UNLOCK, UNLOCK_MANY, KeyOwner.unlocked_with),
    "try_shared": _letter(TRY_SHARED, TRY_SHARED_MANY, KeyOwner.tried_shared_with),
    "mark_shared": _letter(MARK_SHARED, MARK_SHARED_MANY, KeyOwner.marked_shared_with),
    "join": _letter(JOIN, JOIN_MANY, KeyOwner.joined_with),
    "unlock_shared": _letter(UNLOCK_SHARED, UNLOCK_SHARED_MANY, KeyOwner.unlocked_with),
    "mark_to_join": _letter(MARK_TO_JOIN, MARK_TO_JOIN_MANY, KeyOwner.marked_to_join_with),
    "close": _letter(CLOSE, CLOSE_MANY, KeyOwner.closed_with),
    "open": _letter(OPEN, OPEN_MANY, KeyOwner.opened_with),
    "unmark": _letter(UNMARK, UNMARK_MANY, Owner.unmarked_with),
    "agree": _listed(AGREE, _agreements, _first(SlotOwner.agreement_taken_with)),
    "take": _listed(TAKE, _candidates, SlotOwner.taken_with),
    "mark_slots": _listed(MARK_SLOTS, _candidates, SlotOwner.marked_with),
    "give": _listed(GIVE, _given, _first(SlotOwner.given_with)),
    "leave": _listed(LEAVE, _agreed, _first(SlotOwner.left_with)),
}
"""Every verb by its name."""
