"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunemath import storage
from tunemath.errors import ModelError, RunError, StorageError
from tunemath.storage import (
    canonical_json,
    hash_bytes,
    hash_file,
    new_folder,
    read_json,
    read_jsonl,
    remove_leftovers,
    storage_errors,
    write_json,
    write_jsonl,
    write_text,
)


def fail_with(code: int):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def test_what_is_written_is_read_back(tmp_path):
    value = {"text": "dem 3. März ‖ ‘x’ \u2028", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "a/b/value.json", value)
    assert read_json(tmp_path / "a/b/value.json") == value
    write_jsonl(tmp_path / "rows.jsonl", [value, value])
    assert read_jsonl(tmp_path / "rows.jsonl") == [value, value]
    assert (tmp_path / "rows.jsonl").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_json_is_never_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run the same command again"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "the disk failed"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
    ],
)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, step, code, words):
    path = tmp_path / "plan.json"
    write_text(path, "before")
    monkeypatch.setattr(storage.os, step, fail_with(code))
    with pytest.raises(StorageError, match=words) as caught:
        write_text(path, "after")
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_text() == "before"


def test_an_interrupt_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    path = tmp_path / "plan.json"
    write_text(path, "before")
    monkeypatch.setattr(storage.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "after")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="not a folder"):
        write_text(tmp_path / "runs/tiny/plan.json", "{}")


@pytest.mark.parametrize(
    "words",
    [
        "I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file",
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "basic_ios::clear: iostream error",
        "write(): fd 3 failed with No space left on device",
    ],
)
def test_libraries_that_report_a_full_disk_in_words_are_understood(tmp_path, words):
    with pytest.raises(StorageError, match="disk is full"), storage_errors(tmp_path):
        raise RuntimeError(words)


def by_torch(folder: Path) -> None:
    import torch

    torch.save(torch.zeros(50_000), folder / "optimizer.pt")


def by_torch_in_many_pieces(folder: Path) -> None:
    import torch

    torch.save({str(k): torch.zeros(100) for k in range(500)}, folder / "optimizer.pt")


def by_torch_as_it_was(folder: Path) -> None:
    import torch

    torch.save(torch.zeros(50_000), folder / "optimizer.pt", _use_new_zipfile_serialization=False)


def by_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(50_000)}, folder / "model.safetensors")


def by_numpy(folder: Path) -> None:
    import numpy as np

    np.save(folder / "a.npy", np.zeros(50_000))


def by_numpy_in_a_zip(folder: Path) -> None:
    import numpy as np

    np.savez(folder / "a.npz", a=np.zeros(50_000))


def by_us(folder: Path) -> None:
    write_text(folder / "plan.json", "x" * 200_000)


WRITERS = [
    by_torch, by_torch_in_many_pieces, by_torch_as_it_was, by_safetensors, by_numpy,
    by_numpy_in_a_zip, by_us,
]  # fmt: skip


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Let the operating system refuse every file of this process beyond so many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1_000, 30_000, 100_000])
@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_may_not_grow_is_told_whoever_writes_it(tmp_path, limited, write, size):
    write(tmp_path)  # imports what it needs, and shows that it can
    for path in tmp_path.iterdir():
        path.unlink()
    limited(size)
    told = f"cannot write {tmp_path}.*(large here|disk is full)"
    with pytest.raises(StorageError, match=told), storage_errors(tmp_path):
        write(tmp_path)
    assert write is not by_us or list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(folder)]
    if os.name == "nt" or os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 1_000, 30_000, 100_000])
@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_told_whoever_writes_to_it(small_disk, write, left):
    stat = os.statvfs(small_disk)
    (small_disk / "others").write_bytes(bytes(max(0, stat.f_bavail * stat.f_frsize - left)))
    told = f"cannot write {small_disk}.*disk is full"
    with pytest.raises(StorageError, match=told), storage_errors(small_disk):
        write(small_disk)


def test_what_is_said_of_something_else_is_not_said_of_the_disk(tmp_path):
    said = ModelError("cannot load m: No space left on device")
    with pytest.raises(ModelError) as caught, storage_errors(tmp_path):
        raise said
    assert caught.value is said


@pytest.mark.parametrize("error", [RuntimeError("other"), OSError(errno.EBADF, "no handle")])
def test_other_errors_pass_through(tmp_path, error):
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path):
        raise error
    assert caught.value is error


def test_missing_and_broken_products_say_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"plan\.json is missing; run `tunemath run`"):
        read_json(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b'{"a": ')
    with pytest.raises(RunError, match=r"not valid JSON.*delete it and run again"):
        read_json(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="not valid JSON"):
        read_json(tmp_path / "plan.json")


def test_hashes_are_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(path) == hash_bytes(b"abc") == expected
    assert hash_bytes(b"") == hashlib.sha256().hexdigest()


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical_json({"b": 1, "a": ["é", 2.0]}) == '{"a":["é",2.0],"b":1}'.encode()
    assert canonical_json(json.loads('{"b": 1, "a": 2}')) == canonical_json({"a": 2, "b": 1})


def test_the_code_hash_covers_every_source_file():
    from tunemath import version

    root = Path(version.__file__).parent
    assert len(version.code_hash()) == 64
    assert version.code_hash() == version.code_hash()
    assert len(list(root.rglob("*.py"))) > 50


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(FileNotFoundError), new_folder(target) as part:
        (part / "half").rename(part / "none" / "half")
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as part:
        (part / "whole").write_text("x")
        assert not target.exists()
        with pytest.raises(RunError, match="another process is writing"), new_folder(target):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    with pytest.raises(RunError, match="exists already"), new_folder(target):
        pass


def test_what_a_killed_process_left_is_deleted(tmp_path):
    left = tmp_path / ".made.part"
    left.mkdir()
    (left / "half").write_text("x")
    with new_folder(tmp_path / "made") as part:
        assert list(part.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tunemath import storage

setattr(storage.os, sys.argv[2], lambda *args: os.kill(os.getpid(), signal.SIGKILL))
storage.write_text(Path(sys.argv[1]), "half")
"""
WAITING = """
import sys
from pathlib import Path
from tunemath import storage

def wait(handle):
    print("writing", flush=True)
    sys.stdin.readline()

storage.os.fsync = wait
storage.write_text(Path(sys.argv[1]), "whole")
"""


def killed_at(step: str, path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path), step]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="Windows can't say who holds a file")
@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_what_a_killed_write_left_is_deleted_by_the_next_in_its_folder(tmp_path, step):
    others = {
        ".plan.json.part",
        ".plan.json.original",
        ".notes.abcdefgh",
        "plan.json.abcdefgh.part",
    }
    for name in others:
        (tmp_path / name).write_text("mine")
    killed_at(step, tmp_path / "plan.json")
    (left,) = {path.name for path in tmp_path.iterdir()} - others
    assert left.startswith(".plan.json.")
    write_text(tmp_path / "mask.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "mask.json"}


@pytest.mark.skipif(os.name == "nt", reason="Windows can't say who holds a file")
def test_what_a_living_process_is_writing_is_left_to_it(tmp_path):
    path = tmp_path / "plan.json"
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"writing\n"
            remove_leftovers(tmp_path)
            write_text(path, "other")
            assert len(list(tmp_path.iterdir())) == 2
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_other_programs_files_are_left_alone(tmp_path):
    for name in (".backup.20240101.part", ".job.txt.abcdefgh.part", ".x.part"):
        (tmp_path / name).write_text("theirs")
    write_text(tmp_path / "job.txt", "ours")
    assert len([*tmp_path.iterdir()]) == 4


def test_a_folder_that_another_process_made_meanwhile_is_refused(tmp_path):
    def make() -> None:
        with new_folder(tmp_path / "out") as part:
            (part / "a").write_text("ours")
            (tmp_path / "out").mkdir()

    with pytest.raises(RunError, match="exists already"):
        make()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_that_is_no_utf_8_has_a_hash():
    assert canonical_json({"a\udcff": 1}) == b'{"a\xed\xb3\xbf":1}'
