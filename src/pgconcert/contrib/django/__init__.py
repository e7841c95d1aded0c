"""pgconcert in a Django project: the application ``pgconcert.contrib.django``.

Here live the names that a project uses; nothing else imports them, and nothing of Django's models is touched, so they
may be imported before Django is set up.

Theory. Django has one database connection per thread, which the views use; we have links of our own, one set for each
process (``coordinators.py``). What is said in the *transaction* of a view goes through Django's connection and commits
or vanishes with the data (``publish``; ``pgconcert.transaction`` with an alias). What goes through a *coordinator*
happens at once and by itself (locks, subscriptions, ``publish_on_commit`` when the time has come).
"""

try:
    import django as _django
except ImportError as error:
    raise ImportError("pgconcert.contrib.django needs Django: pip install 'pgconcert[django]'") from error

from .asgi import async_coordinator, lifespan, with_coordinator
from .coordinators import close_coordinators, coordinator
from .decorating import exclusive
from .publishing import publish, publish_on_commit

__all__ = [
    "async_coordinator",
    "close_coordinators",
    "coordinator",
    "exclusive",
    "lifespan",
    "publish",
    "publish_on_commit",
    "with_coordinator",
]

del _django
