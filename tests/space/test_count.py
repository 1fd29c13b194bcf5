from __future__ import annotations

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunemath.errors import ShapeError
from tunemath.space import (
    Blueprint,
    Linear,
    UpdateSpace,
    adapter_parameter_count,
    lora_ledger,
    lora_parameter_count,
    prefix_parameter_count,
)

sizes = st.integers(1, 40)


@given(sizes, sizes, sizes)
def test_lora_is_the_size_of_its_two_factors(d_in, d_out, rank):
    a, b = torch.empty(rank, d_in), torch.empty(d_out, rank)
    assert lora_parameter_count(d_in, d_out, rank) == a.numel() + b.numel()


@given(sizes, sizes, st.booleans())
def test_adapter_is_the_size_of_two_linear_layers(d, m, bias):
    layers = torch.nn.Linear(d, m, bias=bias), torch.nn.Linear(m, d, bias=bias)
    expected = sum(p.numel() for layer in layers for p in layer.parameters())
    assert adapter_parameter_count(d, m, bias) == expected


def test_prefix_is_the_size_of_pefts_embedding():
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=16, num_layers=3, token_dim=4 * 8, num_attention_heads=4,
        num_transformer_submodules=1,
    )  # fmt: skip
    expected = sum(p.numel() for p in peft.PrefixEncoder(config).parameters())
    assert prefix_parameter_count(3, 16, 4, 8) == expected


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "8", None])
def test_sizes_are_integers_of_one_or_more(wrong):
    with pytest.raises(ShapeError, match=r"rank is .*expected an integer of 1 or more"):
        lora_parameter_count(8, 8, wrong)
    with pytest.raises(ShapeError, match="bottleneck is"):
        adapter_parameter_count(8, wrong)
    with pytest.raises(ShapeError, match="kv_heads is"):
        prefix_parameter_count(1, 1, wrong, 1)


def smollm2():
    """Return the shapes of SmolLM2-135M as its published config.json gives them."""
    shapes = {
        "q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192), "o_proj": (576, 576),
        "gate_proj": (576, 1536), "up_proj": (576, 1536), "down_proj": (1536, 576),
    }  # fmt: skip
    linears = tuple(
        Linear(f"model.layers.{layer}.block.{name}", d_in, d_out, bias=False)
        for layer in range(30)
        for name, (d_in, d_out) in shapes.items()
    )
    return Blueprint(
        model_type="llama", architecture="LlamaForCausalLM", hidden=576, layers=30, vocab=49152,
        heads=9, kv_heads=3, head_dim=64, intermediate=1536, tied=True, dtype="float32",
        linears=linears, parameters=134_515_008,
    )  # fmt: skip


def test_the_ledger_of_a_published_model():
    blueprint = smollm2()
    ledger = lora_ledger(blueprint, UpdateSpace(rank=8))
    assert (ledger.trainable, ledger.total) == (2_442_240, 136_957_248)
    assert round(ledger.percent, 4) == 1.7832
    assert ledger.by_target[0] == {
        "name": "q_proj", "modules": 30, "d_in": 576, "d_out": 576, "rank": 8,
        "parameters": 276_480,
    }  # fmt: skip
    # Embeddings and norms are all that is not in a linear layer.
    assert blueprint.parameters - blueprint.linear_parameters == 49152 * 576 + 61 * 576


def test_one_name_with_two_shapes_gets_two_rows():
    linears = (Linear("h.0.attn.c_proj", 4, 4, True), Linear("h.0.mlp.c_proj", 16, 4, True))
    blueprint = Blueprint("gpt2", "", 4, 1, 9, 1, 1, 4, 16, True, "float32", linears, 500)
    rows = lora_ledger(blueprint, UpdateSpace(rank=1, targets=["c_proj"])).by_target
    assert [(row["d_in"], row["parameters"]) for row in rows] == [(4, 8), (16, 20)]
