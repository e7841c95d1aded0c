"""What a server imports, and nothing else does: not the reloader of ``runserver``, not ``migrate`` or ``shell``.

So the job is started here and not in ``AppConfig.ready()``, which runs in all of them. For a server that imports this
before it forks (``gunicorn --preload``), start the job in a hook that runs after the fork instead.
"""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()

import jobs  # noqa: E402 - a real project's jobs import its models, which are there from here on

jobs.start()
