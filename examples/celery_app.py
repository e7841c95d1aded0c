"""Tasks that must not run twice at a time for the same shop, in the processes of Celery's prefork pool.

    celery -A celery_app worker --pool prefork --concurrency 4
    celery -A celery_app call celery_app.import_prices --args '["north.csv"]'

The broker here is a folder, so that nothing else has to run. The address comes from PGCONCERT_URL or DATABASE_URL.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from pgconcert import Coordinator

BOX = Path(os.environ.get("CELERY_BOX", Path(tempfile.gettempdir(), "celery-box")))
BOX.mkdir(exist_ok=True)

app = Celery("celery_app", broker="filesystem://", backend=f"file://{BOX}")
app.conf.broker_transport_options = {
    "data_folder_in": BOX,
    "data_folder_out": BOX,
    "control_folder": BOX,
    "polling_interval": 0.1,
}

coordinator = Coordinator()  # nothing is opened here: the pool is forked from the process that imports this


@worker_process_init.connect
def open_coordinator(**_: Any) -> None:
    """In each process of the pool, after it was forked."""
    coordinator.open()


@worker_process_shutdown.connect
def close_coordinator(**_: Any) -> None:
    """In each process of the pool that ends by itself; the locks of one that is killed are freed by its death."""
    coordinator.close()


@app.task
def import_prices(file: str) -> str:
    """Skipped if this file is being imported already. To wait instead: ``with coordinator.lock(file, timeout=60):``"""
    hold = coordinator.lock(f"import:{file}").try_acquire()
    if hold is None:
        return "busy"
    with hold:
        prices = Path(file).read_text().splitlines()
        hold.check()  # raises LockLost before anything is written that another process might be writing
        return f"{len(prices)} prices imported by {os.getpid()}"
