"""One conversion at a time, whole or not at all; what killed ones left is deleted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONVERT = """
import os, signal, sys, time
from pathlib import Path
from tunemath.runner import conversion

def write(source, folder):
    (folder / "half").write_text("x")
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "wait":
        sys.stdin.readline()
    (folder / "whole").write_text(sys.argv[2])

conversion._write_model = write
conversion.convert_gguf(Path("no.gguf"), Path(sys.argv[1]))
"""


def convert(folder: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(folder), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX")
def test_what_killed_conversions_left_is_deleted_by_the_next(tmp_path):
    folder = tmp_path / "smollm2-135m-0123456789abcdef-v3"
    for count in range(2):
        with convert(folder, "die") as process:
            assert process.wait(timeout=60) == -signal.SIGKILL
        left = names(tmp_path) - {".lock"}
        assert left, count
        assert all(name.startswith(".smollm2-135m-") for name in left)
    older = tmp_path / ".smollm2-135m-98362432-v2.a1b2c3d4"  # as earlier versions left them
    older.mkdir()
    (older / "model.safetensors").write_text("x")
    others = {".cache", ".other-135m-v2.a1b2c3d4", "smollm2-135m-98362432-v2"}
    for name in others:
        (tmp_path / name).mkdir()
    with convert(folder, "end") as process:
        assert process.wait(timeout=60) == 0
    assert names(tmp_path) == {".lock", folder.name, *others}
    assert names(folder) == {"half", "whole"}


def test_a_second_process_waits_for_the_first_and_takes_what_it_wrote(tmp_path):
    folder = tmp_path / "smollm2-135m-0123456789abcdef-v3"
    with convert(folder, "wait") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        with convert(folder, "end") as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=3)
            first.communicate("\n", timeout=60)
            told, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode, told) == (0, 0, "")
    assert (folder / "whole").read_text() == "wait"
    assert names(tmp_path) == {".lock", folder.name}
