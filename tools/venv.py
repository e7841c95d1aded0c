"""Make a virtual environment hold exactly what a lock file asks for. Only the standard library, since it runs first.

    python3 tools/venv.py FOLDER LOCK

The folder carries a stamp: a digest of everything the result depends on (lock file, project file, interpreter, place).
Equal stamp, nothing to do. Debian splits `ensurepip` from its Python; where it is missing the environment is created
without pip and the interpreter's own pip installs into it from outside.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def fail(message: str) -> None:
    sys.exit("pgconcert: " + message)


def digest(lock: Path) -> str:
    told = hashlib.sha256()
    told.update(repr((str(ROOT), sys.version_info[:3], sys.base_prefix)).encode())
    for path in (ROOT / "pyproject.toml", lock, Path(__file__)):
        told.update(path.read_bytes())
    return told.hexdigest()


def interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_usable(folder: Path) -> bool:
    """Whether the folder holds a working environment of this very Python version; others are made anew."""
    ask = [str(interpreter(folder)), "-c", "import sys; print(*sys.version_info[:3], sys.prefix)"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return False
    *version, prefix = answer.split(" ", 3)
    return version == [str(part) for part in sys.version_info[:3]] and folder.samefile(prefix)


def create(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "venv", str(folder)]
    # Debian can leave an empty ensurepip behind, or one without its wheels: only trying tells.
    if subprocess.run(command, capture_output=True, check=False).returncode:
        subprocess.run([*command, "--clear", "--without-pip"], check=True)


def pip_for(folder: Path) -> list[str]:
    has_pip = subprocess.run([str(interpreter(folder)), "-c", "import pip"], capture_output=True, check=False)
    if has_pip.returncode == 0:
        return [str(interpreter(folder)), "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        fail(f"{sys.executable} has neither pip nor ensurepip. On Debian: apt-get install python3-pip")
    return [sys.executable, "-m", "pip", "--python", str(interpreter(folder))]


def install(folder: Path, lock: Path) -> None:
    pip = pip_for(folder)
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    for arguments in (
        ["install", "--quiet", "--require-hashes", "--requirement", str(lock)],
        # The build backend is in the lock file too: nothing unpinned is fetched behind our back.
        ["install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    ):
        subprocess.run([*pip, *arguments], check=True, env={**os.environ, **quiet})


def main() -> None:
    if sys.version_info < OLDEST:
        have = ".".join(str(part) for part in sys.version_info[:2])
        fail(f"needs Python 3.11 or newer; {sys.executable} is {have}. Name another: make install PYTHON=python3.12")
    folder, lock = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    stamp, wanted = folder / ("." + lock.stem + ".stamp"), digest(lock)
    usable = is_usable(folder)
    if usable and stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {lock.name} into {folder.name} ...", flush=True)
    if not usable:
        create(folder)
    try:
        install(folder, lock)
    except subprocess.CalledProcessError as error:
        fail(f"pip ended with status {error.returncode}; its message stands above. Then: make install")
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
