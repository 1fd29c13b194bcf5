from __future__ import annotations

from dataclasses import dataclass

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tunemath.budget import Training, attended_pairs, forward_flops, training_flops

ROWS, TOKENS = 3, 40


@dataclass(frozen=True)
class Model:
    hidden: int = 64
    layers: int = 6
    vocab: int = 160
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 144
    parameters: int = 0
    linear_parameters: int = 0


def build(attention="eager"):
    """Return a live LoRA model, its shapes and what is trained, counted from the live tensors."""
    shapes = Model()
    config = transformers.LlamaConfig(
        hidden_size=shapes.hidden,
        num_hidden_layers=shapes.layers,
        vocab_size=shapes.vocab,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.kv_heads,
        intermediate_size=shapes.intermediate,
        attn_implementation=attention,
    )
    base = transformers.LlamaForCausalLM(config)
    linear = sum(
        module.weight.numel()
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    shapes = Model(parameters=base.num_parameters(), linear_parameters=linear)
    live = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    return live, shapes, Training(live.get_nb_trainable_parameters()[0])


def counted(live, backward, disable=False):
    live.train()
    ids = torch.randint(0, 100, (ROWS, TOKENS))
    with FlopCounterMode(display=False) as counter:
        if disable:
            with live.disable_adapter(), torch.no_grad():
                live(input_ids=ids)
        else:
            logits = live(input_ids=ids).logits
            if backward:
                logits.sum().backward()
    return counter.get_total_flops()


def test_forward_operations_are_those_that_torch_counts():
    live, shapes, _ = build()
    tokens = ROWS * TOKENS
    # eager attention multiplies the whole square; a fused kernel leaves the future out
    square = forward_flops(shapes, tokens, tokens, attended=ROWS * TOKENS**2)
    assert square == counted(live, backward=False, disable=True)
    causal = attended_pairs([TOKENS] * ROWS)
    assert causal == sum(
        1 for _ in range(ROWS) for i in range(TOKENS) for j in range(TOKENS) if j <= i
    )
    assert forward_flops(shapes, tokens, 0, attended=causal) < square


def test_training_operations_are_those_that_torch_counts():
    live, shapes, adapter = build()
    tokens = ROWS * TOKENS
    planned = training_flops(shapes, adapter, tokens, tokens, attended=ROWS * TOKENS**2)
    # the first layer's q, k and v need no input gradient: embeddings are frozen
    qkv = shapes.hidden * (shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim
    adapter_inputs = 3 * 4 * shapes.hidden
    assert planned - 2 * tokens * (qkv + adapter_inputs) == counted(live, backward=True)


def test_parts_add_up():
    shapes, adapter = Model(linear_parameters=1000), Training(100)
    assert forward_flops(shapes, 7, 0) == 2 * 1000 * 7
    assert training_flops(shapes, adapter, 7, 0) == (4 * 1000 + 6 * 100) * 7
    head = training_flops(shapes, adapter, 7, 3) - training_flops(shapes, adapter, 7, 0)
    assert head == 4 * 64 * 160 * 3
    trained = Training(unfrozen=1000, head_trained=True)
    assert training_flops(shapes, trained, 7, 3) == 6 * 1000 * 7 + 6 * 64 * 160 * 3
    half = Training(unfrozen=500, depth=0.5)
    assert training_flops(shapes, half, 7, 0, attended=5) == (3 * 1000 + 2 * 500) * 7 + (
        4 * 6 * 64 * 5 * 2
    )
    again = training_flops(shapes, adapter, 7, 3, attended=5, checkpointing=True)
    assert again - training_flops(shapes, adapter, 7, 3, attended=5) == (
        2 * 1100 * 7 + 4 * 6 * 64 * 5
    )
    with pytest.raises(ValueError, match="tokens is -1"):
        forward_flops(shapes, -1, 0)


def of_base(depth=None):
    """Return a live model trained itself, from layer ``depth`` on or whole, and its shapes."""
    live, shapes, _ = build()
    base = live.unload().requires_grad_(depth is None)
    unfrozen = shapes.linear_parameters
    if depth is not None:
        unfrozen = 0
        for layer in base.model.layers[depth:]:
            layer.requires_grad_(True)
            unfrozen += sum(m.weight.numel() for m in layer.modules() if hasattr(m, "in_features"))
    return base, shapes, unfrozen


def test_full_training_and_its_checkpointing_are_what_torch_counts():
    base, shapes, unfrozen = of_base()
    tokens, square = ROWS * TOKENS, ROWS * TOKENS**2
    work = Training(unfrozen=unfrozen, head_trained=True)
    assert training_flops(shapes, work, tokens, tokens, attended=square) == counted(base, True)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    again = training_flops(shapes, work, tokens, tokens, attended=square, checkpointing=True)
    # recomputation stops at the last tensor that is kept: the last product needs no second time
    stopped = 2 * tokens * shapes.layers * shapes.hidden * shapes.intermediate
    assert again - stopped == counted(base, True)


def test_the_backward_pass_stops_at_the_lowest_trained_layer():
    base, shapes, unfrozen = of_base(depth=4)
    tokens, square = ROWS * TOKENS, ROWS * TOKENS**2
    work = Training(unfrozen=unfrozen, depth=2 / 6)
    # its norm is trained too, so that its first projections need their inputs' gradient
    planned = training_flops(shapes, work, tokens, tokens, attended=square)
    assert planned == counted(base, True)
