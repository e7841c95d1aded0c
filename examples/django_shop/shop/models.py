"""An order, and whether it is paid."""

from django.db import models


class Order(models.Model):
    customer = models.CharField(max_length=100)
    paid = models.BooleanField(default=False)
    closed = models.BooleanField(default=False)
