"""The port for messages over PostgreSQL: who of the backend does which part. No logic.

Notifications leave over the publish link (``messages.py``) and are heard over the listen link (``listener.py``); what
is too large for one, and who handles what, stands in our tables and goes over the work link (``store.py``).
"""

from __future__ import annotations

from .listener import Listener
from .messages import Publisher
from .store import Store

__all__ = ["PostgresMessenger"]


class PostgresMessenger:
    """The port ``Messenger``; what each verb promises stands there."""

    def __init__(self, listener: Listener, publisher: Publisher, store: Store) -> None:
        # the verbs are those of the owners, so that the port costs nothing
        self.publish = publisher.publish
        self.listen = listener.listen
        self.unlisten = listener.unlisten
        self.prove = listener.prove
        self.bounce = listener.bounce
        self.hearing = listener.hearing
        self.spill = store.spill
        self.fetch = store.fetch
        self.claim = store.claim
