"""The examination of an address: which probes run, in which order, and what becomes of one that fails.

Theory. The probes use the same links, proofs and settings as a coordinator, so what they find is what it would meet. A
probe that fails does not stop the others; one that cannot make sense any more (after a refused connection, through a
transaction pooler, on a standby) is skipped, with the reason. Through a transaction pooler only statements that change
nothing are sent, because the session belongs to others as well.

With a direct address the first one is looked at as far as publishing needs it, and everything else is examined on the
direct one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Final

from psycopg import conninfo

from ..errors import ConfigurationError, PgconcertError, Unavailable
from ..offloop import off_loop
from . import verdicts
from .addresses import Attempt, attempts
from .link import Link
from .probe import Proof, prove
from .refusals import names_no_database, refusal
from .serverprobes import Patient, connected, existing_databases, server_probes
from .verdicts import Finding, Limit

__all__ = ["Examination"]

_PROBE_LIMIT: Final = 10.0
_PLACES_TO_ASK: Final = ("postgres", "template1")


class Examination:
    """Examine one address, or one and the way around its pooler. Good for one ``run``.

    :param address: the parameters of the address; for what they leave out libpq has its defaults.
    :param direct: the parameters of ``direct_url``, or None.
    :param connect_timeout: seconds for one attempt to connect, unless the address says otherwise.
    """

    def __init__(
        self, address: Mapping[str, str], direct: Mapping[str, str] | None = None, *, connect_timeout: float = 10.0
    ) -> None:
        self._main = Patient(address)
        self._direct = None if direct is None else Patient(direct, " (direct)")
        self._connect_timeout = connect_timeout
        self.findings: list[Finding] = []
        """What was found so far, in order."""

    async def run(self) -> list[Limit]:
        """Run every probe. Returns what will not work."""
        patients = [self._main] if self._direct is None else [self._main, self._direct]
        try:
            for patient in patients:
                await self._reach(patient)
            if self._direct is not None:
                self._direct.sender = self._main.link
            await self._examine(patients[-1])
        finally:
            for patient in patients:
                if patient.link is not None:
                    patient.link.close("the examination has ended")
        return verdicts.limits(self.findings)

    async def _reach(self, patient: Patient) -> None:
        await self._run("name look-up" + patient.kind, _look_up(patient), _PROBE_LIMIT)
        if patient.places:
            await self._run("connect" + patient.kind, self._connect(patient), None)
        link, proof = patient.link, patient.proof
        if link is None or proof is None:
            return
        around = self._direct is not None and patient is self._main
        for finding in (
            verdicts.tls(link.tls, patient.is_local),
            verdicts.pooler(proof.through, around),
            verdicts.server_role(proof.standby),
        ):
            self.findings.append(replace(finding, probe=finding.probe + patient.kind))

    async def _connect(self, patient: Patient) -> Finding:
        failures: list[str] = []
        for place in patient.places:
            started = time.monotonic()
            try:
                link, proof = await self._prove(place, patient)
                if proof.standby and place is not patient.places[-1]:
                    link.close("a standby")
                    raise Unavailable("a standby")
            except TimeoutError:
                failures.append(f"{place.label}: no answer within {self._limit(patient):g} s")
            except PgconcertError as error:
                failures.append(f"{place.label}: {error}")
            else:
                patient.place, patient.link, patient.proof = place, link, proof
                return verdicts.admission(place.label, time.monotonic() - started, failures)
        said = "; ".join(failures)
        existing = await self._existing(patient) if names_no_database(said) else []
        return refusal(said, patient.parameters, existing)

    async def _prove(self, place: Attempt, patient: Patient) -> tuple[Link, Proof]:
        async with asyncio.timeout(self._limit(patient)):
            link = await Link.connect(place.conninfo)
            try:
                return link, await prove(link, lambda: Link.connect(place.conninfo))
            except BaseException:
                link.close("given up while connecting")
                raise

    def _limit(self, patient: Patient) -> float:
        text = patient.parameters.get("connect_timeout", "")
        try:
            seconds = float(text or 0)
        except ValueError:
            raise ConfigurationError(
                f"connect_timeout of the address must be a number of seconds, not {text!r}"
            ) from None
        return seconds if seconds > 0 else self._connect_timeout

    async def _existing(self, patient: Patient) -> list[str]:
        """The databases of a server that does not have ours, as far as somebody lets us ask."""
        for database in _PLACES_TO_ASK:
            instead = conninfo.make_conninfo(patient.places[-1].conninfo, dbname=database)
            try:
                async with asyncio.timeout(self._limit(patient)), connected(instead) as link:
                    return await existing_databases(link)
            except (PgconcertError, TimeoutError):
                continue
        return []

    async def _examine(self, patient: Patient) -> None:
        if patient.link is None:
            self.findings.append(Finding("all others", "skipped", f"not tried: {patient.without_session}"))
            return
        for name, needs_session, probe in server_probes():
            if needs_session and patient.without_session:
                self.findings.append(Finding(name, "skipped", f"not tried: {patient.without_session}"))
            else:
                await self._run(name, probe(patient, patient.link), _PROBE_LIMIT)

    async def _run(self, name: str, probe: Awaitable[Finding], limit: float | None) -> None:
        """Run a probe in bounded time, and note what it found, or how it failed."""
        try:
            async with asyncio.timeout(limit):
                found = await probe
        except TimeoutError:
            found = Finding(name, "fails", f"no answer within {limit:g} s", "is the server overloaded, or hanging?")
        except PgconcertError as error:
            found = Finding(name, "fails", str(error))
        self.findings.append(replace(found, probe=name))


async def _look_up(patient: Patient) -> Finding:
    try:
        patient.places = await off_loop(lambda: attempts(patient.parameters))
    except Unavailable as error:
        return Finding("name look-up", "fails", str(error), "check the spelling, and the resolver: getent hosts NAME")
    return Finding("name look-up", "ok", ", ".join(dict.fromkeys(place.label for place in patient.places)))
