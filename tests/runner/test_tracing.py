"""Closed forms and traces beside the bytes that torch's profiler counts, on small models."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tunemath.errors import ModelError
from tunemath.pipeline.decoders import Setting as Passing
from tunemath.pipeline.decoders import decoder_of
from tunemath.runner.blueprints import build_from_config
from tunemath.runner.models import attach_adapter
from tunemath.runner.tracing import Setting, trace_curves, trace_passes
from tunemath.space import ledger_of, read_space
from tunemath.space.blueprint.config import blueprint_of_config

ROWS, TOKENS = 3, 96
SMALL = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6, "vocab_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NAMES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "phi3": "Phi3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 6,
    "n_head": 4, "vocab_size": 96, "n_positions": 256,
}  # fmt: skip


def config_of(kind: str) -> dict[str, Any]:
    if kind == "gpt2":
        return GPT2
    more = {"sliding_window": None} if kind == "mistral" else {}
    more |= {"head_dim": 16} if kind != "phi3" else {}
    more |= EXPERTS if kind == "qwen3_moe" else {}
    return {"model_type": kind, "architectures": [NAMES[kind]], **SMALL, **more}


def make(config, space, attention="sdpa"):
    base = build_from_config(config, None, "cpu")
    base.set_attn_implementation(attention)
    return attach_adapter(base, space, 0)


def measured(config, space, checkpointing=False, attention="sdpa"):
    """Return (kept, the backward pass's peak) by torch's own count of allocations."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = make(config, space, attention)
        inner = model.get_base_model()
        inner.config.use_cache = False
        if checkpointing:
            inner.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        caught = []
        head = inner.get_output_embeddings()
        head.forward = lambda hidden: caught.append(hidden) or hidden[..., :0]
        ids = torch.zeros((ROWS, TOKENS), dtype=torch.long)
        with record_function("mark forward"):
            model(input_ids=ids)
        some = caught.pop()[:, :1].sum()
        with record_function("mark freed"):
            pass
        with record_function("mark backward"):
            some.backward()
    events = profiler.profiler.kineto_results.events()
    marks = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name()[:4] == "mark"}
    now, level = 0, []
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        level.append((event.start_ns(), now))
    start = max((at, size) for at, size in level if at < marks["mark forward"][0])[1]
    kept = max((at, size) for at, size in level if at <= marks["mark freed"][0])[1]
    inside = [s for at, s in level if marks["mark backward"][0] <= at <= marks["mark backward"][1]]
    return kept - start, max(inside) - start


CLOSED = [
    ("llama", "lora", {}, {}),
    ("llama", "lora", {"targets": ["q_proj", "v_proj"]}, {}),
    ("llama", "lora", {"rank": 32}, {"checkpointing": True}),
    ("llama", "lora", {}, {"attention": "eager"}),
    ("llama", "full", {}, {}),
    ("llama", "full", {}, {"checkpointing": True}),
    ("llama", "last_layers", {"layers": 2}, {}),
    ("llama", "layernorm", {}, {}),
    ("llama", "adapter", {"bottleneck": 16}, {}),
    ("llama", "adapter", {"bottleneck": 16, "style": "houlsby"}, {}),
    ("llama", "prefix", {"length": 8}, {}),
    ("mistral", "lora", {}, {}),
    ("qwen2", "bitfit", {}, {}),
    ("qwen3", "lora", {}, {}),
    ("qwen3", "full", {}, {}),
    ("phi3", "lora", {}, {}),
    ("smollm3", "lora", {}, {}),
]


@pytest.mark.parametrize(("kind", "method", "settings", "how"), CLOSED)
def test_closed_forms_are_near_what_torch_allocates(kind, method, settings, how):
    config, space = config_of(kind), read_space({"method": method, **settings})
    ledger = ledger_of(blueprint_of_config(config), space)
    closed = decoder_of(ledger.blueprint, ledger.change, Passing(**how))
    assert closed is not None
    planned = closed.passes(ROWS, TOKENS)
    kept, backward = measured(config, space, **how)
    # Small beside a real model's activations, not beside these: angles, and generators' states.
    small = 8 * TOKENS * 16 + 6 * 5056 * ("checkpointing" in how)
    assert planned.kept + small == pytest.approx(kept, rel=0.03)
    assert planned.backward + small == pytest.approx(backward, rel=0.08)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmo2", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_traces_are_near_what_torch_allocates(kind, method):
    config = config_of(kind)
    settings = {"targets": ["c_attn", "c_proj", "c_fc"]} if kind == "gpt2" else {}
    space = read_space({"method": method, **(settings if method == "lora" else {})})
    attention = "eager" if kind == "gemma2" else "sdpa"
    passes = trace_passes(lambda: make(config, space, attention), ROWS, TOKENS)
    kept, backward = measured(config, space, attention=attention)
    assert passes.kept == pytest.approx(kept, rel=0.03)
    assert passes.backward == pytest.approx(backward, rel=0.05)


def test_a_trace_is_made_once(tmp_path, monkeypatch):
    from tunemath.runner import tracing

    made = []
    real = tracing.trace_passes
    monkeypatch.setattr(
        tracing, "trace_passes", lambda *a, **k: made.append(a[1:]) or real(*a, **k)
    )
    space = read_space({"method": "lora", "targets": ["c_attn"]})
    first = trace_curves(GPT2, space, 2, 64, cache=tmp_path)
    again = trace_curves(GPT2, space, 2, 64, cache=tmp_path)
    assert first == again
    assert len(made) == 3
    next(tmp_path.iterdir()).write_text("torn", "utf-8")
    assert trace_curves(GPT2, space, 2, 64, cache=tmp_path) == first
    assert len(made) == 6


def test_nothing_real_is_allocated(tmp_path):
    config = {**GPT2, "n_embd": 4096, "n_layer": 4, "n_head": 32}
    space = read_space({"method": "lora", "targets": ["c_attn"]})
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        curves = trace_curves(config, space, 4, 128, cache=tmp_path)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert sum(max(0, e.nbytes()) for e in events) < 1 << 24
    assert curves.passes(4, 128).kept > 1 << 26


NEOX = {
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 64,
    "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 96,
}  # fmt: skip
PHI = {**SMALL, "model_type": "phi", "architectures": ["PhiForCausalLM"]}


@pytest.mark.parametrize(
    "kind",
    [
        "gpt2",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("gpt_neox", "phi", "olmo2", "gemma2", "qwen3_moe")
        ),
    ],
)
def test_traces_heed_the_dtype(kind, tmp_path):
    config = {"gpt_neox": NEOX, "phi": PHI}.get(kind) or config_of(kind)
    space = read_space({"method": "full"})
    kept = {}
    for dtype, mixing in (("float32", "autocast"), ("bfloat16", "pure"), ("bfloat16", "autocast")):
        setting = Setting(dtype=dtype, mixing=mixing, device="cuda")
        curves = trace_curves(config, space, ROWS, TOKENS, setting, cache=tmp_path)
        kept[mixing if dtype == "bfloat16" else dtype] = curves.passes(ROWS, TOKENS).kept
    # Products, gates and attention halve; what norms and softmax need in float32 stays.
    assert 0.5 * kept["float32"] < kept["pure"] < 0.8 * kept["float32"]
    assert kept["pure"] < kept["autocast"] < 1.15 * kept["float32"]


ENCODER = {
    "model_type": "roberta", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 130, "pad_token_id": 1,
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_ff": 128,
    "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 96, "is_encoder_decoder": True,
}  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "full", "bitfit"])
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("RobertaForSequenceClassification", "SEQ_CLS"),
        ("RobertaForTokenClassification", "TOKEN_CLS"),
        ("RobertaForMaskedLM", "CAUSAL_LM"),
        ("RobertaModel", "FEATURE_EXTRACTION"),
    ],
)
def test_models_that_are_no_decoders_are_traced_with_their_task(name, task, method, tmp_path):
    config = {**ENCODER, "architectures": [name]}
    targets = {"targets": ["query", "value"]} if method == "lora" else {}
    space = read_space({"method": method, **targets})
    setting = Setting(task=task, masked=True)
    curves = trace_curves(config, space, ROWS, 64, setting, cache=tmp_path)
    assert curves.passes(ROWS, 64).kept > 4 * 4 * 64 * 64 * ROWS  # a float32 stream in each layer


def test_a_model_of_two_stacks_is_traced(tmp_path):
    space = read_space({"method": "lora", "targets": ["q", "v"]})
    setting = Setting(task="SEQ_2_SEQ_LM")
    assert trace_curves(T5, space, ROWS, 64, setting, cache=tmp_path).passes(ROWS, 64).kept > 0


def test_a_model_that_cannot_be_traced_says_why():
    def fail():
        raise RuntimeError("no such kernel")

    with pytest.raises(ModelError, match=r"can't be traced.*no such kernel"):
        trace_passes(fail, 1, 8)
