"""The command line before any command runs: version, help, errors, and what is said without click and rich."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pgconcert
from tests.cli.shell import LIMIT

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name)

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {names!r} else found(name, *rest)
sys.meta_path.insert(0, Hide())
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=LIMIT, env=os.environ | {"COLUMNS": "100"} | environment,
    )  # fmt: skip


def test_version() -> None:
    assert run("-m", "pgconcert", "--version").stdout == f"pgconcert {pgconcert.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_commands_and_examples(flag: str) -> None:
    done = run("-m", "pgconcert", flag)
    assert done.returncode == 0
    assert "Examples:\n    pgconcert demo\n" in done.stdout
    assert "Watch several processes compete" in done.stdout


def test_help_of_demo_shows_examples_defaults_and_exit_codes() -> None:
    text = run("-m", "pgconcert", "demo", "--help").stdout
    assert "pgconcert demo --url postgresql://localhost/test" in text
    assert "embedded://" in text
    assert "Exit code: 0 if" in text


def test_without_a_command_the_help_is_shown() -> None:
    done = run("-m", "pgconcert")
    assert "Commands:" in done.stdout + done.stderr


def test_an_unknown_command_is_named() -> None:
    done = run("-m", "pgconcert", "dmeo")
    assert done.returncode == 2
    assert "dmeo" in done.stderr


@pytest.mark.parametrize("names", [("click",), ("rich",), ("click", "rich")])
def test_missing_extra_is_explained(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(names=names))
    done = run("-m", "pgconcert", "demo", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f'needs {" and ".join(names)}; install the extra: pip install "pgconcert[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_imports_neither_click_nor_rich() -> None:
    code = "import sys, pgconcert.cli; print({'click', 'rich'} & set(sys.modules))"
    assert run("-c", code).stdout == "set()\n"


def test_a_wrong_address_is_one_sentence_without_the_secret() -> None:
    done = run("-m", "pgconcert", "demo", "--url", "postgresql://ann:hunter2@[broken/x")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the database address, a URL")
    assert "hunter2" not in done.stderr + done.stdout


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    done = run("-m", "pgconcert", "demo", "--url", "postgresql://ann:hunter2@127.0.0.1:1/x")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the server cannot be reached: ")
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
