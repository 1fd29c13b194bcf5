"""How many positions a model has, beside transformers: where a forward pass fails, where not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunemath.errors import ModelError
from tunemath.space.blueprint import read_blueprint
from tunemath.space.blueprint.positions import Positions, positions_of

torch = pytest.importorskip("torch")
SMALL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    **SMALL, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 12,
}  # fmt: skip
BERT = {
    **SMALL, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 12, "is_decoder": True,
}  # fmt: skip
GPT = {**SMALL, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 12}
DECODER = {
    **SMALL, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 12, "word_embed_proj_dim": 16,
}  # fmt: skip

# What fails after its last position, and how many it has.
ENDING: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (GPT, 12),
    "gpt_bigcode": (GPT, 12),
    "openai-gpt": (GPT, 12),
    "gptj": ({**GPT, "rotary_dim": 8}, 12),
    "codegen": ({**GPT, "n_head": 4, "rotary_dim": 4}, 12),
    "ctrl": ({**GPT, "dff": 16}, 12),
    "gpt_neo": (
        {
            **SMALL, "hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16,
            "max_position_embeddings": 12, "attention_types": [[["global"], 1]],
        },
        12,
    ),
    "mpt": ({**SMALL, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 12}, 12),
    "opt": (DECODER, 12),
    "biogpt": ({**BERT, "is_decoder": False}, 12),
    "bert": (BERT, 12),
    "electra": ({**BERT, "embedding_size": 16}, 12),
    "roberta": ({**BERT, "pad_token_id": 1}, 10),
    "xlm-roberta": ({**BERT, "pad_token_id": 3}, 8),
    "camembert": ({**BERT, "pad_token_id": 1}, 10),
}  # fmt: skip

# What goes on after the length that it was trained for.
GOING_ON: dict[str, tuple[dict[str, Any], int | None]] = {
    "llama": (LLAMA, 12),
    "mistral": ({**LLAMA, "sliding_window": 4}, 12),
    "qwen2": (LLAMA, 12),
    "gpt_neox": (LLAMA, 12),
    "falcon": (
        {
            **SMALL, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "alibi": True,
        },
        None,
    ),
    "bloom": ({**SMALL, "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "mamba": ({**SMALL, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, None),
    "xglm": (
        {
            **SMALL, "d_model": 16, "ffn_dim": 16, "num_layers": 1, "attention_heads": 2,
            "max_position_embeddings": 12,
        },
        12,
    ),
}  # fmt: skip


def built(folder, model_type: str, values: dict[str, Any]):
    """Make a random model of transformers; return it and its blueprint."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    return model, read_blueprint(folder)


def runs(model, tokens: int) -> bool:
    """Whether a row of so many tokens, none of them padding, passes the model."""
    try:
        with torch.inference_mode():
            model(torch.full((1, tokens), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("model_type", ENDING)
def test_a_table_of_positions_ends_where_the_model_fails(tmp_path, model_type):
    values, expected = ENDING[model_type]
    model, blueprint = built(tmp_path, model_type, values)
    found = positions_of(blueprint)
    assert found == Positions(expected, True)
    assert runs(model, expected)
    assert not runs(model, expected + 1)


@pytest.mark.parametrize("model_type", GOING_ON)
def test_other_positions_go_on(tmp_path, model_type):
    values, expected = GOING_ON[model_type]
    model, blueprint = built(tmp_path, model_type, values)
    assert positions_of(blueprint) == Positions(expected, False)
    assert runs(model, 40)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 4096),
        ({"rope_type": "default", "rope_theta": 1e4}, 4096),
        ({"type": "linear", "factor": 4.0}, 16_384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        # Qwen2.5's card: 32,768 natively, 131,072 by YaRN of factor 4.
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
            131_072,
        ),
        # Llama 3.2 states 131,072 itself; the factor is of other wavelengths.
        ({"rope_type": "llama3", "factor": 1.0, "original_max_position_embeddings": 8192}, 4096),
        (
            {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {}},
            32_768,
        ),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaling_extends_rotary_positions(tmp_path, scaling, expected, key):
    values = {**LLAMA, "model_type": "llama", "max_position_embeddings": 4096, key: scaling}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert positions_of(read_blueprint(tmp_path / "config.json")) == Positions(expected, False)


def test_an_old_t5_states_positions_that_it_does_not_have(tmp_path):
    values: dict[str, Any] = {
        "model_type": "t5",
        "n_positions": 512,
        "architectures": ["T5ForConditionalGeneration"],
    }
    values |= {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert positions_of(read_blueprint(tmp_path / "config.json")) == Positions(None, False)


@pytest.mark.parametrize("padding", [-1, 513, 600, 10**12])
def test_a_padding_token_that_leaves_no_positions_is_told(tmp_path, padding):
    values = {"vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "intermediate_size": 8, "max_position_embeddings": 514}  # fmt: skip
    values |= {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps({**values, "pad_token_id": padding}))
    with pytest.raises(ModelError, match=f"pad_token_id {padding}, and positions are counted"):
        positions_of(read_blueprint(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({**values, "pad_token_id": 1}))
    assert positions_of(read_blueprint(tmp_path / "config.json")) == Positions(512, True)
