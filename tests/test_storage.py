"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from tunemath import storage
from tunemath.errors import RunError, StorageError
from tunemath.storage import (
    canonical_json,
    hash_bytes,
    hash_file,
    new_folder,
    read_json,
    read_jsonl,
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
    ],
)
def test_libraries_that_report_a_full_disk_in_words_are_understood(tmp_path, words):
    with pytest.raises(StorageError, match="disk is full"), storage_errors(tmp_path):
        raise RuntimeError(words)


@pytest.mark.parametrize("error", [RuntimeError("other"), OSError(errno.EIO, "hardware")])
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
