"""The one application of the shop."""
