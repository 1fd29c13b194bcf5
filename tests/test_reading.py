"""What a path may name that is no file to read, by the operating system's own kinds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunemath.errors import DataError, ModelError
from tunemath.reading import parse_json, read_file, read_text


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/proc/self/mem"])
def test_what_has_no_end_is_refused(path):
    with pytest.raises(DataError, match=f"{path} (is a pipe|cannot be read|may not be read)"):
        read_file(path, DataError)


def test_a_pipe_that_nobody_writes_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"pipe is a pipe, a device or a socket"):
        read_file(tmp_path / "pipe", ModelError)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "does not exist"),
        ("folder", "is a folder; give a file"),
        ("loop", "is a loop of symbolic links"),
        ("file/below", "is below something that is a file"),
        ("a" * 5000, r"aaaa… \(.* characters more\) is a longer name than a file can have"),
        ("a\0b", "is no path"),
        ("a\ud800b", "is not UTF-8"),
    ],
)
def test_what_is_no_file_is_named(tmp_path, name, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=words) as told:
        read_file(tmp_path / name, DataError)
    assert len(str(told.value)) < 500


def test_no_more_is_read_than_its_kind_has(tmp_path):
    path = tmp_path / "long"
    path.write_bytes(b"x" * 1001)
    assert len(read_file(path, DataError, 1001)) == 1001
    with pytest.raises(DataError, match="has more than 1,000 bytes"):
        read_file(path, DataError, 1000)


def test_text_is_utf_8_with_line_feeds(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc")
    assert read_text(path, DataError) == "a\nb\nc"
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_text(path, DataError)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 101 + "]" * 101, '{"a": ' * 200 + "1" + "}" * 200]
)
def test_json_that_is_nested_beyond_use_is_refused(text):
    with pytest.raises(ModelError, match=r"config is not valid JSON.*nested"):
        parse_json(text, Path("config"), ModelError)
    assert parse_json("[" * 100 + "]" * 100, Path("config"), ModelError)


def test_a_number_that_python_will_not_read_is_refused():
    with pytest.raises(ModelError, match="config is not valid JSON"):
        parse_json("9" * 5000, Path("config"), ModelError)


def test_half_of_a_character_is_no_text():
    for text in (r'{"a": "\ud800"}', r'{"\uDC00": 1}', r'["\ud800 \udc00"]'):
        with pytest.raises(ModelError, match=r"config holds \\u(d800|dc00), half of a character"):
            parse_json(text, Path("config"), ModelError)
    for raw in (b'{"a": "\xed\xa0\x80"}', '{"a": 1}'.encode("utf-16")):
        with pytest.raises(ModelError, match="config is not valid JSON"):
            parse_json(raw, Path("config"), ModelError)
    assert parse_json(rb'"\ud83d\ude00"', Path("config"), ModelError) == "\U0001f600"
    assert parse_json(r'"\\ud800"', Path("config"), ModelError) == r"\ud800"
