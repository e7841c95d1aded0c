"""A machine that is suspended: its clock goes on, its processes do not, and nothing may be trusted after it.

Theory. No test can suspend the machine, so time is read an hour later from one line to the next: on the clock that goes
on during a suspension, and on no other. Whoever went by another would trust on.
"""

from __future__ import annotations

import time

import pytest

from pgconcert import AsyncCoordinator, SessionLost
from pgconcert.events import Event, HeartbeatLate
from pgconcert.testing import eventually_async
from tests.faults.scenes import seen
from tests.postgres.jobscenes import make_tables, row

pytestmark = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock here counts suspend")

HOUR = 3600.0


async def test_what_was_held_before_a_suspension_is_lost_in_the_first_line_after_it(
    database: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tables(database)
    right = time.clock_gettime

    def later(which: int) -> float:
        return right(which) + HOUR * (which == time.CLOCK_BOOTTIME)

    async with AsyncCoordinator(database) as c:
        late = seen(c, HeartbeatLate)
        hold = await c.job_lock(unique, ttl=40, interval=0.5).acquire()
        assert not hold.lost
        monkeypatch.setattr(time, "clock_gettime", later)
        assert hold.lost
        with pytest.raises(SessionLost, match="no heartbeat of its session was answered"):
            hold.check()
        assert "no heartbeat" in await hold.wait_lost()

        def suspended() -> list[Event]:  # else the machine was only busy
            return [event for event in late if isinstance(event, HeartbeatLate) and event.delay > HOUR / 2]

        await eventually_async(suspended, what="the loop has noticed")
        [event] = suspended()
        assert isinstance(event, HeartbeatLate)
        assert HOUR - 40 < event.delay < HOUR + 40
        assert "were trusted until" in str(event)
        # and from then on it can be had again, by a session that was started after it
        async with c.job_lock(unique, ttl=40, interval=0.5) as again:
            assert again.token > hold.token
            assert row(database, unique).session == again.session_id != hold.session_id
        await hold.release()
