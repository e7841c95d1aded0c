"""Messages between processes: what is sent, who gets it, and what may have been missed.

What a coordinator's verbs do (``messaging.py``): sending and routing (``broker.py``, ``route.py``), receiving
(``subscription.py``, ``overflow.py``, ``delivery.py``), handlers (``listening.py``), requests (``requests.py``), typed
channels (``fanout.py``, ``codec.py``, ``recovery.py``), pings and hooks (``pings.py``, ``health.py``), and what travels
(``envelope.py``, ``channels.py``, ``message.py``). All of it stands on the port ``Messenger``, whoever implements it.
"""
