"""How pgconcert fits into frameworks that other people make: one module or package for each.

Here live adapters without mechanisms of their own: they open and close coordinators when the framework says so, and
turn its requests into words of the library. Nothing in pgconcert imports them, and each imports its framework; this
file imports nothing.
"""
