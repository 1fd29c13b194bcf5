from __future__ import annotations

import json

import pytest

from tunemath.errors import DataError
from tunemath.mask import Example, Item, Message, Pair, read_rows

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(tmp_path, *rows, name="train.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"messages": [USER, ANSWER]}, "user assistant"),
        ({"messages": [SYSTEM, USER, ANSWER]}, "system user assistant"),
        ({"messages": [USER, ANSWER], "system": "Be brief."}, "system user assistant"),
        ({"prompt": "Hi", "completion": "Yes"}, "user assistant"),
        ({"prompt": "Hi", "completion": "Yes", "system": "S"}, "system user assistant"),
        ({"prompt": [SYSTEM, USER], "completion": "Yes"}, "system user assistant"),
        ({"prompt": "Hi", "completion": "Yes", "meta": {"a": 1}, "source": 3}, "user assistant"),
    ],
)
def test_forms_of_a_training_row(tmp_path, row, roles):
    [example] = read_rows(write(tmp_path, row), "sft")
    assert isinstance(example, Example)
    assert " ".join(message.role for message in example.messages) == roles
    assert example.messages[-1] == Message("assistant", "Yes")
    assert (example.id, example.where) == ("train:1", "train.jsonl:1")


def test_a_pair_is_two_examples_on_one_prompt(tmp_path):
    row = {"id": 7, "prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    [pair] = read_rows(write(tmp_path, row), "dpo")
    assert pair == Pair("7", (Message("user", "Hi"),), "Yes", "No", "train.jsonl:1")
    chosen, rejected = pair.sides()
    assert (chosen.id, rejected.id) == ("7#chosen", "7#rejected")
    assert chosen.messages[:-1] == rejected.messages[:-1] == pair.prompt
    assert rejected.messages[-1].content == "No"


@pytest.mark.parametrize(
    ("row", "answer", "choices", "correct", "reference"),
    [
        ({"prompt": "Hi", "answer": "Yes"}, "Yes", None, None, "Yes"),
        ({"messages": [SYSTEM, USER], "answer": "Yes"}, "Yes", None, None, "Yes"),
        ({"prompt": "Hi", "choices": ["a", "b"], "answer": 1}, None, ("a", "b"), 1, "b"),
        ({"prompt": "Hi", "choices": ["a", "b"], "answer": "b"}, None, ("a", "b"), 1, "b"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, None, ("a", "b"), 0, "a"),
    ],
)
def test_forms_of_an_item(tmp_path, row, answer, choices, correct, reference):
    [item] = read_rows(write(tmp_path, row), "evaluation")
    assert isinstance(item, Item)
    assert (item.answer, item.choices, item.correct) == (answer, choices, correct)
    assert item.reference == reference
    assert item.prompt[-1] == Message("user", "Hi")


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    row = json.dumps({"prompt": "Hi\u2028there", "completion": "Yes"}, ensure_ascii=False)
    path = write(tmp_path, "\ufeff" + row, "", "  ", row)
    assert [row.where for row in read_rows(path, "sft")] == ["train.jsonl:1", "train.jsonl:4"]


SFT = {"prompt": "Hi", "completion": "Yes"}
DPO = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
ITEM = {"prompt": "Hi", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("sft", "{oops", "not valid JSON: .*; give one object a line"),
        ("sft", "[1]", r"expected a JSON object, got \[1\]"),
        ("sft", {}, "no conversation; a row has `messages`, or `prompt` and `completion`"),
        ("sft", {"prompt": "Hi"}, "completion is missing; a row has"),
        ("sft", {"completion": "Hi"}, "prompt is missing; a row has"),
        ("sft", {**SFT, "compeltion": "x"}, 'unknown key "compeltion"; did you mean completion?'),
        ("sft", {**SFT, "zzz": "x"}, 'unknown key "zzz"; a row has'),
        ("sft", {**SFT, "messages": [USER]}, "messages and prompt exclude each other"),
        ("sft", {"messages": [USER, ANSWER], "completion": "x"}, "messages and completion exclude"),
        ("sft", {"prompt": "Hi", "completion": " \n"}, "completion is empty"),
        ("sft", {"prompt": "", "completion": "x"}, "prompt is empty"),
        ("sft", {"prompt": 3, "completion": "x"}, "prompt must be a non-empty list of messages"),
        ("sft", {"prompt": "Hi", "completion": 42}, "completion must be a string; got 42"),
        (
            "sft",
            {"prompt": "Hi", "completion": "\ud800"},
            "completion contains half of a surrogate",
        ),
        ("sft", {"messages": []}, "messages must be a non-empty list"),
        ("sft", {"messages": "Hi"}, 'messages must be a non-empty list of messages; got "Hi"'),
        ("sft", {"messages": ["Hi"]}, r"messages\[0\] must be an object with role and content"),
        ("sft", {"messages": [{**USER, "name": "x"}]}, 'has the key "name"'),
        ("sft", {"messages": [{"role": "tool", "content": "x"}]}, 'has the role "tool"; the roles'),
        ("sft", {"messages": [{"role": "user", "content": None}]}, "content must be a string"),
        ("sft", {"messages": [USER]}, "no message is the assistant's"),
        ("sft", {"messages": [USER, ANSWER, USER]}, "the last message is the user's; end with the"),
        ("sft", {"messages": [SYSTEM, USER, ANSWER], "system": "S"}, "system is given twice"),
        (
            "sft",
            {"prompt": [USER, ANSWER], "completion": "x"},
            "prompt is the assistant's; end with",
        ),
        ("sft", {**SFT, "id": True}, "id is true; give a non-empty string"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ("dpo", {"prompt": "Hi", "chosen": "a"}, "rejected is missing"),
        ("dpo", {**DPO, "rejected": "a "}, "chosen and rejected are the same answer"),
        ("dpo", {**DPO, "rejected": ""}, "rejected is empty"),
        ("dpo", {**DPO, "choosen": "b"}, 'unknown key "choosen"; did you mean chosen?'),
        ("evaluation", {"prompt": "Hi"}, "answer is missing"),
        ("evaluation", {"answer": "Hi"}, "prompt is missing"),
        ("evaluation", {"prompt": "Hi", "answer": 7}, "answer must be a string; got 7"),
        ("evaluation", {"prompt": "Hi", "answer": " "}, "answer is empty"),
        ("evaluation", {**ITEM, "choices": ["a"]}, "choices must be a list of at least 2 answers"),
        ("evaluation", {**ITEM, "choices": ["a", ""]}, r"choices\[1\] is empty"),
        ("evaluation", {**ITEM, "choices": ["a", "a "]}, r"choices\[1\] repeats \"a \""),
        (
            "evaluation",
            {**ITEM, "answer": 2},
            "answer 2 is out of range: 2 choices, counted from 0",
        ),
        ("evaluation", {**ITEM, "answer": -1}, "answer -1 is out of range"),
        ("evaluation", {**ITEM, "answer": "c"}, 'the answer "c" is none of the 2 choices'),
        ("evaluation", {**ITEM, "answer": True}, "answer must be an index from 0"),
        ("evaluation", {**DPO, "answer": "a"}, "answer and chosen/rejected exclude each other"),
        ("evaluation", {"messages": [USER, ANSWER], "answer": "a"}, "messages is the assistant's"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, kind, row, message):
    good = {"sft": SFT, "dpo": DPO, "evaluation": ITEM}[kind]
    with pytest.raises(DataError, match=message) as caught:
        read_rows(write(tmp_path, good, row), kind)
    assert str(caught.value).startswith("train.jsonl:2: ")
    assert "\n" not in str(caught.value)


def test_duplicate_ids_name_both_lines(tmp_path):
    path = write(tmp_path, {**SFT, "id": "a"}, SFT, {**SFT, "id": "a"})
    with pytest.raises(
        DataError, match=r"^train.jsonl:3: the id 'a' is also that of train.jsonl:1"
    ):
        read_rows(path, "sft")


def test_a_file_that_is_not_there_or_empty_or_not_text(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl", "sft")
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path, "sft")
    with pytest.raises(DataError, match="has no rows; give one JSON object a line with `messages`"):
        read_rows(write(tmp_path, "", " "), "sft")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_rows(tmp_path / "latin.jsonl", "sft")


def test_a_file_that_mixes_forms_of_items_is_refused(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": "b"}\n{"prompt": "c", "choices": ["d", "e"], "answer": 0}\n'
    )
    with pytest.raises(DataError, match=r"items.jsonl:2: .*`choices` among items with `answer`"):
        read_rows(path, "evaluation")
