"""The shop's own tests, for Django's runner: ``python manage.py test``."""

# ruff: noqa: PT009 - unittest's assertions say more under its own runner

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from io import StringIO

from django.core.management import call_command
from django.test import Client, TestCase, TransactionTestCase

from pgconcert.contrib.django import coordinator, lifespan
from pgconcert.contrib.eventstream import KEEP_ALIVE
from shop.models import Order
from shop.views import paid_orders


@contextmanager
def held_elsewhere(key: str) -> Iterator[None]:
    """Somebody else has the lock."""
    with ThreadPoolExecutor(1) as elsewhere:
        hold = elsewhere.submit(lambda: coordinator().lock(key).try_acquire()).result()
    assert hold is not None
    try:
        yield
    finally:
        hold.release()


class Paying(TransactionTestCase):
    """Real commits, so that messages are really sent."""

    def test_everybody_is_told(self) -> None:
        order = Order.objects.create(customer="Ann")
        with coordinator().subscribe("orders", "dashboard") as messages:
            self.client.post(f"/orders/{order.pk}/pay")
            told = messages.get(timeout=10)
            self.assertEqual((told.channel, told.json()), ("orders", {"paid": order.pk}))
            told = messages.get(timeout=10)
            self.assertEqual((told.channel, told.text), ("dashboard", "Ann has paid"))

    def test_nobody_is_told_what_was_rolled_back(self) -> None:
        order = Order.objects.create(customer="Ann")
        with coordinator().subscribe("orders", "dashboard") as messages:
            Client(raise_request_exception=False).post(f"/orders/{order.pk}/pay?fail=1")
            coordinator().publish("orders", "the next message")
            self.assertEqual(messages.get(timeout=10).text, "the next message")
        order.refresh_from_db()
        self.assertFalse(order.paid)


class InOneTransaction(TestCase):
    """All in one transaction that is rolled back: what would be sent after a commit can be looked at."""

    def test_what_happens_after_the_commit(self) -> None:
        order = Order.objects.create(customer="Ann")
        with coordinator().subscribe("orders", "dashboard") as messages:
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                self.client.post(f"/orders/{order.pk}/pay")
            self.assertEqual(len(callbacks), 1)
            self.assertEqual(messages.get(timeout=10).channel, "dashboard")  # the other one waits for a real commit

    def test_one_report_at_a_time(self) -> None:
        self.assertContains(self.client.get("/report/monday"), "monday: 0 orders are paid")
        with held_elsewhere("report:monday"):
            self.assertContains(self.client.get("/report/monday"), "report:monday", status_code=409)
            self.assertContains(self.client.get("/report/tuesday"), "tuesday: 0 orders are paid")
        self.assertContains(self.client.get("/report/monday"), "monday: 0 orders are paid")

    def test_one_process_closes_the_day(self) -> None:
        Order.objects.create(customer="Ann", paid=True)
        with held_elsewhere("close day"):
            self.assertEqual(self.said(), "another process is at it\n")
        self.assertEqual(self.said(), "1 orders closed\n")
        self.assertEqual(self.said(), "0 orders closed\n")

    def said(self) -> str:
        out = StringIO()
        call_command("close_day", stdout=out)
        return out.getvalue()


class Live(TransactionTestCase):
    async def test_the_stream(self) -> None:
        async with lifespan() as c, aclosing(paid_orders()) as events:
            self.assertEqual(await anext(events), KEEP_ALIVE)
            await c.publish("orders", json={"paid": 7})
            self.assertEqual(await anext(events), b'data: {"paid":7}\n\n')
