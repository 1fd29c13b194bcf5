from __future__ import annotations

from dataclasses import dataclass

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tunemath.budget import attended_pairs, forward_flops, training_flops, training_memory
from tunemath.errors import ShapeError

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


@dataclass(frozen=True)
class Adapter:
    trainable: int


def build(attention="eager"):
    """Return a live LoRA model, its shapes and its adapter, counted from the live tensors."""
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
    return live, shapes, Adapter(live.get_nb_trainable_parameters()[0])


def counted(live, backward, disable=False):
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
    shapes, adapter = Model(linear_parameters=1000), Adapter(100)
    assert forward_flops(shapes, 7, 0) == 2 * 1000 * 7
    assert training_flops(shapes, adapter, 7, 0) == (4 * 1000 + 6 * 100) * 7
    head = training_flops(shapes, adapter, 7, 3) - training_flops(shapes, adapter, 7, 0)
    assert head == 4 * 64 * 160 * 3
    with pytest.raises(ValueError, match="tokens is -1"):
        forward_flops(shapes, -1, 0)


def terms(**changes):
    arguments = {"rows": ROWS, "tokens": TOKENS, "supervised": TOKENS} | changes
    _, shapes, adapter = build()
    return {term.name: term for term in training_memory(shapes, adapter, **arguments)}


def test_exact_terms_are_the_bytes_of_live_tensors():
    live, shapes, adapter = build()
    trainable = [p for p in live.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    live(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    state = [
        value
        for entry in optimizer.state.values()
        for name, value in entry.items()
        if name in ("exp_avg", "exp_avg_sq")
    ]
    planned = {
        term.name: term.bytes
        for term in training_memory(shapes, adapter, rows=1, tokens=1, supervised=1)
        if term.exact
    }
    assert planned == {
        "weights": sum(p.nbytes for p in live.parameters()),
        "gradients": sum(p.grad.nbytes for p in trainable),
        "optimizer state": sum(value.nbytes for value in state),
    }


def test_activations_are_near_what_torch_keeps_for_the_backward_pass():
    live, _, _ = build("sdpa")
    weights = {p.untyped_storage().data_ptr() for p in live.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    mask = torch.ones(ROWS, TOKENS, dtype=torch.int64)
    mask[0, 30:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        body = live.base_model.model.model
        body(input_ids=torch.randint(0, 100, (ROWS, TOKENS)), attention_mask=mask)
    measured = sum(size for _, size in kept.values())
    assert terms()["activations"].bytes == pytest.approx(measured, rel=0.15)


def test_what_memory_follows():
    once, twice = terms(), terms(rows=2 * ROWS)
    tile = 4 * 2**19
    for name, term in once.items():
        fixed = tile if name == "output layer" else 0
        assert twice[name].bytes - fixed == (1 if term.exact else 2) * (term.bytes - fixed)
    _, shapes, _ = build()
    assert terms(supervised=1)["output layer"].bytes == 4 * 6 * ROWS * shapes.hidden + tile
    with pytest.raises(ShapeError, match="rows is 0"):
        terms(rows=0)
