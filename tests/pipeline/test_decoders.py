"""What passes keep in half precision: the closed form beside traces, and guesses by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from tunemath.budget import Step, step_memory
from tunemath.errors import ModelError
from tunemath.pipeline.costs import held_of
from tunemath.pipeline.decoders import Precision, Setting, decoder_of, rough_decoder_of
from tunemath.runner import tracing
from tunemath.space import ledger_of, read_space
from tunemath.space.blueprint.config import blueprint_of_config
from tunemath.space.methods import peft_settings
from tunemath.space.peft import AdapterConfig, peft_ledger

ROWS, TOKENS = 4, 256
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256,
    "intermediate_size": 896, "num_hidden_layers": 6, "vocab_size": 512, "head_dim": 32,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**LLAMA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
PHI3 = {**LLAMA, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
HALF = Precision("bfloat16")
PLAIN, PURE = replace(HALF, mixing="plain"), replace(HALF, mixing="pure")
NF4 = replace(HALF, quantisation="nf4")

CLOSED = [
    (LLAMA, "lora", {}, HALF, {}),
    (LLAMA, "lora", {}, PLAIN, {}),
    (LLAMA, "lora", {}, PURE, {}),
    (LLAMA, "lora", {"targets": ["q_proj", "v_proj"]}, PLAIN, {}),
    (LLAMA, "lora", {"dropout": 0.1}, HALF, {"dropout": True}),
    (LLAMA, "lora", {}, HALF, {"masked": True}),
    (LLAMA, "lora", {}, HALF, {"attention": "eager"}),
    (LLAMA, "lora", {}, NF4, {}),
    (LLAMA, "dora", {}, HALF, {}),
    (LLAMA, "dora", {}, PLAIN, {}),
    (LLAMA, "full", {}, HALF, {}),
    (LLAMA, "full", {}, PURE, {}),
    (LLAMA, "full", {}, PURE, {"checkpointing": True}),
    (LLAMA, "full", {}, replace(HALF, base="float32"), {}),
    (LLAMA, "last_layers", {"layers": 4}, HALF, {}),
    (LLAMA, "layernorm", {}, HALF, {}),
    (LLAMA, "layernorm", {}, replace(HALF, base="float32"), {}),
    (LLAMA, "adapter", {}, HALF, {}),
    (LLAMA, "prefix", {}, HALF, {}),
    (QWEN2, "bitfit", {}, PURE, {}),
    (QWEN3, "lora", {}, HALF, {}),
    (PHI3, "lora", {}, PLAIN, {}),
]


def traced(config, update, precision, how):
    setting = tracing.Setting(
        dtype=precision.dtype, base=precision.held, quantised=precision.quantisation is not None,
        mixing=precision.mixing, checkpointing=how.get("checkpointing", False),
        masked=how.get("masked", False), device=how.get("device", "cpu"),
        attention="eager" if how.get("attention") == "eager" else "sdpa",
    )  # fmt: skip

    def make():
        return tracing.build_tuned(
            config, update, dtype=setting.dtype, base=setting.base, quantised=setting.quantised,
            mixing=setting.mixing, attention=setting.attention,
        )  # fmt: skip

    return tracing.trace_passes(make, ROWS, TOKENS, setting)


@pytest.mark.parametrize(("config", "method", "settings", "precision", "how"), CLOSED)
def test_closed_form_and_trace_agree_in_half_precision(config, method, settings, precision, how):
    space = read_space({"method": method, **settings})
    ledger = ledger_of(blueprint_of_config(config), space)
    closed = decoder_of(ledger.blueprint, ledger.change, Setting(precision, **how))
    assert closed is not None
    planned = closed.passes(ROWS, TOKENS)
    found = traced(config, space, precision, how)
    assert planned.kept == pytest.approx(found.kept, rel=0.05)
    assert planned.backward == pytest.approx(found.backward, rel=0.08)


def test_a_layers_bytes_a_token_by_hand():
    # Two norms' inputs in float32 with a scale each; q, k, v and what attention returns, with the
    # row's log-sum for 8 heads; gate, activation and up; of rank 8 the inner tensors. What differs
    # is the input's copies: bfloat16 by autocast, float32 by PEFT, none where all is bfloat16.
    d, q, k, inner, heads = 256, 256, 64, 896, 8
    base = 2 * 4 * (d + 1) + 2 * (2 * q + 2 * k) + 4 * heads + 3 * 2 * inner
    inputs = 3 * d + q + 2 * d + inner
    bytes_a_token = {
        "autocast": base + 2 * inputs + 2 * 7 * 8,
        "plain": base + 4 * inputs + 4 * 7 * 8,
        "pure": base + 2 * (d + d + inner) + 2 * 7 * 8,
    }
    ledger = ledger_of(blueprint_of_config(LLAMA), read_space({"method": "lora"}))
    for mixing, size in bytes_a_token.items():
        precision = replace(HALF, mixing=mixing)
        decoder = decoder_of(ledger.blueprint, ledger.change, Setting(precision))
        layer = decoder.layers[1]
        assert decoder.kept(layer, 1, 1) - layer.copies == size
        factors = 8 * (2 * (d + q) + 2 * (d + k) + 3 * (d + inner))
        assert layer.copies == (2 * factors if mixing == "autocast" else 0)


def test_a_prompt_is_in_every_row_where_another_trainer_holds_it():
    space = read_space({"method": "prompt", "length": 32})
    ledger = ledger_of(blueprint_of_config(LLAMA), space)
    rows = Setting(PLAIN, prompt_in_rows=True)
    closed = decoder_of(ledger.blueprint, ledger.change, rows).passes(ROWS, TOKENS)
    kind, values = peft_settings(space)
    found = traced(LLAMA, AdapterConfig(kind, **values), PLAIN, {})
    assert closed.kept == pytest.approx(found.kept, rel=0.05)
    held = held_of(ledger, rows)
    step = Step(rows=ROWS, tokens=TOKENS, supervised=TOKENS, logits="all")
    terms = {term.name: term.bytes for term in step_memory(held, step).terms}
    assert terms["output layer"] == (2 + 3 * 4) * ROWS * (TOKENS + 32) * 512


# --- what is not traced


ROBERTA = {
    "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"],
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "pad_token_id": 1,
    "num_attention_heads": 8, "vocab_size": 512, "max_position_embeddings": 514,
}  # fmt: skip


def refused():
    raise ModelError("no such kernel")


def guess(config, space, **how):
    ledger = ledger_of(blueprint_of_config(config), read_space(space), task_type="SEQ_CLS")
    held = held_of(ledger, Setting(HALF, **how), traced=refused)
    assert (held.source, held.why) == ("rough", "no such kernel")
    return held.activations.passes(ROWS, TOKENS)


def test_a_guess_heeds_mask_attention_and_targets():
    lora = {"method": "lora", "targets": ["query", "value"]}
    kept = guess(ROBERTA, lora).kept
    pairs = 4 * ROWS * TOKENS * TOKENS  # in four layers
    assert guess(ROBERTA, lora, masked=True).kept - kept == 2 * pairs
    scores = guess(ROBERTA, lora, attention="eager").kept - kept
    fused = 2 * 256 + 4 * 8  # what attention returns, and the log-sums of its rows
    assert scores == (4 + 2) * 8 * pairs - 4 * ROWS * TOKENS * fused
    more = guess(ROBERTA, {"method": "lora", "targets": ["query", "key", "value"]}).kept - kept
    factors = 4 * 2 * 8 * (256 + 256)  # as autocast copies them
    assert more == 4 * ROWS * TOKENS * 2 * (256 + 8) + factors


@pytest.mark.parametrize("kind", ["FOURIERFT", "LOHA", "VERA", "IA3", "OFT", "BOFT", "LN_TUNING"])
def test_a_guess_is_near_a_trace_for_methods_without_a_closed_form(kind):
    named = {} if kind in ("IA3", "LN_TUNING") else {"target_modules": ["q_proj", "v_proj"]}
    config = AdapterConfig(kind, task_type="CAUSAL_LM", **named)
    ledger = peft_ledger(blueprint_of_config(LLAMA), config)
    rough = rough_decoder_of(ledger, Setting(PLAIN), kind).passes(ROWS, TOKENS)
    assert rough.kept == pytest.approx(traced(LLAMA, config, PLAIN, {}).kept, rel=0.15)
