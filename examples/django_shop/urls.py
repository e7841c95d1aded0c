"""The pages of the shop."""

from django.urls import path
from shop import views

urlpatterns = [
    path("orders/<int:number>/pay", views.pay),
    path("orders/live", views.live),
    path("report/<slug:day>", views.report),
]
