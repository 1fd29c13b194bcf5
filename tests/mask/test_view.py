from __future__ import annotations

import pytest

from tunemath.mask import Example, Message, coloured, encode_example, sample_rows


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_the_view_shows_the_text_and_colours_the_targets(model, kind):
    template, tokenizer = model("chatml", kind=kind)
    messages = (Message("user", "日本 the date?"), Message("assistant", "yes, 日"))
    encoded = encode_example(Example("a", messages, "t:1"), template, tokenizer)
    text = coloured(encoded, tokenizer)
    assert text.plain.replace("↵\n", "\n") == tokenizer.decode(encoded.input_ids)
    green = "".join(text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style))
    assert green == "yes, 日<|im_end|>"


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


def test_text_of_data_is_never_read_as_markup(model):
    template, tokenizer = model()
    messages = (Message("user", "[bold red]x[/]"), Message("assistant", "[link=x]y[/link]"))
    encoded = encode_example(Example("a", messages, "t:1"), template, tokenizer)
    assert "[bold red]x[/]" in coloured(encoded, tokenizer).plain
