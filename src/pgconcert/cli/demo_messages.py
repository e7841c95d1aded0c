"""What happened to the messages of a demo, and what follows from it. Pure: no clock, no process, no output.

Every process numbers its messages, and every process hears all of them. Theory, by the records that are in
``demo_history.py``:

* *listening* is written once everything is heard that is sent from then on; *sent* when the server has committed a
  message, with the time that this took; *heard* for each message, in the order in which they came; *gap* where the
  subscription said that messages are missing; *done* at the end, with the time since everything older has been heard.
* A listener owes an account of each message that somebody began to send after it was listening, and that was committed
  before it was done; of a process that was killed, up to the last message that it had heard of the same sender.
* A message that was not heard is *told* if the listener had a gap between the messages of this sender before and after
  it; else it is *lost without being reported*, and there must be none.

So the check knows nothing of the library: it sees numbers, and gaps among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .demo_history import Kind, Record

__all__ = ["MAIL", "Account", "Mail", "accounts", "judge_mail"]

MAIL: Final = frozenset({Kind.LISTENING, Kind.SENT, Kind.HEARD, Kind.GAP, Kind.DONE, Kind.SILENCED})
"""The records about messages."""


@dataclass(slots=True)
class Mail:
    """The records so far, and what can be counted at once: by worker, over all the processes that had its number."""

    records: list[Record] = field(default_factory=list)
    sent: Counter[int] = field(default_factory=Counter)
    heard: Counter[int] = field(default_factory=Counter)
    gaps: Counter[int] = field(default_factory=Counter)
    links: dict[int, Record] = field(default_factory=dict)
    """How each worker began to listen last."""
    cuts: list[Record] = field(default_factory=list)
    """Which connections that listened were cut."""

    def take(self, record: Record) -> None:
        """One more."""
        self.records.append(record)
        worker = record.worker
        if record.kind is Kind.SENT:
            self.sent[worker] += 1
        elif record.kind is Kind.HEARD:
            self.heard[worker] += 1
        elif record.kind is Kind.GAP:
            self.gaps[worker] += 1
        elif record.kind is Kind.LISTENING:
            self.links[worker] = record
        elif record.kind is Kind.SILENCED:
            self.cuts.append(record)


@dataclass(slots=True)
class Account:
    """What became of the messages that one process should have heard. Numbers are those of their sender."""

    worker: int
    pid: int
    heard: int = 0
    told: list[Record] = field(default_factory=list)
    lost: list[Record] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    done: bool = False

    def __str__(self) -> str:
        return f"worker-{self.worker} (pid {self.pid})"


@dataclass(slots=True)
class _Sender:
    """One sender, as one listener has heard it so far."""

    last: int = 0
    gaps: int = 0


def accounts(records: Sequence[Record]) -> list[Account]:
    """The account of every process that listened. The records of one process must be in its order."""
    sent: dict[int, list[Record]] = {}
    theirs: dict[int, list[Record]] = {}
    for record in records:
        if record.kind is Kind.SENT:
            sent.setdefault(record.pid, []).append(record)
        elif record.kind is not Kind.SILENCED:
            theirs.setdefault(record.pid, []).append(record)
    return [_account(said, sent) for said in theirs.values()]


def _account(said: Sequence[Record], sent: dict[int, list[Record]]) -> Account:
    account = Account(said[0].worker, said[0].pid)
    since = next((record.at for record in said if record.kind is Kind.LISTENING), None)
    if since is None:
        account.oddities.append(f"{account} heard before it listened")
        return account
    owed = {pid: [each for each in those if each.at - each.waited > since] for pid, those in sent.items()}
    senders = {pid: _Sender() for pid in owed}
    gaps = 0
    until = 0
    for record in said:
        if record.kind is Kind.GAP:
            gaps += 1
        elif record.kind is Kind.DONE:
            account.done = True
            until = record.at - record.waited
        elif record.kind is Kind.HEARD:
            account.heard += 1
            sender = senders.setdefault(record.peer, _Sender())
            if record.number <= sender.last:
                account.oddities.append(
                    f"{account} heard number {record.number} of pid {record.peer} after number {sender.last}"
                )
            missed = _between(owed.get(record.peer, ()), sender.last, record.number)
            (account.told if gaps > sender.gaps else account.lost).extend(missed)
            sender.last, sender.gaps = max(sender.last, record.number), gaps
    if account.done:
        for pid, sender in senders.items():
            missed = [each for each in owed.get(pid, ()) if each.number > sender.last and each.at < until]
            (account.told if gaps > sender.gaps else account.lost).extend(missed)
    return account


def _between(sent: Iterable[Record], last: int, number: int) -> list[Record]:
    return [each for each in sent if last < each.number < number] if number > last + 1 else []


def judge_mail(records: Sequence[Record], pids: Iterable[int], killed: Iterable[int], silenced: int) -> list[str]:
    """What is wrong with the messages of a finished demo; nothing, if all promises were kept.

    ``pids`` are all processes that took part, ``killed`` those that were ended; ``silenced`` is how many connections
    that listened should have been cut, each of which must have been told as a gap.
    """
    kept = accounts(records)
    wrong = [
        f"lost without being reported: number {each.number} of worker-{each.worker} (pid {each.pid}), by {account}"
        for account in kept
        for each in account.lost
    ]
    wrong += [f"messages out of order: {oddity}" for account in kept for oddity in account.oddities]
    ended = {account.pid for account in kept if account.done} | set(killed)
    wrong += [f"process {pid} did not hear its messages to their end" for pid in sorted(set(pids) - ended)]
    cuts = [record for record in records if record.kind is Kind.SILENCED]
    told = [
        cut
        for cut in cuts
        if any(each.kind is Kind.GAP and each.pid == cut.pid and each.at >= cut.at for each in records)
    ]
    if len(told) < silenced:
        wrong.append(f"{len(told)} of {silenced} connections that listened were cut, and told of it")
    return wrong
