"""Why nobody lets us in: from the words of libpq and of the server to what they mean and what helps. Pure.

A refused connection has no error code on this side, only a text. So the texts are looked through for what is known, in
English; anything else is passed on as it is, with the advice to look into the server's log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from .verdicts import Finding

__all__ = ["names_no_database", "refusal"]


class _Refusal(NamedTuple):
    pattern: str
    meaning: str
    remedy: str


_NO_DATABASE: Final = 'database ".*" does not exist|no such database'

# The words of libpq and of the server, in English; other languages come to the last line.
_REFUSALS: Final = (
    _Refusal(
        r"connection refused|no such file or directory",
        "nobody listens there",
        "is the server running, and is the port right? pg_isready -h {host} -p {port}",
    ),
    _Refusal(
        r"password authentication failed|no password supplied|authentication failed",
        "the server does not believe that we are {user}",
        "check the password in the address, in PGPASSWORD or in ~/.pgpass; set it: alter role {user} password '...'; "
        "how {user} may log in stands in the server's pg_hba.conf",
    ),
    _Refusal(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "the server lets nobody in from here as {user}",
        "add to the server's pg_hba.conf: host {dbname} {user} OUR-ADDRESS/32 scram-sha-256, and: select "
        "pg_reload_conf(). If it says 'no encryption', sslmode=require in the address may be enough",
    ),
    _Refusal(
        _NO_DATABASE,
        "the server has no database {dbname}",
        "there are: {databases}; or: create database {dbname}",
    ),
    _Refusal(
        r'role ".*" does not exist|no such user',
        "the server has no role {user}",
        "create role {user} login password '...'",
    ),
    _Refusal(
        r"too many (clients|connections)|remaining connection slots|no more connections allowed",
        "the server, the database or the role has no connection left",
        "raise max_connections (or the limit of role or database), or put a pooler in session mode in front",
    ),
    _Refusal(
        r"starting up|shutting down|recovery mode|not yet accepting",
        "the server is starting or stopping",
        "wait, and run the doctor again",
    ),
    _Refusal(
        r"read-only|hot standby|not in hot standby|session is not",
        "no server of this address has the wanted target_session_attrs",
        "name all hosts of the cluster in the address, or leave target_session_attrs out",
    ),
    _Refusal(
        r"no answer within|timeout|timed out|no route|unreachable",
        "nothing comes back from there",
        "a firewall, a wrong host, or a server that hangs: pg_isready -h {host} -p {port}",
    ),
    _Refusal(
        r"certificate|(?-i:\bSSL\b)",
        "the two sides do not agree on encryption",
        "see sslmode and sslrootcert of the address: sslmode=require encrypts, verify-full also checks who it is",
    ),
    _Refusal(r"", "no connection", "look into the server's log"),
)


def refusal(said: str, parameters: Mapping[str, str], databases: Sequence[str] = ()) -> Finding:
    """Why nobody let us in. ``said`` are the words of libpq; ``databases`` what exists, where it could be asked."""
    known = {
        "host": parameters.get("host") or parameters.get("hostaddr") or "localhost",
        "port": parameters.get("port") or "5432",
        "user": parameters.get("user") or "the user",
        "dbname": parameters.get("dbname") or parameters.get("user") or "of the user's name",
        "databases": ", ".join(databases) or "(this role may not look)",
    }
    found = next(known for known in _REFUSALS if re.search(known.pattern, said, re.IGNORECASE))
    return Finding("connect", "fails", f"{found.meaning.format(**known)}: {said}", found.remedy.format(**known))


def names_no_database(said: str) -> bool:
    """Whether it is the database that is missing."""
    return re.search(_NO_DATABASE, said, re.IGNORECASE) is not None
