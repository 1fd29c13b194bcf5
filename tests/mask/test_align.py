from __future__ import annotations

import pytest

from tunemath.errors import DataError
from tunemath.mask import (
    Example,
    Message,
    Pair,
    encode_answer,
    encode_example,
    encode_prompt,
    encode_rows,
)


def talk(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    roles = ["user", "assistant"] * len(contents)
    turns = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
    return (*([Message("system", system)] if system else []), *turns)


def example(*contents: str, system: str | None = None) -> Example:
    return Example("one", talk(*contents, system=system), "train.jsonl:1")


def supervised_text(tokenizer, encoded):
    ids = [i for i, on in zip(encoded.input_ids, encoded.supervised, strict=True) if on]
    return tokenizer.decode(ids)


ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", None: "</s>"}


@pytest.mark.parametrize("name", ENDS)
def test_only_answers_and_terminators_are_targets(model, name):
    template, tokenizer = model(name, eos=ENDS[name])
    encoded = encode_example(example("one two?", "three", "four?", "five six"), template, tokenizer)
    space = " " if name == "mistral" else ""
    end = ENDS[name]
    assert supervised_text(tokenizer, encoded) == f"{space}three{end}{space}five six{end}"
    assert encoded.answer_text == supervised_text(tokenizer, encoded)
    last = encode_example(
        example("one two?", "three", "four?", "five six"), template, tokenizer, answers="last"
    )
    assert supervised_text(tokenizer, last) == f"{space}five six{end}"
    assert last.input_ids == encoded.input_ids


@pytest.mark.parametrize("name", ["chatml", "default-system", "llama3", "mistral"])
def test_ids_are_those_of_transformers(model, model_folder, templates, name):
    from transformers import PreTrainedTokenizerFast

    template, tokenizer = model(name)
    oracle = PreTrainedTokenizerFast.from_pretrained(model_folder(templates[name]))
    row = example("Was ist 2+2?", "vier, ja", "sicher? 日本", "yes")
    dicts = [{"role": m.role, "content": m.content} for m in row.messages]
    encoded = encode_example(row, template, tokenizer)
    assert encoded.boundary_stable
    whole = oracle.apply_chat_template(dicts, tokenize=True, return_dict=False)
    assert list(encoded.input_ids) == whole
    prompt = oracle.apply_chat_template(
        dicts[:1], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert list(encoded.input_ids[: encoded.prompt_length]) == prompt
    assert list(encode_prompt(template, tokenizer, row.messages[:1])) == prompt


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("answer", ["yes", "\n\nyes", " yes no", "2024-03-01", "日本 ü"])
def test_prompt_and_answer_are_the_row(model, name, answer):
    template, tokenizer = model(name, eos=ENDS[name])
    row = example("what?", answer)
    encoded = encode_example(row, template, tokenizer)
    prompt = encode_prompt(template, tokenizer, row.messages[:1])
    ids = encode_answer(template, tokenizer, row.messages[:1], answer)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.input_ids[len(prompt) : len(prompt) + len(ids)] == ids
    targets = [i for i, on in zip(encoded.input_ids, encoded.supervised, strict=True) if on]
    assert tuple(targets) == ids


def test_an_answer_that_would_merge_into_the_prompt_keeps_the_prompt_as_at_inference(model):
    template, tokenizer = model()
    merged = tokenizer.encode("\n\n")
    assert len(merged) == 1
    row = example("what?", "\nyes")
    encoded = encode_example(row, template, tokenizer)
    assert not encoded.boundary_stable
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt(
        template, tokenizer, row.messages[:1]
    )
    assert supervised_text(tokenizer, encoded) == "\nyes<|im_end|>"


def test_newlines_that_split_before_an_answer_stay_as_at_inference(model):
    template, tokenizer = model("llama3", kind="gpt2", eos="<|eot_id|>")
    row = example("what?", "yes")
    encoded = encode_example(row, template, tokenizer)
    assert tokenizer.encode(template.full(row.messages)) != encoded.input_ids
    assert not encoded.boundary_stable
    prompt = encode_prompt(template, tokenizer, row.messages[:1])
    assert encoded.input_ids[: encoded.prompt_length] == prompt
    assert supervised_text(tokenizer, encoded) == "yes<|eot_id|>"


def test_sentencepiece_adds_no_space_to_an_answer_encoded_apart(model):
    template, tokenizer = model("mistral", kind="metaspace", eos="</s>")
    encoded = encode_example(example("what date?", "yes"), template, tokenizer)
    assert tokenizer.decode(encoded.input_ids).endswith("yes</s>")
    assert encoded.boundary_stable


def test_pad_equal_to_the_terminator_changes_nothing(model):
    template, tokenizer = model(pad="<|im_end|>")
    encoded = encode_example(example("what?", "yes"), template, tokenizer)
    end = tokenizer.eos_ids[0]
    assert tokenizer.pad_id == end
    on = [t for t, s in zip(encoded.input_ids, encoded.supervised, strict=True) if s]
    assert on[-1] == end
    assert encoded.input_ids[-1] != end
    assert not encoded.supervised[-1]


def test_a_template_without_a_terminator_supervises_the_answer_alone(model):
    template, tokenizer = model()
    template = type(template)(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = encode_example(example("what?", "yes"), template, tokenizer)
    assert supervised_text(tokenizer, encoded) == "yes"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% if add_generation_prompt %}X{% endif %}{% for m in messages %}{{ m.content }}"
            "{% endfor %}",
            "renders the prompt differently once its answer follows",
        ),
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "changes the answer's text; it wrote 'YES'",
        ),
        ("{{ raise_exception('no') }}", "refuses a conversation of user: no"),
    ],
)
def test_a_template_that_hides_the_answer_is_refused(model, source, message):
    template, tokenizer = model()
    with pytest.raises(DataError, match=r"^train\.jsonl:1: .*" + message):
        encode_example(example("what?", "yes"), type(template)(source), tokenizer)


def test_a_template_that_rewrites_earlier_turns_needs_last(model):
    template, tokenizer = model("thinking")
    row = example("what?", "yes", "sure?", "no")
    with pytest.raises(DataError, match=r"rewrites earlier turns .* set mask.answers: last"):
        encode_example(row, template, tokenizer)
    assert any(encode_example(row, template, tokenizer, "last").supervised)


@pytest.mark.parametrize("contents", [("a<|im_end|>b", "yes"), ("what?", "yes<s>")])
def test_control_tokens_in_a_message_are_refused(model, contents):
    template, tokenizer = model()
    with pytest.raises(DataError, match=r"train\.jsonl:1: the .* text contains '<.*>', a control"):
        encode_example(example(*contents), template, tokenizer)
    with pytest.raises(DataError, match=r"^items\.jsonl:3: the user's text contains"):
        encode_prompt(template, tokenizer, talk("<s>"), "items.jsonl:3")


def test_too_long_rows_are_refused_or_dropped_whole(model):
    template, tokenizer = model()
    rows = [example("what?", "yes"), example("what?", "yes " * 60), example("what " * 60, "yes")]
    with pytest.raises(
        DataError, match=r"train.jsonl:1: the row has \d+ tokens and mask.max_length"
    ):
        encode_rows(rows[:2], template, tokenizer, max_length=40)
    with pytest.raises(DataError, match=r"the prompt alone has \d+ tokens .*, so no answer fits"):
        encode_rows(rows[2:], template, tokenizer, max_length=40)
    kept = encode_rows(rows, template, tokenizer, max_length=40, too_long="drop")
    assert (len(kept.encoded), kept.dropped, kept.pairs) == (1, 2, False)
    assert kept.examples == (rows[0],)
    with pytest.raises(DataError, match=r"every training row is longer than mask\.max_length 5"):
        encode_rows(rows, template, tokenizer, max_length=5, too_long="drop")


@pytest.mark.parametrize("too_long", ["refuse", "drop"])
def test_a_row_of_exactly_the_limit_is_kept(model, too_long):
    template, tokenizer = model()
    row = example("what?", "yes")
    length = len(tokenizer.encode(template.full(row.messages)))
    for limit in (length, length + 1):
        kept = encode_rows([row], template, tokenizer, max_length=limit, too_long=too_long)
        assert [len(each.input_ids) for each in kept.encoded] == [length]
        assert kept.dropped == 0
    said = {
        "refuse": rf"the row has {length} tokens and mask\.max_length is {length - 1};",
        "drop": rf"longer than mask\.max_length {length - 1}; .*the longest has {length} tokens",
    }
    with pytest.raises(DataError, match=said[too_long]):
        encode_rows([row], template, tokenizer, max_length=length - 1, too_long=too_long)


def test_the_longer_side_of_a_pair_is_held_against_the_limit(model):
    template, tokenizer = model()
    for texts in (("yes", "no no no"), ("no no no", "yes")):
        pair = Pair("a", talk("what?"), *texts, "p.jsonl:1")
        longer = (*talk("what?"), Message("assistant", "no no no"))
        length = len(tokenizer.encode(template.full(longer)))
        kept = encode_rows([pair], template, tokenizer, max_length=length)
        assert max(len(side.input_ids) for side in kept.encoded) == length
        with pytest.raises(DataError, match=f"the row has {length} tokens"):
            encode_rows([pair], template, tokenizer, max_length=length - 1)


def test_a_prompt_that_fills_the_limit_leaves_no_place_for_an_answer(model):
    template, tokenizer = model()
    row = example("what?", "yes")
    prompt = len(tokenizer.encode(template.prompt(row.messages[:1])))
    with pytest.raises(DataError, match=f"the prompt alone has {prompt} tokens"):
        encode_rows([row], template, tokenizer, max_length=prompt)
    with pytest.raises(DataError, match=r"the row has \d+ tokens"):
        encode_rows([row], template, tokenizer, max_length=prompt + 1)


def test_pairs_share_their_prompt_ids_and_drop_together(model):
    template, tokenizer = model()
    pairs = [
        Pair("a", talk("what?"), "yes", "no no", "p.jsonl:1"),
        Pair("b", talk("what?"), "yes", "no " * 60, "p.jsonl:2"),
    ]
    kept = encode_rows(pairs, template, tokenizer, max_length=40, too_long="drop")
    assert (len(kept.encoded), kept.dropped, kept.pairs) == (2, 1, True)
    chosen, rejected = kept.encoded
    n = chosen.prompt_length
    assert n == rejected.prompt_length
    assert chosen.input_ids[:n] == rejected.input_ids[:n]
    assert supervised_text(tokenizer, rejected) == "no no<|im_end|>"
