"""Bad rows are told at once: how many, and the first ten."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest

from tunemath.errors import DataError
from tunemath.mask import Example, Message, Refusals, encode_rows, read_rows

GOOD = {"prompt": "Hi", "completion": "Yes"}


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_every_bad_row_is_counted_and_the_first_ten_are_shown(tmp_path):
    bad = {"prompt": "Hi", "completion": ""}
    path = write(tmp_path / "train.jsonl", *[GOOD, bad] * 50)
    with pytest.raises(DataError) as caught:
        read_rows(path, "sft")
    head, *lines = str(caught.value).splitlines()
    assert head == "train.jsonl: 50 of 100 rows are refused; the first 10:"
    assert lines == [
        f"  train.jsonl:{n}: completion is empty; write its text, or remove the row"
        for n in range(2, 22, 2)
    ]


def test_faults_of_every_kind_stand_in_one_message(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        "{oops", "[1]", {**GOOD, "zzz": 1}, {**GOOD, "id": "a"}, {**GOOD, "id": "a"},
        {"prompt": "Hi"},
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        read_rows(path, "sft")
    head, *lines = str(caught.value).splitlines()
    assert head == "train.jsonl: 5 of 6 rows are refused:"
    for line, (number, words) in zip(
        lines,
        ((1, "not valid JSON"), (2, "JSON object"), (3, '"zzz"'), (5, "'a'"), (6, "completion")),
        strict=True,
    ):
        assert line.startswith(f"  train.jsonl:{number}: ")
        assert words in line


def test_a_file_of_bad_rows_takes_no_more_memory_than_ten_of_them(tmp_path):
    def peak(rows: int) -> int:
        path = write(tmp_path / "train.jsonl", *['{"prompt": "Hi"}'] * rows)
        tracemalloc.start()
        with pytest.raises(DataError, match="rows are refused"):
            read_rows(path, "sft")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found - 3 * rows * len('{"prompt": "Hi"}\n')  # the text, its lines

    assert peak(20_000) < peak(100) + 2_000_000


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('{"prompt": "2+2", "completion": "4", "completion": "5"}', "completion"),
        ('{"prompt": "2+2", "prompt": "2+3", "completion": "5"}', "prompt"),
        (
            '{"messages": [{"role": "user", "role": "user", "content": "a"},'
            ' {"role": "assistant", "content": "b"}]}',
            "role",
        ),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path, row, key):
    path = write(tmp_path / "train.jsonl", row)
    with pytest.raises(DataError, match=rf'train.jsonl:1: the key "{key}" is given twice'):
        read_rows(path, "sft")


def test_rows_that_cannot_be_rendered_or_are_too_long_are_told_together(model):
    template, tokenizer = model("chatml")
    answers = ["yes", "a<|im_end|>b", "yes " * 60, "no", "x<|im_start|>"]
    rows = [
        Example(f"r{n}", (Message("user", "what?"), Message("assistant", text)), f"t.jsonl:{n}")
        for n, text in enumerate(answers, start=1)
    ]
    with pytest.raises(DataError) as caught:
        encode_rows(rows, template, tokenizer, max_length=60)
    head, *lines = str(caught.value).splitlines()
    assert head == "t.jsonl: 3 of 5 rows are refused:"
    for line, (number, words) in zip(
        lines,
        ((2, "'<|im_end|>', a control token"), (3, "mask.max_length is 60"), (5, "<|im_start|>")),
        strict=True,
    ):
        assert line.startswith(f"  t.jsonl:{number}: ")
        assert words in line


def test_rows_that_take_long_to_refuse_are_not_all_tried(monkeypatch):
    monkeypatch.setattr("tunemath.mask.refusals._PATIENCE", 0.3)
    refusals = Refusals("train.jsonl", "rows")

    def read_on():
        for row in range(1, 1000):
            with refusals.collected():
                until = time.process_time() + 0.11
                while time.process_time() < until:
                    pass
                raise DataError(f"train.jsonl:{row}: too much")

    with pytest.raises(DataError, match=r"\d rows are refused so far; no more were") as told:
        read_on()
    assert 2 <= len(told.value.faults) <= 4
