"""What a server for ASGI imports: the shop, with a coordinator for each event loop that serves."""

import os

from django.core.asgi import get_asgi_application

from pgconcert.contrib.django import with_coordinator

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = with_coordinator(get_asgi_application())
