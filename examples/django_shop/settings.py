"""Settings of the shop."""

import os

from psycopg.conninfo import conninfo_to_dict

_address = conninfo_to_dict(os.environ.get("DATABASE_URL", "postgresql:///shop"))

SECRET_KEY = "an example has no secrets"  # noqa: S105
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "urls"
ASGI_APPLICATION = "asgi.application"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _address.get("dbname", ""),
        "USER": _address.get("user", ""),
        "PASSWORD": _address.get("password", ""),
        "HOST": _address.get("host", ""),
        "PORT": str(_address.get("port", "")),
    }
}
INSTALLED_APPS = ["pgconcert.contrib.django", "shop"]

PGCONCERT = {
    "DATABASE": "default",  # the alias whose server coordinates
    "NAMESPACE": "shop",  # part of the names of locks
    "COORDINATOR": {"network_timeout": 5.0},  # whatever Coordinator takes
}
SILENCED_SYSTEM_CHECKS = ["pgconcert.W001"]  # locks and plain messages need no tables
