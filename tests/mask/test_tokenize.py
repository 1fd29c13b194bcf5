from __future__ import annotations

import json

import pytest

from tunemath.errors import ModelError
from tunemath.mask import load_tokenizer


def test_special_ids_come_from_the_configuration(model_folder):
    folder = model_folder(eos="</s>", pad="<unk>", generation={"eos_token_id": [4, 2]})
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": 3}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_ids == (4, 2, 7)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (1, 0)


def test_truncation_and_added_tokens_of_the_file_are_off(model_folder):
    tokenizer = load_tokenizer(model_folder(adds_bos=True))
    text = "the quick brown fox " * 20
    assert len(tokenizer.encode(text)) > 20
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.adds_bos
    assert not load_tokenizer(model_folder()).adds_bos


def test_ids_equal_transformers(model_folder, templates):
    from transformers import PreTrainedTokenizerFast

    folder = model_folder(templates["llama3"], eos="<|eot_id|>")
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    text = "<s><|start_header_id|>user<|end_header_id|>\n\nWas ist 2+2? 日本<|eot_id|>"
    assert list(load_tokenizer(folder).encode(text)) == oracle.encode(
        text, add_special_tokens=False
    )


def test_controls_are_special_tokens_and_those_that_the_template_writes(model_folder):
    tokenizer = load_tokenizer(model_folder())
    assert tokenizer.specials.findall("a<|im_end|><think>") == ["<|im_end|>"]
    assert tokenizer.controls("{{'<think>'}}").findall("<|im_end|><think>") == [
        "<|im_end|>",
        "<think>",
    ]


def test_what_is_missing_is_said(tmp_path, model_folder):
    with pytest.raises(
        ModelError, match=r"has no tokenizer\.json; save the model's fast tokenizer"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a readable tokenizer"):
        load_tokenizer(tmp_path)
    folder = model_folder()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no eos token; set eos_token"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object, got a list"):
        load_tokenizer(folder)
