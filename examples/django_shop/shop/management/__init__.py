"""What manage.py can do in the shop."""
