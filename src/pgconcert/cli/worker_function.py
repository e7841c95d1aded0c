"""The function that ``pgconcert worker`` runs: found by its name, MODULE:FUNCTION, as ``python -m`` finds modules, with
the current folder first. What is wrong with the name is told with what would be right; what the module itself raises
when it is imported, and the function when it is called, is its own business, and shown as Python shows it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

__all__ = ["ImportFailed", "find_function", "show_error", "with_tracebacks"]


class ImportFailed(Exception):
    """The module raised ``error`` when it was imported."""

    def __init__(self, module: str, error: Exception) -> None:
        super().__init__(f"module {module!r} cannot be imported: {error!r}")
        self.error = error


def find_function(name: str) -> Callable[..., Any]:
    """The function called ``MODULE:FUNCTION``; FUNCTION may be ``Class.method``.

    Raises ``click.BadParameter`` for a name that leads nowhere, or not to a function, and ``ImportFailed``.
    """
    where, colon, path = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*where.split("."), *path.split("."))):
        raise click.BadParameter(f"{name!r} is not MODULE:FUNCTION, such as shop.mail:send")
    if where.endswith(".py"):
        raise click.BadParameter(f"name the module, not its file: {where.removesuffix('.py')}:{path}")
    found: Any = _module(where)
    at = f"module {where!r}"
    for part in path.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [each for each in dir(found) if not each.startswith("_")], 3)
            hint = f"; there is {' and '.join(map(repr, near))}" if near else ""
            raise click.BadParameter(f"{at} has no {part!r}{hint}")
        found, at = getattr(found, part), f"{at}, {part!r}," if part != path else at
    if isinstance(found, type) or not callable(found):
        what = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise click.BadParameter(f"{name!r} is {what}, and not a function that takes tasks")
    if inspect.isasyncgenfunction(found):
        raise click.BadParameter(f"{name!r} is an async generator; a function returns what is completed")
    made: Callable[..., Any] = found
    return made


def with_tracebacks(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, async or plain as it is; what it raises is shown before anybody else gets it."""

    @functools.wraps(function)
    async def awaited(tasks: Any) -> Any:
        try:
            return await function(tasks)
        except Exception as error:
            show_error(error)
            raise

    @functools.wraps(function)
    def called(tasks: Any) -> Any:
        try:
            return function(tasks)
        except Exception as error:
            show_error(error)
            raise

    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    return awaited if is_async else called


def show_error(error: Exception) -> None:
    """Its traceback on standard error, from the first line that is not ours; what is in it came from others."""
    theirs = error.__traceback__.tb_next if error.__traceback__ is not None else None
    for part in traceback.format_exception(type(error), error, theirs):
        shown = "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in part)
        with contextlib.suppress(OSError):
            click.echo(shown, nl=False, err=True)


def _module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise click.BadParameter(
                f"there is no module {error.name!r}; looked in {here} and where Python finds its modules"
            ) from None
        raise ImportFailed(name, error) from error
    except Exception as error:
        raise ImportFailed(name, error) from error
