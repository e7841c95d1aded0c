"""One view, which lets in one request at a time, of all processes of the site."""

import os

from django.http import HttpRequest, HttpResponse
from django.urls import path
from jobs import coordinator

from pgconcert import AcquireTimeout


def refresh(request: HttpRequest) -> HttpResponse:
    """Do something that must not be done twice at a time, or say who does it."""
    try:
        with coordinator.lock("refresh", timeout=0.5):
            return HttpResponse(f"refreshed by {os.getpid()}\n")
    except AcquireTimeout as busy:
        return HttpResponse(f"{busy}\n", status=409)


urlpatterns = [path("refresh", refresh)]
