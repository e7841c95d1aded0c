"""``manage.py pgconcert ...``: the command line of the library, for a database of the project.

The address, the namespace and the schema of the settings become the *defaults* of the command's options, inside this
process: the password stands neither in the list of processes nor in the environment. An option that is given wins.
The project is set up, so ``pgconcert worker shop.tasks:send`` may use its models.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import signal
import threading
from collections.abc import Iterator
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError
from psycopg.conninfo import make_conninfo

from .....conninfo import AddressSource
from ...conf import conf, text_address

__all__ = ["Command"]

_LEAVES_IT_ALONE: Final = ("demo", "completion")
"""Commands that look for no server of the project: a demonstration makes one of its own."""


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types
    """Hands everything behind its own name to the library's command line."""

    help = (
        "The command line of pgconcert for a database of this project: status, watch, doctor, schema apply, worker ... "
        "(all of them: pgconcert -- --help)"
    )
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration; doctor is for what is broken

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of ours stand before the command, its own behind it."""
        parser.add_argument(
            "--database", metavar="ALIAS", help="Of DATABASES; what the setting PGCONCERT names, by default."
        )
        parser.add_argument("args", nargs=argparse.REMAINDER, metavar="command ...")

    def handle(self, *args: str, **options: Any) -> None:
        """Run the command. Raises ``SystemExit`` with its code, unless that is 0."""
        missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
        if missing:
            raise CommandError(f"this needs {' and '.join(missing)}: pip install 'pgconcert[cli]'")
        from .....cli.group import group

        given = [*args[1:]] if args[:1] == ("--",) else [*args]
        ours = conf()
        said = {
            "--url": _address(options["database"]),
            "--direct-url": _text((ours.coordinator or {}).get("direct_url")),
            "--namespace": ours.namespace,
            "--schema": ours.schema,
        }
        out = options.get("stdout")
        with contextlib.redirect_stdout(out) if out is not None else contextlib.nullcontext(), _handlers_kept():
            try:
                group.main(given or ["--help"], prog_name="manage.py pgconcert", default_map=_defaults(given, said))
            except SystemExit as end:
                if end.code:
                    raise


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Commands leave signals ignored, because their process is about to end. With ``call_command`` it goes on."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in signal.valid_signals()} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _address(alias: str | None) -> object:
    ours = conf()
    if alias is None and ours.address is not None:
        return _text(ours.address)
    return text_address(alias or ours.database)


def _text(address: Any) -> object:
    """An address as an option has it: text, or what is asked for it when the option is needed."""
    if address is None or isinstance(address, str):
        return address
    return lambda: make_conninfo("", **asyncio.run(AddressSource(address).parameters()))


def _defaults(given: list[str], said: dict[str, Any]) -> dict[str, Any]:
    """Click's map of defaults for the command that is given, and for those below it."""
    from click import Context, Group

    from .....cli.group import group

    if not given or given[0] in _LEAVES_IT_ALONE:
        return {}

    def of(command: Any, context: Any) -> dict[str, Any]:
        if isinstance(command, Group):
            names = command.list_commands(context)
            return {name: of(command.get_command(context, name), context) for name in names}
        return {
            option.name: said[name]
            for option in command.params
            for name in option.opts
            # where no namespace is something else than the empty one, it stays so
            if said.get(name) and not (name == "--namespace" and option.default != "")
        }

    context = Context(group)
    command = group.get_command(context, given[0])
    return {} if command is None else {given[0]: of(command, context)}
