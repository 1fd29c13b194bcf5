"""The contract's methods counted, against live models, papers and hand arithmetic."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers as t

sys.path.insert(0, str(Path(__file__).parent / "tuners"))
from peft_models import base, blueprint

from tunemath.errors import ContractError, ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.runner.models import attach_adapter
from tunemath.space import (
    AdapterSpace,
    Blueprint,
    LoraSpace,
    PrefixSpace,
    PromptSpace,
    UnfreezeSpace,
    change_of,
    ledger_of,
    parse_space,
    read_space,
)
from tunemath.space.blueprint import Builder
from tunemath.space.methods import task_of
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


# --- the task


def sequence_classifier(family: str) -> torch.nn.Module:
    if family == "bert":
        return copy.deepcopy(base("bert"))
    config = t.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    return t.LlamaForSequenceClassification(config)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_new_head_of_a_classifier_is_trained_and_not_adapted(family):
    model = sequence_classifier(family)
    data, head = blueprint_of(model), {"bert": "classifier", "llama": "score"}[family]
    assert task_of(data) == "SEQ_CLS"
    ledger = ledger_of(data, LoraSpace(rank=3), task_type="SEQ_CLS")
    config = peft.LoraConfig(r=3, target_modules="all-linear", task_type="SEQ_CLS")
    live = peft.get_peft_model(model, config)
    assert (ledger.trainable, ledger.total) == live.get_nb_trainable_parameters()
    (row,) = (row for row in ledger.by_module() if row["name"] == head)
    assert row["trainable"] == data.by_name[head].parameters


@pytest.mark.parametrize(
    ("auto", "task"),
    [
        (t.AutoModelForTokenClassification, "TOKEN_CLS"),
        (t.AutoModelForQuestionAnswering, "QUESTION_ANS"),
    ],
)
def test_a_new_head_that_peft_would_adapt_too_is_refused_with_the_other_names(auto, task):
    model = auto.from_config(base("bert").config)
    with pytest.raises(TypeError, match="modules_to_save cannot be applied"):
        peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(target_modules="all-linear", task_type=task)
        )
    data = blueprint_of(model)
    with pytest.raises(ModelError, match=r"name the layers: query, key, value, dense$"):
        ledger_of(data, LoraSpace(), task_type=task)
    targets = ["query", "key", "value", "dense"]
    ledger = ledger_of(data, LoraSpace(rank=3, targets=targets), task_type=task)
    config = peft.LoraConfig(r=3, target_modules=targets, task_type=task)
    live = peft.get_peft_model(model, config).get_nb_trainable_parameters()
    assert (ledger.trainable, ledger.total) == live


def test_a_prompt_of_a_sequence_to_sequence_model_has_rows_for_both_of_its_parts():
    space, data = PromptSpace(method="prompt", length=4), blueprint("t5")
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type=task_of(data))
    trainable, _ = peft.get_peft_model(
        copy.deepcopy(base("t5")), config
    ).get_nb_trainable_parameters()
    assert ledger_of(data, space, task_type=task_of(data)).trainable == trainable == 2 * 4 * 32


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"),
        ("BertForSequenceClassification", "SEQ_CLS"),
        ("ViTForImageClassification", "SEQ_CLS"),
        ("BertForTokenClassification", "TOKEN_CLS"),
        ("BertForQuestionAnswering", "QUESTION_ANS"),
        ("BertModel", "FEATURE_EXTRACTION"),
        ("", "CAUSAL_LM"),
    ],
)
def test_a_class_says_its_task(architecture, task):
    assert task_of(Blueprint("", architecture, ())) == task


def test_conditional_generation_is_a_task_of_two():
    """T5 reads with an encoder; Gemma 3 writes with what it sees in one decoder."""
    assert task_of(blueprint("t5")) == task_of(blueprint("whisper")) == "SEQ_2_SEQ_LM"
    assert task_of(Blueprint("gemma3", "Gemma3ForConditionalGeneration", ())) == "CAUSAL_LM"


# --- weights of the model itself


def trained_names(model: torch.nn.Module, method: str) -> frozenset[str]:
    return change_of(blueprint_of(model), UnfreezeSpace(method=method)).unfrozen


def tiny(auto, config) -> torch.nn.Module:
    with torch.device("meta"):
        return auto.from_config(config)


def test_the_biases_of_experts_are_biases_of_layers():
    config = t.GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4,
    )  # fmt: skip
    model = tiny(t.AutoModelForCausalLM, config)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert any(name.endswith("experts.down_proj_bias") for name in biases)
    assert trained_names(model, "bitfit") == biases


def test_the_split_biases_of_deberta_are_biases_of_a_layer():
    config = t.DebertaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    model = tiny(t.AutoModelForSequenceClassification, config)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert "deberta.encoder.layer.0.attention.self.q_bias" in biases
    assert trained_names(model, "bitfit") == biases


def test_the_bias_of_a_contrastive_loss_is_no_layers():
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }  # fmt: skip
    model = tiny(
        t.AutoModel,
        t.SiglipConfig(
            text_config={**sizes, "vocab_size": 64, "max_position_embeddings": 16},
            vision_config={**sizes, "image_size": 16, "patch_size": 8},
        ),
    )
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    change = change_of(blueprint_of(model), UnfreezeSpace(method="bitfit"))
    assert change.unfrozen == biases - {"logit_bias"} != biases
    assert "vision_model.head.attention.in_proj_bias" in change.unfrozen
    assert change.notes == ("no layer's biases, so frozen: logit_bias",)


def test_the_time_steps_of_a_linear_attention_are_no_biases():
    config = t.Qwen3NextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24,
    )  # fmt: skip
    with pytest.raises(
        ModelError, match=r"no such weights \(.*linear_attn.dt_bias\); use lora, or"
    ):
        trained_names(tiny(t.AutoModelForCausalLM, config), "bitfit")


def test_a_frozen_model_is_said_to_be_frozen():
    model = copy.deepcopy(base("llama")).requires_grad_(False)
    for method in ("full", "layernorm"):
        with pytest.raises(ModelError) as caught:
            trained_names(model, method)
        assert "this llama itself holds" in str(caught.value)
        assert str(caught.value).endswith("frozen; use lora")
    data = replace(blueprint_of(model), quantisation="bitsandbytes-4bit")
    with pytest.raises(ModelError, match=r"frozen, quantised as bitsandbytes-4bit; use lora$"):
        ledger_of(data, UnfreezeSpace(method="full"))


def test_weights_that_a_model_holds_frozen_are_named():
    fixed = "model.encoder.embed_positions.weight"
    change = change_of(blueprint("whisper"), UnfreezeSpace(method="full"))
    assert fixed not in change.unfrozen
    assert change.notes == (f"the model itself holds 1 parameter ({fixed}) frozen; that stays so",)


# --- targets


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_the_former_layers_of_fused_experts_may_be_targets(family):
    former = {"qwen3_moe": ["gate_proj", "up_proj", "down_proj"], "mixtral": ["w1", "w2", "w3"]}
    space = LoraSpace(rank=3, targets=["q_proj", *former[family]])
    ledger = ledger_of(blueprint(family), space)
    assert (ledger.trainable, ledger.total) == live_counts(family, space)
    with pytest.raises(ModelError, match="'gate_prj' matches no layer"):
        ledger_of(blueprint(family), LoraSpace(targets=["q_proj", "gate_prj"]))


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
