from __future__ import annotations

import pytest

from tunemath.mask import Example, Message, encode_example, sample_rows


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_the_tokens_of_a_sample_are_the_text_and_its_targets_the_answer(model, kind):
    template, tokenizer = model("chatml", kind=kind)
    messages = (Message("user", "日本 the date?"), Message("assistant", "yes, 日"))
    encoded = encode_example(Example("a", messages, "t:1"), template, tokenizer)
    [sample] = sample_rows([encoded], tokenizer)
    text = "".join(token["text"] for token in sample["tokens"])
    assert text == tokenizer.decode(encoded.input_ids)
    targets = "".join(token["text"] for token in sample["tokens"] if token["supervised"])
    assert targets == "yes, 日<|im_end|>"


def test_a_character_of_several_tokens_is_shown_once(model):
    template, tokenizer = model()
    messages = (Message("user", "日"), Message("assistant", "日"))
    encoded = encode_example(Example("a", messages, "t:1"), template, tokenizer)
    [sample] = sample_rows([encoded], tokenizer)
    shown = [token["text"] for token in sample["tokens"] if token["supervised"]]
    assert shown == ["", "", "日", "<|im_end|>"]
    assert [token["special"] for token in sample["tokens"] if token["supervised"]] == [
        False,
        False,
        False,
        True,
    ]
