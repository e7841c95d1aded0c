"""What the findings of an examination mean, and what to do about them. Pure: facts in, records out.

A verdict is *ok*, *info* (good to know), *warning* (it works, and somebody should look), *fails* (something that
pgconcert promises cannot work) or *skipped* (not tried, because of another finding). A remedy is the line to add or the
command to run, where there is one. Nothing here ever contains a password.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

__all__ = [
    "Finding",
    "Limit",
    "admission",
    "clock",
    "connections",
    "idle_limit",
    "keepalive",
    "latency",
    "limits",
    "lock_story",
    "lock_table",
    "notification",
    "notify_queue",
    "place_of",
    "pooler",
    "rights",
    "server_role",
    "settings_taken",
    "tls",
    "version",
]

Verdict = Literal["ok", "info", "warning", "fails", "skipped"]

_OLDEST: Final = 14
_CROWDED: Final = 0.5
_SEATS: Final = 10
_QUEUE_FULL: Final = 0.5
_CLOCKS_APART: Final = 1.0
_FAR: Final = 0.1
_LINKS_OF_A_PROCESS: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found: ``meaning`` in a sentence, ``remedy`` the next step or nothing."""

    probe: str
    verdict: Verdict
    meaning: str
    remedy: str = ""


class Limit(NamedTuple):
    """What will not work, and the line that helps."""

    what: str
    remedy: str


def place_of(parameters: Mapping[str, str]) -> str:
    """Where an address leads, for people: host, database, user, and whether there is a password; never which."""
    if "service" in parameters:
        return f"service {parameters['service']}"
    host = parameters.get("host") or parameters.get("hostaddr") or "libpq's default host"
    port = f", port {parameters['port']}" if "port" in parameters else ""
    database = parameters.get("dbname") or "libpq's default database"
    user = parameters.get("user") or "libpq's default user"
    password = "with a password" if "password" in parameters else "without a password of its own"
    return f"{host}{port}, database {database}, user {user}, {password}"


def admission(label: str, seconds: float, failures: Sequence[str]) -> Finding:
    """Somebody let us in, perhaps after others did not."""
    said = f"{label} let us in and told what it is, in {seconds * 1000:.0f} ms"
    if not failures:
        return Finding("connect", "ok", said)
    return Finding("connect", "warning", f"{said}; before it, {'; '.join(failures)}", "look at the hosts that failed")


def tls(encrypted: bool, local: bool) -> Finding:
    """Whether others can read what is said."""
    if encrypted:
        return Finding("TLS", "ok", "the connection is encrypted")
    if local:
        return Finding("TLS", "ok", "not encrypted, and does not leave this machine")
    return Finding(
        "TLS",
        "warning",
        "not encrypted: whoever is on the way can read it",
        "add sslmode=verify-full (or at least require)",
    )


def pooler(through: str, direct_given: bool) -> Finding:
    """What stands between us and the server."""
    if through == "direct":
        return Finding("pooler", "ok", "none: we speak with the server itself")
    if through == "session pooler":
        return Finding(
            "pooler",
            "warning",
            f"a pooler in session mode: everything works, and each process takes up to {_LINKS_OF_A_PROCESS} of its "
            "connections for as long as it runs",
            "give the pool that many for each process, or go around it with direct_url",
        )
    if direct_given:
        return Finding("pooler", "ok", "a transaction pooler: good for publishing; locks and LISTEN take direct_url")
    return Finding(
        "pooler",
        "fails",
        "a transaction pooler: every transaction may run on another session, so locks and LISTEN cannot work",
        'give an address that leads around it: AsyncCoordinator(url, direct_url="postgresql://...")',
    )


def server_role(standby: bool) -> Finding:
    """Primary or standby."""
    if not standby:
        return Finding("primary", "ok", "the server is a primary")
    return Finding(
        "primary",
        "fails",
        "the server is a hot standby: its locks exclude nobody on the primary, and it cannot notify",
        "name all hosts and add target_session_attrs=read-write: postgresql://a,b/app?target_session_attrs=read-write",
    )


def version(number: int) -> Finding:
    """Whether the server is one that we know."""
    major, minor = divmod(number, 10000)
    if major >= _OLDEST:
        return Finding("version", "ok", f"PostgreSQL {major}.{minor}")
    return Finding(
        "version",
        "warning",
        f"PostgreSQL {major}.{minor} is older than {_OLDEST}: not tested, and a vanished client keeps its locks longer",
        f"upgrade to PostgreSQL {_OLDEST} or newer",
    )


def lock_table(room: int, used: int) -> Finding:
    """How full the server's table of locks is. ``used`` are the advisory locks alone."""
    said = f"{used} advisory locks; the server has room for about {room} locks of all kinds"
    if used <= room * _CROWDED:
        return Finding("lock table", "ok", said)
    return Finding(
        "lock table",
        "warning",
        f"{said}, which tables and rows need too",
        "alter system set max_locks_per_transaction = 256; then restart the server",
    )


def connections(most: int, reserved: int, used: int) -> Finding:
    """How many connections are left for plain roles."""
    left = max(0, most - reserved - used)
    said = (
        f"{left} of {most} connections are left ({reserved} are reserved); a process takes up to {_LINKS_OF_A_PROCESS}"
    )
    if left >= _SEATS:
        return Finding("connections", "ok", said)
    return Finding(
        "connections", "warning", said, f"alter system set max_connections = {2 * most}; then restart the server"
    )


def settings_taken(taken: int, refused: Mapping[str, str], forced: Mapping[str, str]) -> Finding:
    """Whether our sessions get the settings they need. ``forced`` is what role and database set."""
    theirs = ", ".join(f"{name}={value or repr(value)}" for name, value in forced.items())
    note = f"; role or database sets {theirs}, which our sessions override where it matters" if theirs else ""
    if not refused:
        return Finding("settings", "ok", f"all {taken} settings of our sessions were taken{note}")
    words = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return Finding(
        "settings",
        "warning",
        f"the server refused {words}{note}",
        "ask for the right, for example: grant set on parameter " + next(iter(refused)) + " to ROLE",
    )


def idle_limit(milliseconds: int, refused: bool) -> Finding:
    """What ``idle_session_timeout`` does to sessions that hold a lock and say nothing."""
    if not milliseconds:
        return Finding("idle_session_timeout", "ok", "the server ends no idle sessions")
    said = f"the server ends sessions that are idle for {milliseconds / 1000:g} s"
    if refused:
        return Finding(
            "idle_session_timeout",
            "fails",
            f"{said}, ours too: locks are lost",
            "alter role ROLE set idle_session_timeout = 0",
        )
    return Finding("idle_session_timeout", "info", f"{said}; ours switch that off for themselves")


def notify_queue(usage: float) -> Finding:
    """How full the server's queue of notifications is, as a fraction."""
    said = f"{usage:.1%} full"
    if usage < _QUEUE_FULL:
        return Finding("notification queue", "ok", said)
    return Finding(
        "notification queue",
        "warning",
        f"{said}: when it is full, every NOTIFY fails. A session that listens sits in a long transaction",
        "select pid, application_name, xact_start from pg_stat_activity order by xact_start limit 5; end the oldest",
    )


def clock(apart: float, uncertain: float) -> Finding:
    """How far the server's clock is ahead of ours, in seconds, give or take ``uncertain``."""
    ahead = "ahead of" if apart > 0 else "behind"
    said = f"the server's clock is {abs(apart):.3f} s {ahead} ours (give or take {uncertain:.3f} s)"
    if abs(apart) - uncertain < _CLOCKS_APART:
        return Finding("clock", "ok", said)
    return Finding(
        "clock",
        "warning",
        f"{said}: locks do not mind, but times in logs will not match",
        "let both machines take the time from the network: timedatectl set-ntp true",
    )


def latency(seconds: float, rounds: int) -> Finding:
    """The way there and back."""
    said = f"{seconds * 1000:.2f} ms there and back (median of {rounds}); a free lock costs one, its release another"
    if seconds < _FAR:
        return Finding("latency", "ok", said)
    return Finding("latency", "warning", f"{said}: that is far", "run closer to the server")


def keepalive(idle: int, user_timeout: int, local: bool) -> Finding:
    """Whether the server notices that our machine has vanished. ``idle`` in s, ``user_timeout`` in ms."""
    if local:
        return Finding("keepalive", "ok", "a local socket: the server learns at once that a process has died")
    if idle and user_timeout:
        return Finding(
            "keepalive",
            "ok",
            f"the server asks after {idle} s of silence and gives up after {user_timeout / 1000:g} s without answer: "
            "then the locks of a machine that vanished are free",
        )
    return Finding(
        "keepalive",
        "warning",
        "the server's system does not let us set it: a machine that vanishes may keep its locks for hours",
        "set tcp_keepalives_idle and tcp_user_timeout in postgresql.conf, or net.ipv4.tcp_keepalive_time of the system",
    )


def notification(seconds: float | None, limit: float) -> Finding:
    """How long a notification of another session took; None: it did not arrive."""
    if seconds is not None:
        return Finding(
            "LISTEN/NOTIFY", "ok", f"a notification of another session arrived after {seconds * 1000:.1f} ms"
        )
    return Finding(
        "LISTEN/NOTIFY",
        "fails",
        f"a notification of another session did not arrive within {limit:g} s",
        "what stands between us and the server swallows it: go around it with direct_url",
    )


def lock_story(granted: Sequence[bool]) -> Finding:
    """One session takes a lock, another tries, the first releases, the other tries again."""
    if list(granted) == [True, False, True]:
        return Finding("lock", "ok", "one session held it, another was refused, and got it after the release")
    said = ", then ".join("granted" if each else "refused" for each in granted)
    return Finding(
        "lock",
        "fails",
        f"taken, tried by another session, tried again after the release: {said}; not granted, refused, granted",
        "what stands between us and the server mixes sessions: go around it with direct_url",
    )


def rights(role: str, sees_others: bool) -> Finding:
    """What the role sees of other roles' sessions."""
    if sees_others:
        return Finding("rights", "ok", f"{role} sees all sessions")
    return Finding(
        "rights",
        "info",
        f"{role} sees who holds a lock, but neither address nor time of other roles' sessions",
        f'grant pg_read_all_stats to "{role}"',
    )


_NOTHING: Final = "anything at all"
_SESSIONS: Final = "locks, semaphores, and hearing of what happens (LISTEN)"
_WAY_IN: Final = ("address", "name look-up", "connect", "primary")
_AROUND: Final = " (direct)"
_LIMITS: Final[Mapping[str, str]] = {
    **dict.fromkeys(_WAY_IN, _NOTHING),
    **{probe + _AROUND: _SESSIONS for probe in (*_WAY_IN, "pooler")},
    "pooler": f"{_SESSIONS}; publishing works",
    "LISTEN/NOTIFY": "being woken: whoever waits finds a free lock by looking again, within about a second",
    "lock": "locks and semaphores",
    "idle_session_timeout": "holding a lock for longer than the limit",
}
_WITH_A_WAY_AROUND: Final[Mapping[str, str]] = dict.fromkeys(
    _WAY_IN, "publishing, and so waking others: they find a free lock by looking again, within about a second"
)


def limits(findings: Sequence[Finding]) -> list[Limit]:
    """What will not work, from what has failed; the first cause of each."""
    known = dict(_LIMITS)
    if any(finding.probe.endswith(_AROUND) for finding in findings):
        known.update(_WITH_A_WAY_AROUND)
    found: dict[str, Limit] = {}
    for finding in findings:
        if finding.verdict == "fails":
            what = known.get(finding.probe, f"what needs the probe {finding.probe}")
            found.setdefault(what, Limit(what, finding.remedy or finding.meaning))
    return [found[_NOTHING]] if _NOTHING in found else [*found.values()]
