"""The judge of message histories: it finds each kind of wrong, and nothing else.

Theory: each history is told as its lines, so that what is wrong with it can be read.
"""

from __future__ import annotations

import pytest

from tests.faults.message_history import handled, judge

SENT = ["begin p c 1 10", "begin p c 2 20", "begin p c 3 30", "fate p 1 sent", "fate p 2 sent", "fate p 3 sent"]
ALL = ["entered s c 1", *SENT]


def wrong(*lines: str) -> list[str]:
    return judge(line.split() for line in lines).wrong


RIGHT = {
    "everything": [*ALL, "got s p 1", "got s p 2", "got s p 3", "finished s"],
    "begun before the entry": ["entered s c 25", *SENT, "got s p 3", "finished s"],
    "a gap": [*ALL, "got s p 1", "gap s reconnect ? c", "got s p 3", "finished s"],
    "a gap at the end": [*ALL, "got s p 1", "gap s reconnect ? c", "finished s"],
    "a gap that counts": [*ALL, "got s p 1", "gap s overflow 1 c", "got s p 3", "finished s"],
    "uncertain": [*ALL[:-1], "fate p 3 uncertain", "got s p 1", "got s p 2", "finished s"],
    "without a fate": [*ALL[:-1], "got s p 1", "got s p 2", "got s p 3", "finished s"],
    "refused": [*ALL[:-1], "fate p 3 refused", "got s p 1", "got s p 2", "finished s"],
    "not finished": [*ALL, "got s p 1"],
    "another channel": ["entered s d 1", *SENT, "finished s"],
}

WRONG = {
    "a hole": ([*ALL, "got s p 1", "got s p 3", "finished s"], "s did not get [2] (1) of p and was not told, before 3"),
    "a hole at the start": ([*ALL, "got s p 2", "got s p 3", "finished s"], "did not get [1]"),
    "a hole at the end": (
        [*ALL, "got s p 1", "finished s"],
        "did not get [2, 3] (2) of p and was not told, at the end",
    ),
    "a gap too early": ([*ALL, "gap s reconnect ? c", "got s p 1", "got s p 3", "finished s"], "did not get [2]"),
    "a gap too late": ([*ALL, "got s p 1", "got s p 3", "gap s reconnect ? c", "finished s"], "did not get [2]"),
    "a gap elsewhere": ([*ALL, "got s p 1", "gap s reconnect ? d", "got s p 3", "finished s"], "did not get [2]"),
    "a gap too small": (
        [*ALL, "gap s overflow 1 c", "got s p 3", "finished s"],
        "missed 2 messages in gaps that admit",
    ),
    "twice": ([*ALL, "got s p 1", "got s p 1"], "got 1 of p after 1"),
    "out of order": ([*ALL, "gap s reconnect ? c", "got s p 2", "got s p 1"], "got 1 of p after 2"),
    "refused and yet there": ([*ALL[:-1], "fate p 3 refused", *(f"got s p {n}" for n in (1, 2, 3))], "not to be sent"),
    "invented": ([*ALL, "got s p 4"], "which nobody sent there"),
    "from another channel": (["entered s d 1", *SENT, "got s p 1"], "which nobody sent there"),
    "nonsense": (["once upon a time"], "makes no sense"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str) -> None:
    assert wrong(*RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str) -> None:
    lines, said = WRONG[name]
    (found,) = wrong(*lines)
    assert said in found


def test_numbers_of_a_run() -> None:
    verdict = judge(line.split() for line in RIGHT["a gap"])
    assert (verdict.received, verdict.missed) == (2, 1)
    assert verdict.gaps == {"reconnect": 1}
    assert verdict.fates == {"sent": 3}


def test_who_handled_what() -> None:
    lines = ["got s p 1", "got t p 2", "got t p 1", "active 5 c"]
    assert handled(line.split() for line in lines) == {"p 1": ["s", "t"], "p 2": ["t"]}
