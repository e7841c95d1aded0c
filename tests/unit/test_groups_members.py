"""What a watcher tells of a group, from two looks: who came, changed, left, was lost.

Theory: what was told, played over what was known, must give what is seen; and nothing is told without a difference.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgconcert.members import GroupView, Member, MemberChange, changes_between, seen_in
from pgconcert.store import Entry, Look, SessionInfo, Subject

GROUP = Subject("group", "n", "g")


def entry(
    member: str,
    token: int = 1,
    *,
    lives: bool = True,
    given: bool = False,
    data: str | None = None,
    since: float | None = 1.0,
    expires_in: float = 5.0,
) -> Entry:
    session = SessionInfo(
        id=1, uuid="u", host="h", pid=1, application="", data=None, ttl=1.0, started=0.0, expires_in=expires_in
    )
    return Entry(
        subject=Subject("member", "n", "g", member),
        session=session if lives else None,
        token=token,
        since=since,
        data=data,
        given=given,
        release_requested=False,
        waiting=0,
    )


def told(before: list[Entry], now: list[Entry]) -> list[tuple[str, str, int]]:
    changes = changes_between(seen_in(before, "u.h"), seen_in(now, "u.h"), now)
    return [(change.kind, change.member.member_id, change.member.token) for change in changes]


def test_the_first_look() -> None:
    """Those who are there have joined, the oldest first; the next look is due when the first of them may be over."""
    view = GroupView(GROUP, "u.h")
    assert view.request() == Look(kind="member", namespace="n", name="g")
    entries = [entry("a", since=3.0), entry("b", since=2.0, expires_in=0.5), entry("c", lives=False, given=True)]
    changes, due = view.seen(entries)
    assert [(change.kind, change.member.member_id) for change in changes] == [("joined", "b"), ("joined", "a")]
    assert due == 0.5
    assert all(change.member.mine for change in changes)
    assert view.seen(entries) == ([], 0.5)


def test_nobody_is_there() -> None:
    """An empty group changes by nothing but a word."""
    assert GroupView(GROUP, "u.h").seen([entry("a", lives=False)]) == ([], None)


def test_left_or_lost() -> None:
    """Who gave its membership back has left, all others were lost."""
    assert told([entry("a")], [entry("a", lives=False, given=True)]) == [("left", "a", 1)]
    assert told([entry("a")], [entry("a", lives=False)]) == [("lost", "a", 1)]
    assert told([entry("a")], []) == [("lost", "a", 1)]


def test_a_quick_return() -> None:
    """Who left and joined again between two looks did both, and so it is when it has left once more."""
    assert told([entry("a", 1)], [entry("a", 2)]) == [("left", "a", 1), ("joined", "a", 2)]
    assert told([entry("a", 1)], [entry("a", 2, lives=False)]) == [("left", "a", 1)]


def test_updated() -> None:
    """Other capabilities are told with their new value; ``1`` is another one than ``true``."""
    assert told([entry("a", data="true")], [entry("a", data="true")]) == []
    assert told([entry("a", data="true")], [entry("a", data="1")]) == [("updated", "a", 1)]
    now = [entry("a", data='{"gpu":2}')]
    (change,) = changes_between(seen_in([entry("a")], ""), seen_in(now, ""), now)
    assert change.member.capabilities == {"gpu": 2}
    assert not change.member.mine


def test_the_order() -> None:
    """Those who went, then updates, then those who came."""
    before = [entry("a"), entry("b"), entry("c", data="1")]
    now = [entry("b", 2), entry("c", data="2"), entry("d", since=0.5)]
    assert told(before, now) == [
        ("lost", "a", 1),
        ("left", "b", 1),
        ("updated", "c", 1),
        ("joined", "d", 1),
        ("joined", "b", 2),
    ]


looks = st.lists(
    st.dictionaries(
        st.sampled_from("abc"),
        st.builds(
            lambda token, lives, given, data: (token, lives, given, data),
            st.integers(1, 3),
            st.booleans(),
            st.booleans(),
            st.sampled_from([None, "1", "2"]),
        ),
    ),
    max_size=8,
)


@given(looks)
def test_what_is_told_is_what_is_seen(looks: list[dict[str, tuple[int, bool, bool, str | None]]]) -> None:
    """The changes lead from each look to the next; each is a step that was possible."""
    view = GroupView(GROUP, "u.h")
    present: dict[str, Member] = {}

    def play(change: MemberChange) -> None:
        member = change.member
        if change.kind == "joined":
            assert member.member_id not in present
            present[member.member_id] = member
        elif change.kind == "updated":
            assert present[member.member_id].token == member.token
            assert present[member.member_id].capabilities != member.capabilities
            present[member.member_id] = member
        else:
            assert present.pop(member.member_id) == member

    for look in looks:
        entries = [
            entry(member, token, lives=lives, given=given_back, data=data)
            for member, (token, lives, given_back, data) in look.items()
        ]
        changes, _ = view.seen(entries)
        for change in changes:
            play(change)
        assert present == {member: seen.member for member, seen in seen_in(entries, "u.h").items()}
