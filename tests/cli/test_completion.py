"""Completion: the scripts are printed, and what they ask for is answered."""

from __future__ import annotations

import pytest

from tests.cli.shell import run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_us(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_PGCONCERT_COMPLETE={shell}_complete" in done.stdout


def test_the_script_is_answered() -> None:
    done = run(_PGCONCERT_COMPLETE="bash_complete", COMP_WORDS="pgconcert status --na", COMP_CWORD="2")
    assert done.stdout == "plain,--namespace\n"


def test_an_unknown_shell_is_named() -> None:
    done = run("completion", "tcsh")
    assert done.returncode == 2
    assert "'tcsh' is not one of" in done.stderr


def test_help_says_where_the_line_goes() -> None:
    said = run("completion", "--help").stdout
    assert "in ~/.bashrc" in said
    assert 'eval "$(pgconcert completion zsh)"' in said
