"""Cases of sessions: what is shown of what hangs on them, groups and their members, the terms of an election, names.
At the port ``Store``."""

from __future__ import annotations

import itertools
from typing import Final

from ...store import (
    CreateGroup,
    DeleteGroup,
    EndSession,
    Kind,
    Look,
    RequestRelease,
    Revoke,
    Subject,
    Take,
    Taken,
    Terms,
    Update,
)
from .desks import desk, desks, fresh
from .suite import Stage, case

_NAMES: Final = (
    "plain",
    "Plain",
    "it's",
    'a "quoted" name',
    "back\\slash",
    "a,comma",
    "{braces}",
    "{}",
    "NULL",
    "null",
    " blanks ",
    "$1 %s %(name)s",
    "line\nbreak\ttab",
    "ü€𝄞\u202e",
    "x" * 1000,
    "ü" * 500,
)

_TEXTS: Final = (
    "null",
    '""',
    "[1,2.5,true,null]",
    '{"b":1,"a":{"x":"\\"quoted\\" \\\\ \\u0000 ü€𝄞"}}',
    '"NULL"',
    f'"{"x" * 60_000}"',
)


@case("sessions")
async def names_are_kept_as_they_are(stage: Stage) -> None:
    """Every name of 1 to 1,000 bytes is one of its own, in a request, in a batch and in what is shown, and so are the
    ids of members and namespaces."""
    a = await desk(stage)
    session = await a.start()
    namespace = fresh().namespace
    subjects = [Subject("job", namespace, name) for name in _NAMES]
    subjects += [Subject("member", namespace, name, name[:100]) for name in _NAMES]
    subjects += [Subject("job", f"{namespace}{name[:50]}", "name") for name in _NAMES]
    answers = await a.together([Take(subject=subject, session=session, mark=True) for subject in subjects])
    tokens = {s: answer.token for s, answer in zip(subjects, answers, strict=True) if isinstance(answer, Taken)}
    assert {*tokens} == {*subjects}
    assert {subject: owned.token for subject, owned in (await a.own(session)).items()} == tokens
    for subject, token in tokens.items():
        assert (await a.entry(subject)).token == token
        assert await a.ask(RequestRelease(subject))
        assert (await a.give(subject, session, token)).ours
        assert (await a.entry(subject)).given
        await a.take(subject, session)
        assert await a.ask(Revoke(subject))


@case("sessions")
async def data_is_kept_as_it_is(stage: Stage) -> None:
    """The data of a session and of what hangs on it are shown as they were given; those of what we have can be
    replaced, as long as it is ours."""
    a, b = await desks(stage)
    b.uuid = a.uuid
    subject = fresh("member", "group", "id")
    session = await a.start()
    for text in _TEXTS:
        await a.ask(EndSession(session))
        session = await a.start(data=text)
        assert (await b.living())[session].data == text
        taken = await a.take(subject, session, data=text)
        assert (await b.entry(subject)).data == text
        for data in ('"other"', None, text):
            assert await a.ask(Update(subject=subject, session=session, token=taken.token, data=data))
            assert (await b.entry(subject)).data == data
        assert not await a.ask(Update(subject=subject, session=session, token=taken.token + 1, data=None))
        assert not await b.ask(Update(subject=subject, session=await b.start(), token=taken.token, data=None))
        assert (await b.entry(subject)).data == text
        await a.give(subject, session)
        assert not await a.ask(Update(subject=subject, session=session, token=taken.token, data=None))
    assert (await a.take(subject, session)).token
    assert (await a.entry(subject)).data is None


@case("sessions")
async def an_entry_is_shown(stage: Stage) -> None:
    """Everybody sees who has a name, since when, with which token, and who waits; and whether it was given back or its
    holder was lost."""
    a, b = await desks(stage)
    subject = fresh()
    assert await b.ask(Look(namespace=subject.namespace)) == ()
    session = await a.start()
    taken = await a.take(subject, session, data="[]")
    entry = await b.entry(subject)
    assert entry.session is not None
    assert (entry.session.id, entry.session.uuid) == (session, a.uuid)
    assert 0 < entry.session.expires_in <= entry.session.ttl
    assert (entry.token, entry.since, entry.data) == (taken.token, taken.since, "[]")
    assert (entry.given, entry.release_requested, entry.waiting) == (False, False, 0)
    await a.give(subject, session)
    entry = await b.entry(subject)
    assert (entry.session, entry.token, entry.since, entry.given) == (None, taken.token, taken.since, True)
    await a.take(subject, session)
    await a.ask(EndSession(session))
    assert ((await b.entry(subject)).session, (await b.entry(subject)).given) == (None, False)
    dead, _ = await a.dying(subject)
    await a.over(dead)
    assert ((await b.entry(subject)).session, (await b.entry(subject)).given) == (None, False)


@case("sessions")
async def a_look_is_filtered_and_ordered(stage: Stage) -> None:
    """A look shows all that has the kind, the namespace, the name and the member asked for, in the order of these, by
    the bytes of their texts."""
    a = await desk(stage)
    session = await a.start()
    namespace, other = sorted((fresh().namespace, fresh().namespace))
    subjects = [Subject("job", space, name) for space in (namespace, other) for name in ("b", "a", "B", "é", "ab", "_")]
    subjects += [Subject("election", namespace, "a"), Subject("member", namespace, "a", "2")]
    subjects += [Subject("member", namespace, name, "1") for name in ("a", "b")]
    await a.together([Take(subject=subject, session=session) for subject in subjects])

    async def seen(**what: str) -> list[Subject]:
        found = await a.ask(Look(**what))  # type: ignore[arg-type]
        return [entry.subject for entry in found if entry.subject.namespace in (namespace, other)]

    in_order = sorted(subjects)
    assert await seen() == in_order
    assert await seen(namespace=namespace) == [one for one in in_order if one.namespace == namespace]
    assert await seen(kind="job", namespace=other) == [one for one in in_order if one.namespace == other]
    assert await seen(name="a") == [one for one in in_order if one.name == "a"]
    assert await seen(kind="member", member="1") == [one for one in in_order if one.member == "1"]
    assert await seen(kind="member", namespace=namespace, name="a", member="2") == [subjects[13]]
    assert await seen(kind="group") == []


@case("sessions")
async def kinds_and_namespaces_are_apart(stage: Stage) -> None:
    """One name in two namespaces, of two kinds or with two members is two names, each with a holder of its own."""
    a, b = await desks(stage)
    subject = fresh()
    kinds: list[Kind] = ["job", "election", "member"]
    apart = [
        subject,
        *(Subject(kind, subject.namespace, subject.name) for kind in kinds[1:]),
        Subject("job", fresh().namespace, subject.name),
        Subject("member", subject.namespace, subject.name, "1"),
        Subject("member", subject.namespace, subject.name, "2"),
    ]
    session, other = await a.start(), await b.start()
    for place, one in enumerate(apart):
        await (a.take(one, session) if place % 2 else b.take(one, other))
    assert {*await a.own(session)} == {*apart[1::2]}
    assert {*await b.own(other)} == {*apart[::2]}
    await b.give(subject, other)
    await a.take(subject, session)


@case("sessions")
async def a_group_is_there_or_not(stage: Stage) -> None:
    """A group is made once, shown, and removed unless a member lives; members need none."""
    a, b = await desks(stage)
    group = fresh("group", "a group")
    member = Subject("member", group.namespace, group.name, "id")
    assert await a.ask(DeleteGroup(group)) == "missing"
    assert await a.ask(CreateGroup(group))
    assert not await b.ask(CreateGroup(group))
    (shown,) = await b.ask(Look(kind="group", namespace=group.namespace))
    assert (shown.subject, shown.session) == (group, None)
    session = await a.start()
    for leave in ("give", "end", "die"):
        if leave == "die":
            dead, _ = await a.dying(member)
            await a.over(dead)
        else:
            await a.take(member, session)
            assert await b.ask(DeleteGroup(group)) == "not empty"
            await (a.give(member, session) if leave == "give" else a.ask(EndSession(session)))
        assert await b.ask(DeleteGroup(group)) == "deleted"
        assert await b.ask(Look(kind="group", namespace=group.namespace)) == ()
        assert await b.ask(DeleteGroup(group)) == "missing"
        assert await a.ask(CreateGroup(group))
    # another namespace's group of this name, and its member, are another's
    other = Subject("group", fresh().namespace, group.name)
    await b.take(Subject("member", other.namespace, other.name, "id"), await b.start())
    assert await b.ask(Look(kind="group", namespace=other.namespace)) == ()
    assert len(await b.ask(Look(kind="member", namespace=other.namespace))) == 1
    assert await b.ask(DeleteGroup(group)) == "deleted"


@case("sessions")
async def a_member_that_left_is_not_one_that_was_lost(stage: Stage) -> None:
    """Members are shown by group; who left is seen to have given its place back, who was lost is not."""
    a, b = await desks(stage)
    here = fresh("member", "group", "stays")
    left, lost = here._replace(member="left"), here._replace(member="lost")
    session, dying = await a.start(), await a.start()
    for subject, whose in ((here, session), (left, session), (lost, dying)):
        await a.take(subject, whose, data='{"gpu":true}')
    await a.give(left, session)
    await a.ask(EndSession(dying))
    shown = await b.ask(Look(kind="member", namespace=here.namespace, name="group"))
    assert [(entry.subject.member, entry.session is not None, entry.given) for entry in shown] == [
        ("left", False, True),
        ("lost", False, False),
        ("stays", True, False),
    ]
    assert shown[2].data == '{"gpu":true}'
    await b.take(lost, await b.start())


@case("sessions")
async def terms_tell_who_led(stage: Stage) -> None:
    """The terms of an election are told in the order of their tokens: who led, since and until when, with which data,
    and how it ended."""
    a, b = await desks(stage)
    subject = fresh("election")
    assert await b.ask(Terms(subject=subject)) == ()
    assert await b.ask(Terms(subject=subject, after=0)) == ()
    session, other, ended = await a.start(), await b.start(), await b.start()
    tokens = []
    for how in ("released", "resigned"):
        taken = await a.take(subject, session, data=f'"{how}"')
        tokens.append(taken.token)
        term = await b.term(subject)
        assert (term.token, term.data, term.since) == (taken.token, f'"{how}"', taken.since)
        assert (term.leader.id, term.leader.uuid, term.until, term.how) == (session, a.uuid, None, None)
        assert term.leader.expires_in > 0
        await a.ask(Update(subject=subject, session=session, token=taken.token, data='"updated"'))
        await a.give(subject, session, taken.token, how)
        term = await b.term(subject)
        assert (term.data, term.how, term.leader.expires_in) == (f'"{how}"', how, 0)
        assert term.until is not None
        assert term.until >= term.since
    tokens.append((await b.take(subject, other)).token)
    assert await a.ask(Revoke(subject))
    tokens.append((await b.take(subject, ended)).token)
    assert await b.ask(EndSession(ended))
    lost = await a.term(subject)
    assert (lost.token, lost.how, lost.leader.id) == (tokens[-1], "lost", ended)
    assert lost.until is not None
    dead, (taken,) = await b.dying(subject)
    tokens.append(taken.token)
    await a.over(dead)
    assert (await a.term(subject)).how == "lost"
    tokens.append((await a.take(subject, session)).token)
    terms = [term for term in await b.ask(Terms(subject=subject, after=0)) if term.token in tokens]
    assert [term.token for term in terms] == tokens
    assert [term.how for term in terms] == ["released", "resigned", "revoked", "lost", "lost", None]
    assert [term.leader.id for term in terms] == [session, session, other, ended, dead, session]
    for earlier, later in itertools.pairwise(terms):
        assert earlier.until is not None
        assert earlier.since <= earlier.until <= later.since
    assert [term.token for term in await b.ask(Terms(subject=subject, after=tokens[3]))] == tokens[4:]
    assert await b.ask(Terms(subject=subject, after=tokens[-1])) == ()


@case("sessions")
async def only_elections_have_terms(stage: Stage) -> None:
    """Job locks and members have no terms, and elections of one name in two namespaces have terms of their own."""
    a = await desk(stage)
    session = await a.start()
    job, member, election = fresh(), fresh("member", "name", "id"), fresh("election")
    for subject in (job, member, election):
        await a.take(subject, session)
    for subject in (job, member, fresh("election")):
        assert await a.ask(Terms(subject=subject, after=0)) == ()
    assert len(await a.ask(Terms(subject=election, after=0))) == 1
