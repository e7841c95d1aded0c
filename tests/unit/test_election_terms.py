"""What an observer tells of an election, from the terms that it sees: each change once, in order, none invented.

Theory: a history of terms is written by hand or by Hypothesis, and looked at in the middle of it as the port allows
(`Terms(after=...)`). Whatever the looks, the changes told are those of the history from the first look on.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pgconcert.store import Entry, SessionInfo, Subject, Term, Terms
from pgconcert.terms import LeaderChange, TermView, leader_in

SUBJECT = Subject("election", "", "x")


def info(number: int = 1, expires_in: float = 5.0) -> SessionInfo:
    return SessionInfo(
        id=number,
        uuid=f"u{number}",
        host="h",
        pid=number,
        application="app",
        data=None,
        ttl=10.0,
        started=0.0,
        expires_in=expires_in,
    )


def term(token: int, *, until: float | None = None, how: str | None = None, expires_in: float = 5.0) -> Term:
    session = info(token, 0.0 if until is not None else expires_in)
    return Term(token=token, leader=session, data='{"a":1}', since=float(token), until=until, how=how)


def told(changes: list[LeaderChange]) -> list[tuple[str | None, int | None, str | None]]:
    """Who leads, in which term, how it ended."""
    return [(change.leader.identity if change.leader else None, change.token, change.how) for change in changes]


def view() -> TermView:
    return TermView(SUBJECT, "u1.h")


def test_nobody_ever_led() -> None:
    """The present state comes first, also that there never was a leader; it is told once, and looked at from the
    beginning from then on."""
    seen = view()
    assert seen.request() == Terms(subject=SUBJECT, after=None)
    assert seen.seen(()) == ([LeaderChange(leader=None, token=None, at=None, how=None)], None)
    assert seen.seen(()) == ([], None)
    changes, due = seen.seen((term(1, until=4.0, how="released"), term(2)))
    assert told(changes) == [("u1.h", 1, None), (None, 1, "released"), ("u2.h", 2, None)]
    assert due == 5.0
    assert seen.request() == Terms(subject=SUBJECT, after=1)


def test_the_present_leader() -> None:
    """A leader is told with all that is known, and again only when something has changed."""
    seen = view()
    (change,), due = seen.seen((term(1),))
    assert change.leader is not None
    assert change.leader.mine
    assert change.leader.data == {"a": 1}
    assert (change.token, change.at, change.how) == (1, 1.0, None)
    assert due == 5.0
    assert seen.seen((term(1, expires_in=9.0),)) == ([], 9.0)


def test_a_term_that_had_ended_before() -> None:
    """At first only the present is told: nobody leads, and how the last term ended."""
    seen = view()
    changes, due = seen.seen((term(7, until=8.0, how="revoked"),))
    assert changes == [LeaderChange(leader=None, token=7, at=8.0, how="revoked")]
    assert due is None


def test_a_session_whose_time_is_over() -> None:
    """A leader whose time is over leads no more, though nobody took over; the end of the term is no change then."""
    seen = view()
    seen.seen((term(1),))
    changes, due = seen.seen((term(1, expires_in=0.0),))
    assert changes == [LeaderChange(leader=None, token=1, at=None, how="lost")]
    assert due is None
    assert seen.seen((term(1, until=9.0, how="lost"),)) == ([], None)


def test_back_on_another_server() -> None:
    """A leader whose time was over may be back, with the same token."""
    seen = view()
    seen.seen((term(1, expires_in=-1.0),))
    changes, _ = seen.seen((term(1),))
    assert told(changes) == [("u1.h", 1, None)]


def test_a_term_that_is_gone() -> None:
    """A server that lost the last term: nobody leads, and then what it knows is told, also with a smaller token."""
    seen = view()
    seen.seen((term(5),))
    changes, due = seen.seen(())
    assert told(changes) == [(None, 5, "lost")]
    assert due == 0.0
    assert seen.request() == Terms(subject=SUBJECT, after=None)
    changes, _ = seen.seen((term(4),))
    assert told(changes) == [("u4.h", 4, None)]


def test_everything_is_gone() -> None:
    """A server that knows nothing of the election: it is looked at from the beginning, and not again and again."""
    seen = view()
    seen.seen((term(5),))
    seen.seen(())
    assert seen.seen(()) == ([], None)
    assert seen.request() == Terms(subject=SUBJECT, after=-1)
    changes, _ = seen.seen((term(6, until=7.0, how="resigned"),))
    assert told(changes) == [("u6.h", 6, None), (None, 6, "resigned")]


def test_a_forgotten_end() -> None:
    """Who has not looked for longer than terms are known is told that the leader went, and what came after."""
    seen = view()
    seen.seen((term(1),))
    changes, _ = seen.seen((term(8),))
    assert told(changes) == [(None, 1, "lost"), ("u8.h", 8, None)]


@given(
    history=st.lists(st.sampled_from(["begin", "released", "revoked", "expire", "look", "look"]), max_size=40),
)
def test_whatever_the_looks(history: list[str]) -> None:
    """All changes from the first look on, in order, each once, however many terms lie between two looks."""
    terms: list[Term] = []
    truth: list[tuple[str | None, int | None, str | None]] = [(None, None, None)]
    seen = view()
    heard: list[tuple[str | None, int | None, str | None]] = []
    first: int | None = None

    def end(how: str) -> None:
        terms[-1] = replace(terms[-1], until=1.0, how=how, leader=info(terms[-1].token, 0.0))

    for step in [*history, "look"]:
        lasts = bool(terms) and terms[-1].until is None
        alive = lasts and terms[-1].leader.expires_in > 0
        if step == "look":
            request = seen.request()
            after = request.after
            asked = terms[-1:] if after is None else [one for one in terms if one.token > after]
            if first is None:
                first = len(truth) - 1
            changes, due = seen.seen(asked)
            heard += told(changes)
            assert (due is not None) == alive
        elif step == "begin" and not alive:
            if lasts:
                end("lost")
            terms.append(term(len(terms) + 1))
            truth.append((f"u{len(terms)}.h", len(terms), None))
        elif step == "expire" and alive:
            terms[-1] = replace(terms[-1], leader=info(terms[-1].token, 0.0))
            truth.append((None, len(terms), "lost"))
        elif step in ("released", "revoked") and alive:
            end(step)
            truth.append((None, len(terms), step))
    assert first is not None
    assert heard == truth[first:]


def test_who_leads_now() -> None:
    """Of an entry that hangs on no living session nobody is told."""

    def entry(session: SessionInfo | None) -> Entry:
        return Entry(
            subject=SUBJECT,
            session=session,
            token=3,
            since=1.0,
            data="not json",
            given=False,
            release_requested=False,
            waiting=0,
        )

    assert leader_in((), "u1.h") is None
    assert leader_in((entry(None),), "u1.h") is None
    leader = leader_in((entry(info(2)),), "u1.h")
    assert leader is not None
    assert (leader.identity, leader.mine, leader.data, leader.token) == ("u2.h", False, "not json", 3)
    assert str(leader) == "app (pid 2 on h)"
