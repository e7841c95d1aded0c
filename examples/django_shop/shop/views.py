"""Pay an order, follow what is paid, and make a report that one process makes at a time."""

from collections.abc import AsyncIterator

from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

from pgconcert import AcquireTimeout
from pgconcert.contrib.django import async_coordinator, exclusive, publish, publish_on_commit
from pgconcert.contrib.eventstream import KEEP_ALIVE, ServerEvent
from shop.models import Order


@csrf_exempt
def pay(request: HttpRequest, number: int) -> HttpResponse:
    """The order is paid and everybody is told, or neither."""
    with transaction.atomic():
        order = Order.objects.select_for_update().get(pk=number)
        order.paid = True
        order.save()
        publish("orders", json={"paid": number})  # sent by the commit itself
        publish_on_commit("dashboard", f"{order.customer} has paid")  # sent right after the commit
        if "fail" in request.GET:
            raise ValueError("the card was refused")
    return HttpResponse("paid\n")


@exclusive(lambda day: f"report:{day}", timeout=0.5)
def make_report(day: str) -> str:
    """One report of a day at a time, in all processes of the shop."""
    return f"{day}: {Order.objects.filter(paid=True).count()} orders are paid\n"


def report(request: HttpRequest, day: str) -> HttpResponse:
    """The report, or who is making it."""
    try:
        return HttpResponse(make_report(day))
    except AcquireTimeout as busy:
        return HttpResponse(f"{busy}\n", status=409)


async def paid_orders() -> AsyncIterator[bytes]:
    """What is paid, as server-sent events."""
    async with async_coordinator().subscribe("orders") as messages:
        yield KEEP_ALIVE
        async for message in messages:
            yield ServerEvent(message.text).lines()


async def live(request: HttpRequest) -> StreamingHttpResponse:
    """A stream for a browser: one LISTEN in each process, however many look on."""
    return StreamingHttpResponse(paid_orders(), content_type="text/event-stream")
