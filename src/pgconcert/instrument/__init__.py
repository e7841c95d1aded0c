"""What looks at a coordinator from outside: logs in JSON, metrics, traces.

Here live readers of events, of ``statistics()`` and of ``health()``; nothing in the machinery knows them. Nothing is
imported here, so that each module needs only the package that it is about: ``fields`` (what an event says, for
machines), ``logging``, and those that speak to other packages.
"""
