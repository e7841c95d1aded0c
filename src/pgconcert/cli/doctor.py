"""``pgconcert doctor``: examines an address and says what is wrong, why, and what to do. Here lives how it is asked and
shown; the probes stand in ``postgres/diagnosis.py``, what they mean in ``postgres/verdicts.py``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..conninfo import from_environment, parse
from ..errors import ConfigurationError
from ..postgres.diagnosis import Examination
from ..postgres.verdicts import Finding, Limit, limits, place_of
from .console import make_console, printable
from .target import direct_url_option, reachable, url_option

__all__ = ["command"]

_SCHEMA_VERSION: Final = 1
_STYLES: Final = {"ok": "green", "info": "cyan", "warning": "yellow", "fails": "bold red", "skipped": "dim"}
_HOW_TO_SAY_WHERE: Final = "export PGCONCERT_URL=postgresql://user@host:5432/database"


def _examine(url: str | None, direct_url: str | None, connect_timeout: float) -> tuple[list[Finding], list[Limit]]:
    with ExitStack() as stack:
        try:
            address = parse(stack.enter_context(reachable(url)))
        except ConfigurationError as error:
            return _hopeless(Finding("address", "fails", str(error), _HOW_TO_SAY_WHERE))
        findings = [_client(), Finding("address", "ok", f"from {_source(url)}: {place_of(address)}")]
        direct = None
        if direct_url is not None:
            try:
                direct = parse(stack.enter_context(reachable(direct_url)))
            except ConfigurationError as error:
                return _hopeless(Finding("address (direct)", "fails", str(error)))
            findings.append(Finding("address (direct)", "ok", f"from --direct-url: {place_of(direct)}"))
        examination = Examination(address, direct, connect_timeout=connect_timeout)
        will_not_work = asyncio.run(examination.run())
    return findings + examination.findings, will_not_work


def _hopeless(finding: Finding) -> tuple[list[Finding], list[Limit]]:
    return [finding], limits([finding])


def _source(url: str | None) -> str:
    if url is not None:
        return "--url"
    found = from_environment()
    assert found is not None  # or there would be no address
    return found[0]


def _client() -> Finding:
    """How fast this side can be. The modules are looked for, not imported: what is imported here proves nothing."""
    parts = [name for name in ("psycopg_c", "psycopg_binary") if importlib.util.find_spec(name)]
    uvloop = (
        "uvloop is installed" if importlib.util.find_spec("uvloop") else "uvloop is not installed, nor is it needed"
    )
    if parts:
        return Finding("client", "info", f"psycopg with its C part ({parts[0]}); {uvloop}")
    remedy = 'pip install "pgconcert[binary]"'
    return Finding("client", "info", f"psycopg without its C part, which is slower; {uvloop}", remedy)


def _verdict(findings: Sequence[Finding]) -> str:
    there = {finding.verdict for finding in findings}
    return next((worst for worst in ("fails", "warning") if worst in there), "ok")


def _print(console: Console, findings: Sequence[Finding], will_not_work: Sequence[Limit]) -> None:
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for header in ("probe", "verdict", "what it means"):
            table.add_column(header, overflow="fold")
        for finding in findings:
            meaning = Text(printable(finding.meaning))
            if finding.remedy:
                meaning.append(f"\n{printable(finding.remedy)}", style="italic")
            table.add_row(finding.probe, Text(finding.verdict, style=_STYLES[finding.verdict]), meaning)
        console.print(table)
    else:
        for finding in findings:
            console.print(f"{finding.verdict:8} {finding.probe:21} {printable(finding.meaning)}", markup=False)
            if finding.remedy:
                console.print(f"{'':8} {'':21} remedy: {printable(finding.remedy)}", markup=False)
        console.print()
    if not will_not_work:
        console.print("Everything that pgconcert does works through this address.", style="green")
        return
    console.print("What will NOT work through this address:", style="bold red")
    for what, remedy in will_not_work:
        console.print(f"  {what}", markup=False)
        console.print(f"    {printable(remedy)}", markup=False)


@click.command(
    epilog="""\b
Examples:
  pgconcert doctor                                      what the environment names
  pgconcert doctor --url postgresql://db/app
  pgconcert doctor --url "$POOLED" --direct-url "$DIRECT"
  pgconcert doctor --json | jq -r '.will_not_work[].what'

\b
Exit code: 0 if nothing fails (warnings are no failure); 1 if something does.
"""
)
@url_option
@direct_url_option
@click.option(
    "--connect-timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 600),
    help="Seconds for one attempt to connect; connect_timeout of the address wins.",
)
@click.option("--json", "for_programs", is_flag=True, help="One JSON object, all of it; see the documentation.")
def command(url: str | None, direct_url: str | None, connect_timeout: float, for_programs: bool) -> None:
    """Examine the way to the server: each probe, its verdict, and what to do.

    Nothing is left behind on the server, and no password is shown.
    """
    console = make_console()
    patience = console.status("examining") if console.is_terminal and not for_programs else nullcontext()
    with patience:
        findings, will_not_work = _examine(url, direct_url, connect_timeout)
    verdict = _verdict(findings)
    if for_programs:
        click.echo(json.dumps(_as_json(verdict, findings, will_not_work), indent=2))
    else:
        _print(console, findings, will_not_work)
    sys.exit(1 if verdict == "fails" else 0)


def _as_json(verdict: str, findings: Sequence[Finding], will_not_work: Sequence[Limit]) -> dict[str, Any]:
    return {
        "version": _SCHEMA_VERSION,
        "verdict": verdict,
        "findings": [
            {"probe": each.probe, "verdict": each.verdict, "meaning": each.meaning, "remedy": each.remedy or None}
            for each in findings
        ],
        "will_not_work": [{"what": each.what, "remedy": each.remedy} for each in will_not_work],
    }
