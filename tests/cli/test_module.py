"""``python -m tunemath`` is the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunemath import __version__


def module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunemath", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_answers_as_the_command_does():
    assert module("--version").stdout == f"tunemath {__version__}\n"
    helped = module("count", "--help")
    assert helped.returncode == 0
    assert "Usage: tunemath count" in helped.stdout
    assert "python -m" not in helped.stdout


@pytest.mark.parametrize(("arguments", "code"), [(("plan", "missing.yaml"), 2), (("nothing",), 2)])
def test_it_ends_with_the_same_exit_codes(arguments, code):
    ended = module(*arguments)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
