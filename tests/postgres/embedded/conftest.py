"""The folders of the tests of the embedded server.

Here live fixtures. Theory: the folders lie directly under the system's temporary folder and may be passed through by
anybody, because the server may run as another user than the tests; a server that is only to be used is a copy of one.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgconcert.postgres.embedded import EmbeddedServer
from tests.postgres.embedded.scenes import address, ask, cleared


@pytest.fixture
def empty() -> Iterator[Path]:
    """A folder in which no server has ever been."""
    made = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    made.chmod(0o711)
    with cleared(made):
        yield made


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="embedded-")).resolve()
    made.chmod(0o711)
    with cleared(made):
        with EmbeddedServer.start(address(made)) as server:
            # Nobody makes databases here; without the templates there is a third of the files to copy.
            ask(server.url, "UPDATE pg_database SET datistemplate = false WHERE datistemplate")
            for name in ("template0", "template1"):
                ask(server.url, f"DROP DATABASE {name}", autocommit=True)
        yield made / "cluster"


@pytest.fixture
def folder(empty: Path, cluster: Path) -> Path:
    """A folder whose server has run and was stopped; a copy, because making one takes most of a second."""
    subprocess.run(["cp", "-a", cluster, empty], check=True)
    return empty
