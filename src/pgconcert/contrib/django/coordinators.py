"""The coordinator of a process, for everything that blocks: views, commands, tasks of a queue.

Theory. There is one for each alias, made when it is first asked for, so that neither an import nor ``django.setup()``
opens anything. After a fork (``gunicorn --preload``, Celery's prefork pool) the child forgets those of its parent, and
makes its own when it needs one; so does the process that ``runserver`` starts anew. They are closed at the exit of the
interpreter, when the settings are overridden, and before Django makes or drops a test database, which nobody may be
connected to.

The registry moves under one lock, which is only held while a coordinator is opened; opening connects to nothing, unless
``migrate`` is set.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from django.db.backends.base.base import NO_DB_ALIAS

from ...blocking import Coordinator
from .conf import address_of, conf, parameters

__all__ = ["close_coordinators", "coordinator", "database_comes_or_goes", "settings_changed"]

_open: dict[str | None, Coordinator] = {}
_lock = threading.Lock()


def coordinator(using: str | None = None) -> Coordinator:
    """The open coordinator of this process; the first call opens it. Any thread may use it; do not close it.

    A view that is a coroutine uses ``async_coordinator``.

    :param using: an alias of ``DATABASES``; what the setting ``PGCONCERT`` names, by default.
    :raises ConfigurationError: for what is wrong with the settings, or when this is an event loop's thread.
    """
    found = _open.get(using)
    if found is not None:
        return found
    with _lock:
        found = _open.get(using)
        if found is None:
            ours = conf()
            # the same one, whether its alias is said or not
            other = ours.database if using is None else None if using == ours.database else using
            found = _open.get(other) if ours.address is None else None
            if found is None:
                found = Coordinator(address_of(using), **parameters(Coordinator))
                found.open()
            _open[using] = found
    return found


def close_coordinators() -> None:
    """Close what ``coordinator`` has opened in this process; the next call of it opens anew. What is held is lost.

    For the hook with which a worker ends, and for tests; a process that exits does it by itself. All are closed, also
    when one fails, which raises then. In the thread of an event loop, as a test that overrides settings, it blocks too.
    """
    with _lock:
        closing = {*_open.values()}
        _open.clear()
    with ExitStack() as stack:
        for each in closing:
            stack.callback(_close, each)


def settings_changed(*, setting: str, **_: Any) -> None:
    """Receives Django's ``setting_changed``: a coordinator belongs to the settings that it was made from."""
    if setting in ("PGCONCERT", "DATABASES"):
        conf.cache_clear()
        close_coordinators()


def database_comes_or_goes(*, connection: Any, **_: Any) -> None:
    """Receives Django's ``connection_created``: a connection to no database in particular is made to create, copy or
    drop one."""
    if connection.alias == NO_DB_ALIAS:
        close_coordinators()


def _close(each: Coordinator) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        each.close()
        return
    with ThreadPoolExecutor(1) as elsewhere:  # it refuses to stop a loop, which nothing of its own depends on
        elsewhere.submit(each.close).result()


def _forked() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    _open.clear()


os.register_at_fork(after_in_child=_forked)
