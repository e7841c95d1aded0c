"""The scope of a hold, as a table: what happened, and what the code around and after the block must see.

Here lives how a case is run and judged; the cases stand in `hold_cases.py` and
`hold_cases_structures.py`. Scopes that leave their task, generators,
release and the finaliser stand in `test_hold_edges.py`.

Theory: every case runs in a task of its own, and that task goes on for a few turns afterwards as code behind the block
would. So a case says three things: how the block ended, how many cancels are still asked of the task (other people's
only), and that none arrives late. "The same tick" is made exact with one callback that does both things in a stated
order; no case depends on the resolution of a timer.
"""

from __future__ import annotations

import pytest

from pgconcert.errors import LockLost
from tests.unit import hold_cases_structures
from tests.unit.hold_cases import CASES
from tests.unit.holds import Scene, aftermath, loops

pytestmark = pytest.mark.usefixtures("loop_factory")
loop_factory = loops

assert hold_cases_structures  # imported for the cases that it adds

NOTE = "the hold was lost"


@pytest.mark.parametrize("name", CASES)
async def test_scope(name: str) -> None:
    wanted = CASES[name]
    scene = Scene()
    seen = await aftermath(lambda: wanted.body(scene))
    assert (type(seen.error) if seen.error else None) is wanted.ends, repr(seen.error)
    assert seen.cancelling == wanted.cancelling
    assert not seen.stray, "a cancel arrived after the block"
    if wanted.note is not None:
        assert any(NOTE in note for note in getattr(seen.error, "__notes__", ())) is wanted.note
    assert scene.hold.lost is wanted.lost
    if isinstance(seen.error, LockLost):
        assert seen.error.reason == "test"
    scene.check()
    assert not scene.waiting, "a release was never answered"
    assert scene.released == ([] if wanted.lost else [scene.grant])
