"""Close what is paid. Every machine may start it at midnight: one of them does it."""

from django.core.management.base import BaseCommand

from pgconcert.contrib.django import exclusive
from shop.models import Order


@exclusive("close day", if_held="skip")
def close_day() -> int:
    """Close the paid orders and return how many they were; ``None`` if another process is at it."""
    return Order.objects.filter(paid=True, closed=False).update(closed=True)


class Command(BaseCommand):
    help = "Close the orders that are paid."

    def handle(self, **options: object) -> None:
        closed = close_day()
        self.stdout.write("another process is at it" if closed is None else f"{closed} orders closed")
