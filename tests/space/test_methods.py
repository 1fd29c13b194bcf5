"""The contract's methods counted, against live models, papers and hand arithmetic."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tuners"))
from peft_models import base, blueprint

from tunemath.errors import ContractError, ModelError
from tunemath.runner.models import attach_adapter
from tunemath.space import (
    AdapterSpace,
    Blueprint,
    LoraSpace,
    Module,
    PrefixSpace,
    PromptSpace,
    UnfreezeSpace,
    change_of,
    ledger_of,
    parse_space,
    read_space,
)
from tunemath.space.blueprint import Builder
from tunemath.space.record import METHODS, LastLayersSpace

DECODERS = ("llama", "qwen2", "qwen3_moe", "gemma", "mixtral", "phi3", "gpt2")
SPACES = {
    "lora": LoraSpace(rank=3),
    "dora": LoraSpace(method="dora", rank=3),
    "full": UnfreezeSpace(method="full"),
    "layernorm": UnfreezeSpace(method="layernorm"),
    "linear_probe": UnfreezeSpace(method="linear_probe"),
    "last_layers": LastLayersSpace(method="last_layers"),
    "houlsby": AdapterSpace(method="adapter", style="houlsby", bottleneck=5),
    "pfeiffer": AdapterSpace(method="adapter", bottleneck=5, bias=False),
    "parallel": AdapterSpace(method="adapter", style="parallel", bottleneck=7),
    "prefix": PrefixSpace(method="prefix", length=4),
    "projected": PrefixSpace(method="prefix", length=4, projection=True, hidden=6),
    "prompt": PromptSpace(method="prompt", length=4),
}


def live_counts(family: str, space) -> tuple[int, int]:
    model = attach_adapter(copy.deepcopy(base(family)), space, 0)
    every = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in every if learns), sum(n for n, _ in every)


@pytest.mark.parametrize("method", SPACES)
@pytest.mark.parametrize("family", DECODERS)
def test_counts_are_those_of_the_model_that_is_trained(family, method):
    if method == "dora" and family in ("qwen3_moe", "mixtral"):  # PEFT has none for fused experts
        for refuse in (live_counts, lambda f, space: ledger_of(blueprint(f), space)):
            with pytest.raises(ModelError, match="use_dora"):
                refuse(family, SPACES[method])
        return
    ledger = ledger_of(blueprint(family), SPACES[method])
    assert (ledger.trainable, ledger.total) == live_counts(family, SPACES[method])
    rows = ledger.by_module()
    assert sum(row["trainable"] for row in rows) == ledger.trainable
    assert sum(row["parameters"] for row in rows) == ledger.total
    assert ledger.change.notes or not (blueprint(family).tied_head and method == "linear_probe")


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_bitfit_is_every_bias(family):
    ledger = ledger_of(blueprint(family), UnfreezeSpace(method="bitfit"))
    biases = [p.numel() for n, p in base(family).named_parameters() if n.endswith("bias")]
    assert ledger.trainable == sum(biases) > 0
    assert ledger.total == ledger.base


@pytest.mark.parametrize("head", [False, True])
def test_the_last_layers_take_the_final_norm_and_not_the_output_layer(head):
    model = base("llama")  # its output layer is not tied
    space = LastLayersSpace(method="last_layers", layers=1, head=head)
    wanted = {n for n, _ in model.named_parameters() if n.startswith("model.layers.1.")}
    wanted |= {"model.norm.weight"} | ({"lm_head.weight"} if head else set())
    assert change_of(blueprint("llama"), space).unfrozen == wanted


def test_a_probe_of_a_tied_head_says_that_the_embedding_is_trained_too():
    notes = change_of(blueprint("gpt2"), UnfreezeSpace(method="linear_probe")).notes
    assert notes == ("the output layer is tied to the input embedding, which is trained with it",)
    assert not change_of(blueprint("llama"), UnfreezeSpace(method="linear_probe")).notes


def test_a_probe_of_a_classifier_is_the_classifier():
    change = change_of(blueprint("bert"), UnfreezeSpace(method="linear_probe"))
    assert change.unfrozen == {"classifier.weight", "classifier.bias"}


# --- figures from outside


def decoder(layers: int, width: int, inner: int, kv: int, vocab: int, norms: int) -> Blueprint:
    """A Llama of the given sizes, tied."""
    builder = Builder()
    builder.embedding("model.embed_tokens", vocab, width)
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for name, (d_in, d_out) in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (width, kv),
            "self_attn.v_proj": (width, kv), "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner),
            "mlp.down_proj": (inner, width),
        }.items():  # fmt: skip
            builder.linear(f"{start}.{name}", d_in, d_out)
        builder.norm(f"{start}.input_layernorm", width)
        builder.norm(f"{start}.post_attention_layernorm", width)
    builder.norm("model.norm", width)
    builder.linear("lm_head", width, vocab)
    return Blueprint(
        "llama", "LlamaForCausalLM", tuple(builder.modules),
        config={"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": norms,
                "num_key_value_heads": norms // 3, "vocab_size": vocab},
        tied={"lm_head.weight": "model.embed_tokens.weight"},
        embedding="model.embed_tokens", head="lm_head",
    )  # fmt: skip


SMOLLM2 = decoder(layers=30, width=576, inner=1536, kv=192, vocab=49152, norms=9)


def test_the_counts_of_a_published_model():
    # huggingface.co/HuggingFaceTB/SmolLM2-135M: 134,515,008 parameters in its safetensors header.
    assert SMOLLM2.parameters == 134_515_008
    ledger = ledger_of(SMOLLM2, LoraSpace(rank=8))
    assert (ledger.trainable, ledger.total) == (2_442_240, 136_957_248)  # PEFT 0.21.2
    assert round(ledger.percent, 4) == 1.7832
    assert ledger_of(SMOLLM2, UnfreezeSpace(method="full")).trainable == 134_515_008
    assert ledger_of(SMOLLM2, UnfreezeSpace(method="layernorm")).trainable == 61 * 576


def test_houlsby_adapters_are_what_the_paper_says_of_their_size():
    # arXiv 1902.00751, 2.1: "2md + d + m" for each adapter, and two adapters a layer.
    space = AdapterSpace(method="adapter", style="houlsby", bottleneck=64)
    assert ledger_of(SMOLLM2, space).trainable == 30 * 2 * (2 * 64 * 576 + 576 + 64)


def test_compacter_is_what_the_paper_says_of_its_size():
    # arXiv 2106.04647, table 1: T5-base (222.9 M parameters, 24 layers of width 768), n = 4 and a
    # bottleneck of 24: 0.073 % of the parameters, layer norms (62 of 768) included.
    space = AdapterSpace(method="adapter", style="compacter", bottleneck=24)
    model = decoder(layers=24, width=768, inner=3072, kv=768, vocab=32128, norms=12)
    compacter = ledger_of(model, space).trainable
    assert compacter == 48 * (2 * (768 + 24) + 768 + 24) + 4**3
    assert round(100 * (compacter + 62 * 768) / 222_903_552, 3) == 0.073


# --- what is refused


def test_a_target_that_matches_nothing_names_those_near_it():
    with pytest.raises(ModelError, match=r"'q_prj' matches no layer .*mean q_proj or v_proj"):
        ledger_of(blueprint("llama"), LoraSpace(targets=["v_proj", "q_prj"]))
    with pytest.raises(ModelError, match=r"Did you mean model.layers.1.self_attn.q_proj"):
        ledger_of(blueprint("llama"), LoraSpace(targets=["model.layers.1.self_atn.q_proj"]))
    with pytest.raises(ModelError, match=r"targets is empty; expected all-linear, or q_proj, k_p"):
        ledger_of(blueprint("llama"), LoraSpace(targets=[]))


@pytest.mark.parametrize(
    ("family", "space", "words"),
    [
        ("bert", SPACES["pfeiffer"], r"one attention and one feed-forward module; bert.*layer.0 of "
         r"this bert has attention, intermediate, output; use lora, or full"),
        ("t5", SPACES["houlsby"], r"decoder.block.0 of this t5 has layer"),
        ("whisper", SPACES["parallel"], r"has self_attn, encoder_attn, fc1, fc2"),
        ("llama", UnfreezeSpace(method="bitfit"), r"bitfit trains nothing: this llama has no"),
        ("llama", LastLayersSpace(method="last_layers", layers=3), r"layers is 3, but model.layers "
         "has only 2"),
        ("llama", AdapterSpace(method="adapter", style="compacter", bottleneck=6),
         "kronecker 4 must divide the model's width 32 and space.bottleneck 6"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(family, space, words):
    with pytest.raises(ModelError, match=words):
        ledger_of(blueprint(family), space)


def test_a_model_without_numbered_layers_is_refused():
    model = Blueprint("odd", "Odd", (Module("w", "linear", (("weight", (2, 2)),)),))
    with pytest.raises(ModelError, match="this odd has no numbered layers"):
        ledger_of(model, LastLayersSpace(method="last_layers"))


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("lorra", [], "method 'lorra' is not known; did you mean lora?"),
        ("zzz", [], f"known: {', '.join(METHODS)}"),
        ("lora", ["bottleneck=3"], "space.bottleneck has no meaning for method: lora; valid: rank, "
         "alpha, targets, dropout, rslora"),
        ("full", ["rank=3"], "space.rank has no meaning for method: full; valid: none"),
        ("prefix", ["lenght=3"], "unknown key space.lenght; did you mean length?"),
        ("adapter", ["bottleneck=many"], "space.bottleneck: Input should be a valid integer"),
        ("adapter", ["kronecker=3"], "kronecker has no meaning for style: pfeiffer; remove it"),
        ("prefix", ["hidden=3"], "hidden has no meaning without projection: true; remove it"),
        ("prefix", ["projection=true", "init=vocabulary"], "init: vocabulary is not possible with"),
        ("lora", ["rank"], "--set rank: expected key=value, as in rank=16"),
    ],
)  # fmt: skip
def test_settings_without_meaning_are_refused(method, settings, words):
    with pytest.raises(ContractError) as caught:
        parse_space(method, settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_defaults_and_is_read_back(method):
    space = parse_space(method)
    assert space.method == method
    assert read_space(space.model_dump(mode="json")) == space


def test_defaults_follow_the_style():
    assert [parse_space("adapter", [f"style={s}"]).scale for s in ("houlsby", "parallel")] == [1, 4]
    assert parse_space("adapter", ["style=compacter"]).kronecker == 4
    assert parse_space("prefix").init == "vocabulary"
    assert parse_space("prefix", ["projection=true"]).init == "random"
