"""How gunicorn runs gunicorn_app. The hooks run in each worker, so it is all the same whether the app is preloaded."""

from typing import Any

workers = 3
preload_app = False


def post_worker_init(worker: Any) -> None:
    """Called in a worker that was forked and has the application."""
    import gunicorn_app

    gunicorn_app.start()


def worker_exit(server: Any, worker: Any) -> None:
    """Called in a worker that ends by itself; the locks of a worker that is killed are freed by its death."""
    import gunicorn_app

    gunicorn_app.coordinator.close()
