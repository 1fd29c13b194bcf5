from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunemath.errors import MaskError
from tunemath.mask import (
    Example,
    Item,
    Message,
    Pair,
    certify,
    encode_example,
    encode_rows,
    row_hash,
    rows_hash,
)


def rows(count: int = 3, system: str | None = None) -> list[Example]:
    head = [Message("system", system)] if system else []
    return [
        Example(
            f"r{k}",
            (*head, Message("user", f"what is {k}?"), Message("assistant", f"it is {k} yes")),
            f"train.jsonl:{k + 1}",
        )
        for k in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    return path


def wrong(certificate):
    return {name: count for name, count in certificate["violations"].items() if count}


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("mistral", "</s>"), (None, "</s>")],
)
@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_a_right_mask_has_no_violation(model, data, name, end, kind):
    template, tokenizer = model(name, eos=end, kind=kind)
    examples = rows()
    talk = (*examples[0].messages, Message("user", "and now?"), Message("assistant", "no, yes"))
    examples.append(Example("multi", talk, "train.jsonl:9"))
    encoded = [encode_example(example, template, tokenizer) for example in examples]
    certificate = certify(examples, encoded, template, tokenizer, data=data)
    assert wrong(certificate) == {}
    assert certificate["terminator"] == {
        "text": end,
        "id": tokenizer.backend.token_to_id(end),
        "expected": 5,
        "supervised": 5,
        "stops_generation": True,
    }
    assert certificate["rows"] == 4
    assert certificate["tokens"] == sum(len(row.input_ids) for row in encoded)
    assert certificate["supervised"] + certificate["prompt"] == certificate["tokens"]
    assert certificate["data"]["sha256"] == hashlib.sha256(b"{}\n").hexdigest()
    json.dumps(certificate, allow_nan=False)


CACHE = {}


def ready(model, name, end, kind):
    if (name, kind) not in CACHE:
        CACHE[name, kind] = model(name, eos=end, kind=kind)
    return CACHE[name, kind]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@pytest.mark.parametrize(
    ("name", "end", "kind"),
    [
        ("chatml", "<|im_end|>", "byte-level"),
        ("chatml", "<|im_end|>", "gpt2"),
        ("mistral", "</s>", "byte-level"),
        ("llama3", "<|eot_id|>", "byte-level"),
        (None, "</s>", "gpt2"),
    ],
)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(turns=st.lists(TEXT, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_any_text_has_a_right_mask(model, data, name, end, kind, turns):
    template, tokenizer = ready(model, name, end, kind)
    roles = ["user", "assistant"] * 3
    messages = tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))
    example = Example("any", messages, "t:1")
    encoded = encode_example(example, template, tokenizer)
    certificate = certify([example], [encoded], template, tokenizer, data=data)
    assert set(wrong(certificate)) <= {"unstable_boundary"}


def shift(row, by):
    mask = list(row.supervised)
    moved = [*mask[1:], False] if by < 0 else [False, *mask[:-1]]
    return replace(row, supervised=tuple(moved))


def unmask(row, unwanted):
    keep = [on and not unwanted(row, i) for i, on in enumerate(row.supervised)]
    return replace(row, supervised=tuple(keep))


def last_target(row, i):
    return i == max(j for j, on in enumerate(row.supervised) if on)


END = 4

FAULTS = {
    "shifted left": (
        lambda row: shift(row, -1),
        {"prompt_or_padding_supervised", "answer_text_differs", "terminator_not_supervised"},
    ),
    "shifted right": (
        lambda row: shift(row, +1),
        {"answer_text_differs"},
    ),
    "terminator unmasked": (
        lambda row: unmask(row, last_target),
        {"answer_text_differs", "terminator_not_supervised"},
    ),
    "pad is eos, masked by id": (
        lambda row: unmask(row, lambda r, i: r.input_ids[i] == END),
        {"answer_text_differs", "terminator_not_supervised"},
    ),
    "everything supervised": (
        lambda row: replace(row, supervised=(True,) * len(row.input_ids)),
        {"prompt_or_padding_supervised", "answer_text_differs"},
    ),
    "one prompt token supervised": (
        lambda row: replace(row, supervised=(False, True, *row.supervised[2:])),
        {"prompt_or_padding_supervised", "answer_text_differs", "terminator_not_supervised"},
    ),
    "newline after the terminator supervised": (
        lambda row: replace(row, supervised=(*row.supervised[:-1], True)),
        {"prompt_or_padding_supervised", "answer_text_differs"},
    ),
    "padding supervised": (
        lambda row: replace(
            row,
            input_ids=(*row.input_ids, END, END),
            supervised=(*row.supervised, True, True),
        ),
        {"prompt_or_padding_supervised", "unstable_boundary"},
    ),
    "nothing supervised": (
        lambda row: replace(row, supervised=(False,) * len(row.input_ids)),
        {"answer_text_differs", "terminator_not_supervised"},
    ),
    "a hole in the answer": (
        lambda row: unmask(row, lambda r, i: i == r.prompt_length + 2),
        {"answer_text_differs", "prompt_or_padding_supervised", "terminator_not_supervised"},
    ),
    "cut": (
        lambda row: replace(row, input_ids=row.input_ids[:-4], supervised=row.supervised[:-4]),
        {"answer_text_differs", "terminator_not_supervised", "unstable_boundary"},
    ),
    "cut, and an end forced": (
        lambda row: replace(
            row,
            input_ids=(*row.input_ids[:-5], END),
            supervised=row.supervised[:-4],
        ),
        {"answer_text_differs", "unstable_boundary"},
    ),
    "bos twice": (
        lambda row: replace(
            row, input_ids=(1, 1, *row.input_ids), supervised=(False, False, *row.supervised)
        ),
        {"double_bos", "unstable_boundary"},
    ),
    "bos before the answer": (
        lambda row: replace(
            row,
            input_ids=(*row.input_ids[: row.prompt_length], 1, *row.input_ids[row.prompt_length :]),
            supervised=(
                *row.supervised[: row.prompt_length],
                True,
                *row.supervised[row.prompt_length :],
            ),
        ),
        {"answer_text_differs", "prompt_or_padding_supervised", "unstable_boundary"},
    ),
    "another answer": (
        lambda row: replace(row, input_ids=(*row.input_ids[:-3], 50, *row.input_ids[-2:])),
        {"answer_text_differs", "unstable_boundary"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_placed(model, data, fault):
    template, tokenizer = model()
    assert tokenizer.pad_id == END == tokenizer.eos_ids[0]
    plant, expected = FAULTS[fault]
    examples = rows()
    encoded = [encode_example(example, template, tokenizer) for example in examples]
    encoded[1] = plant(encoded[1])
    certificate = certify(examples, encoded, template, tokenizer, data=data)
    assert wrong(certificate) == dict.fromkeys(expected, 1)
    assert {entry["where"] for entry in certificate["first_violations"]} == {"train.jsonl:2"}
    assert certificate["rows_sha256"] != rows_hash(
        [encode_example(example, template, tokenizer) for example in examples]
    )


def test_an_empty_think_block_is_text_that_no_answer_has(model, data):
    template, tokenizer = model("thinking")
    examples = rows(2)
    encoded = [encode_example(example, template, tokenizer) for example in examples]
    certificate = certify(examples, encoded, template, tokenizer, data=data)
    assert wrong(certificate) == {"answer_text_differs": 2}
    assert "<think>" in certificate["first_violations"][0]["detail"]


def test_a_template_without_a_terminator_is_a_violation(model, data):
    template, tokenizer = model()
    template = type(template)(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = [encode_example(example, template, tokenizer) for example in rows()]
    certificate = certify(rows(), encoded, template, tokenizer, data=data)
    assert wrong(certificate) == {"terminator_not_supervised": 3}
    assert certificate["terminator"]["text"] is None
    assert certificate["terminator"]["stops_generation"] is False


def test_an_answer_that_merges_into_the_prompt_is_reported_as_unstable_only(model, data):
    template, tokenizer = model()
    example = Example("a", (Message("user", "what?"), Message("assistant", "\nyes")), "t:1")
    encoded = encode_example(example, template, tokenizer)
    certificate = certify([example], [encoded], template, tokenizer, data=data)
    assert wrong(certificate) == {"unstable_boundary": 1}


def test_text_that_the_template_adds_is_reported(model, data):
    template, tokenizer = model("default-system")
    silent, declared = rows(2), rows(2, system="You are a helpful clerk.")
    examples = [*silent, *declared]
    encoded = [encode_example(example, template, tokenizer) for example in examples]
    certificate = certify(examples, encoded, template, tokenizer, data=data)
    assert wrong(certificate) == {"undeclared_text": 2}
    assert certificate["undeclared"] == [{"text": "You are a very helpful machine", "rows": 2}]


def test_markup_is_no_undeclared_text(model, data):
    for name in ("chatml", "llama3", "mistral"):
        template, tokenizer = model(name)
        encoded = [encode_example(example, template, tokenizer) for example in rows()]
        certificate = certify(rows(), encoded, template, tokenizer, data=data)
        assert certificate["violations"]["undeclared_text"] == 0


def test_a_template_that_writes_the_date_is_reported(model, data):
    template, tokenizer = model("dated")
    encoded = [encode_example(example, template, tokenizer) for example in rows()]
    found = wrong(certify(rows(), encoded, template, tokenizer, data=data))
    assert found == {"undeclared_text": 3, "clock_dependent": 3}


def test_pairs_are_certified_side_by_side(model, data):
    template, tokenizer = model()
    pairs = [
        Pair(f"p{k}", (Message("user", f"what is {k}?"),), "yes", "no", f"p.jsonl:{k + 1}")
        for k in range(2)
    ]
    ready = encode_rows(pairs, template, tokenizer)
    options = {"data": data, "pairs": True}
    certificate = certify(ready.examples, ready.encoded, template, tokenizer, **options)
    assert wrong(certificate) == {}
    assert (certificate["rows"], certificate["sequences"]) == (2, 4)
    chosen, other = ready.encoded[0], ready.encoded[2]
    moved = replace(chosen, input_ids=other.input_ids, supervised=other.supervised)
    certificate = certify(
        ready.examples, [moved, *ready.encoded[1:]], template, tokenizer, **options
    )
    assert certificate["violations"]["pair_prompt_differs"] == 1


def test_items_that_training_asks_word_for_word_are_listed(model, data):
    template, tokenizer = model()
    examples = rows(3, system="Answer.")
    encoded = [encode_example(example, template, tokenizer) for example in examples]

    def item(name: str, system: str, user: str) -> Item:
        return Item(name, (Message("system", system), Message("user", user)), "i", answer="x")

    task = [item("a", "ANSWER.", " What  IS 1?\n"), item("b", "Answer.", "what is 9?")]
    certificate = certify(examples, encoded, template, tokenizer, data=data, task=task)
    assert certificate["overlap"] == {
        "task": {"exact": 1, "rows": [{"item": "a", "train": "r1"}], "other_system": []},
        "retention": None,
    }


def test_row_hash_is_of_length_ids_and_mask():
    ids, mask = [5, 6, 7], [False, True, True]
    expected = hashlib.sha256(struct.pack("<7q", 3, *ids, *map(int, mask))).hexdigest()
    assert row_hash(ids, mask) == expected
    assert row_hash(np.array(ids, dtype=np.int32), np.array([0, 1, 1])) == expected
    assert row_hash(ids, [True, True, True]) != expected
    assert row_hash([5, 6], [False, True]) != expected
    with pytest.raises(MaskError, match=r"got shapes \(3,\) and \(2,\)"):
        row_hash(ids, [True, False])


def test_row_hash_of_torch_tensors_is_the_same():
    torch = pytest.importorskip("torch")
    ids, mask = [5, 6, 7], [False, True, True]
    assert row_hash(torch.tensor(ids), torch.tensor(mask)) == row_hash(ids, mask)


def test_rows_and_ids_must_go_together(model, data):
    template, tokenizer = model()
    with pytest.raises(MaskError, match="1 rows of text and 0 of ids"):
        certify(rows(1), [], template, tokenizer, data=data)


def test_samples_show_every_token_once(model, data):
    template, tokenizer = model()
    examples = rows(20)
    encoded = [encode_example(example, template, tokenizer) for example in examples]
    samples = certify(examples, encoded, template, tokenizer, data=data)["samples"]
    assert [sample["id"] for sample in samples] == ["r0", "r4", "r8", "r11", "r15", "r19"]
    for sample in samples:
        row = encoded[int(sample["id"][1:])]
        assert len(sample["tokens"]) == len(row.input_ids)
        text = "".join(token["text"] for token in sample["tokens"]).replace("↵\n", "\n")
        assert text == tokenizer.decode(row.input_ids)
        assert [token["supervised"] for token in sample["tokens"]] == list(row.supervised)
