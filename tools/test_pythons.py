"""Run the unit tests on every supported Python that this machine has.

    python tools/test_pythons.py [PYTEST ARGUMENT ...]

Candidates are `python3.N` on the PATH and under pyenv; a candidate counts when it starts and says that it is that
version, because a pyenv shim exists for versions that are not active. One interpreter per version, each with an
environment of its own under `.venvs/`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ["3.11", "3.12", "3.13", "3.14"]


def candidates(version: str) -> list[Path]:
    """Where an interpreter of this version may be, best first."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    newest_first = sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"), key=patch_level, reverse=True)
    on_path = shutil.which(name)
    return [*newest_first, *([Path(on_path)] if on_path else [])]


def patch_level(path: Path) -> list[int]:
    return [int(part) for part in path.parent.parent.name.split(".") if part.isdigit()]


def answers_as(python: Path, version: str) -> bool:
    ask = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.strip() == version


def find() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for version in VERSIONS:
        usable = (python for python in candidates(version) if answers_as(python, version))
        if python := next(usable, None):
            found[version] = python
    return found


def run(version: str, python: Path, arguments: list[str]) -> bool:
    folder = ROOT / ".venvs" / version
    lock = ROOT / "requirements" / "test.txt"
    print(f"== Python {version}", flush=True)
    if subprocess.run([str(python), str(ROOT / "tools" / "venv.py"), str(folder), str(lock)], check=False).returncode:
        return False
    pytest = [str(folder / "bin" / "python"), "-m", "pytest", "tests/unit", "-m", "not long", "-q", *arguments]
    return subprocess.run(pytest, cwd=ROOT, check=False).returncode == 0


def main() -> None:
    found = find()
    print("found Python " + (", ".join(found) or "of no supported version"))
    if missing := [version for version in VERSIONS if version not in found]:
        print("not found: " + ", ".join(missing))
    if not found:
        sys.exit(1)
    verdicts = {}
    for version, python in found.items():
        begun = time.monotonic()
        passed = run(version, python, sys.argv[1:])
        verdicts[version] = passed
        print(f"== Python {version} {'passed' if passed else 'FAILED'} in {time.monotonic() - begun:.0f} s", flush=True)
    if failed := [version for version, passed in verdicts.items() if not passed]:
        sys.exit("failed on Python " + ", ".join(failed))


if __name__ == "__main__":
    main()
