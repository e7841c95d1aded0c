"""The application as Django knows it: its label, its checks, and the signals after which coordinators are closed."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.core.signals import setting_changed
from django.db.backends.signals import connection_created

from .checks import check_settings, check_tables
from .coordinators import database_comes_or_goes, settings_changed

__all__ = ["PgconcertConfig"]


class PgconcertConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """No models: our tables are made by ``manage.py pgconcert schema apply``."""

    name = "pgconcert.contrib.django"
    label = "pgconcert"
    verbose_name = "pgconcert"

    def ready(self) -> None:
        """Register checks and receivers; nothing is opened."""
        register(check_settings)
        register(check_tables, Tags.database)
        setting_changed.connect(settings_changed, dispatch_uid="pgconcert")
        connection_created.connect(database_comes_or_goes, dispatch_uid="pgconcert")
