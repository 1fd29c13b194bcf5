"""Output that goes where not every sign, or nothing at all, can be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import sys; from tunemath.cli import main; main(sys.argv[1:])"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")


def started(arguments: list[str], **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    given = {"capture_output": True, "timeout": 240, **options}
    return subprocess.run(command, check=False, **given)


@pytest.fixture
def commands(tiny_job, tmp_path) -> dict[str, list[str]]:
    """One command of each way to print: tables, JSON, markdown, plain lines, help."""
    runs = ["--runs", str(tmp_path / "runs")]
    folder = ["--dir", str(tmp_path / "learn")]
    return {
        "plan": ["plan", str(tiny_job), *runs],
        "plan --json": ["plan", str(tiny_job), *runs, "--json"],
        "mask": ["mask", str(tiny_job), *runs],
        "schema": ["schema"],
        "learn --list": ["learn", "--list", *folder],
        "learn 4": ["learn", "4", *folder],
        "--help": ["plan", "--help"],
        "--version": ["--version"],
    }


ALL = ["plan", "plan --json", "mask", "schema", "learn --list", "learn 4", "--help", "--version"]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [*((name, "ascii") for name in ALL), ("plan", "latin-1"), ("plan --json", "cp437")],
)
def test_an_encoding_without_our_signs_is_no_error(commands, name, encoding):
    variables = {**os.environ, "PYTHONIOENCODING": encoding}
    done = started(commands[name], env=variables)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    if name == "plan --json":
        told = json.loads(started(commands[name]).stdout.decode("utf-8"))
        assert json.loads(text).keys() == told.keys()
    elif name == "plan":
        assert "64 -> 128" in text
        assert "\\u" not in text


def test_an_error_is_told_in_such_an_encoding(tmp_path):
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = started(["plan", str(tmp_path / "días‖.yaml")], env=variables)
    assert done.returncode == 2
    assert "d\\xedas||.yaml does not exist" in done.stderr.decode("ascii")


@needs_full
@pytest.mark.parametrize(
    ("name", "buffered"), [*((name, True) for name in ALL), ("plan", False), ("schema", False)]
)
def test_an_output_that_is_full_is_told(commands, name, buffered):
    variables = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with FULL.open("w") as full:
        done = started(
            commands[name], stdout=full, stderr=subprocess.PIPE, capture_output=False, env=variables
        )
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "error: cannot write the output: the disk is full; free some space and run the same "
        "command again\n"
    )


@needs_full
@pytest.mark.parametrize("buffered", [True, False])
def test_where_errors_cannot_be_told_either_the_code_says_it(commands, tmp_path, buffered):
    variables = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with FULL.open("w") as full:
        streams = {"stdout": full, "stderr": full, "capture_output": False, "env": variables}
        assert started(commands["plan"], **streams).returncode == 2
        assert started(["plan", str(tmp_path / "none.yaml")], **streams).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="closed as a POSIX shell closes")
@pytest.mark.parametrize("name", ["plan", "plan --json", "schema"])
@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)])
def test_nothing_is_written_to_what_is_closed(commands, name, closed):
    redirected = " ".join(f"{each}>&-" for each in closed)
    shell = ["sh", "-c", f'exec "$@" {redirected}', "sh"]
    command = [*shell, sys.executable, "-c", CODE, *commands[name]]
    done = subprocess.run(command, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0
    assert done.stderr == b""
    assert bool(done.stdout) == (1 not in closed)


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
@pytest.mark.parametrize("name", ["plan", "plan --json", "--help"])
def test_a_reader_that_has_gone_is_no_error(commands, name):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = started(commands[name], stdout=writer, stderr=subprocess.PIPE, capture_output=False)
    finally:
        os.close(writer)
    assert done.returncode in (0, 1)  # 1 by Typer, where it is the one that meets it
    assert done.stderr == b""
