"""Programs that tests need and a machine may lack.

Here lives the one way to ask for them. Theory: a test that cannot run says which Debian package would let it; where
everything is installed on purpose (`--require-all`) the same absence is a failure, so no test stays skipped unseen.
"""

import os
import shutil
from pathlib import Path
from typing import Final

import pytest

PACKAGES: Final = {
    "faketime": "faketime",
    "openssl": "openssl",
    "pgbouncer": "pgbouncer",
    "postgresql": "postgresql",
    "redis-server": "redis-server",
}
"""Program to Debian package."""

_DEBIAN_SERVERS: Final = Path("/usr/lib/postgresql")


def find(program: str) -> Path | None:
    """Where a program is; "postgresql" stands for any of Debian's servers."""
    if program == "postgresql":
        return next(iter(debian_servers().values()), None)
    # Debian keeps servers in sbin, which is not in everybody's PATH.
    found = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    return Path(found) if found else None


def need(config: pytest.Config, program: str) -> Path:
    """The path of a program; without it the test skips, or fails under `--require-all`."""
    if found := find(program):
        return found
    message = f"needs {program}: apt-get install {PACKAGES[program]}"
    if config.getoption("--require-all"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def debian_servers() -> dict[str, Path]:
    """Debian's PostgreSQL servers: "pg15" to its folder of programs."""
    found = {}
    for programs in sorted(_DEBIAN_SERVERS.glob("*/bin")):
        if (programs / "initdb").exists() and (programs / "postgres").exists():
            found[f"pg{programs.parent.name}"] = programs
    return found
