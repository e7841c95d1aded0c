"""Sessions: rows with a time to live, kept alive by one heartbeat of the process, and what hangs on them.

In this folder: how long is how long (``timing.py``), one session and until when it is trusted (``session.py``), the
heartbeat of all (``heart.py``), one name for which claims compete in this process (``names.py``, with ``queue.py`` for
who is next and ``debts.py`` for what must be given back), the wake-ups between processes (``wakes.py``), and the engine
that brings these together (``engine.py``), which is a ``Locker``. What is said to it, job locks, elections and groups,
stands outside.
"""
