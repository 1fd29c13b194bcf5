from __future__ import annotations

from dataclasses import replace

import pytest

from tunemath.space import Blueprint, Module
from tunemath.space.coverage import block_type, coverage_of, near_parameters
from tunemath.space.peft import AdapterConfig, peft_change
from tunemath.space.peft.change import Change, Group, Part, Shared


def linear(name, d_in=8, d_out=8):
    return Module(name, "linear", (("weight", (d_out, d_in)),))


def hybrid(attention_every=4, layers=8):
    """A decoder whose layers attend now and then, and have a state-space block otherwise."""
    modules = [Module("model.embed_tokens", "embedding", (("weight", (32, 8)),))]
    for i in range(layers):
        at = f"model.layers.{i}"
        if i % attention_every == attention_every - 1:
            modules += [linear(f"{at}.self_attn.{x}") for x in ("q_proj", "v_proj")]
        else:
            modules += [linear(f"{at}.mamba.{x}") for x in ("in_proj", "out_proj")]
        modules += [linear(f"{at}.mlp.up_proj"), Module(f"{at}.norm", "norm", (("weight", (8,)),))]
    modules.append(linear("lm_head", 8, 32))
    return Blueprint("hybrid", "", tuple(modules), head="lm_head", embedding="model.embed_tokens")


def mixture(layers=2, experts=4):
    modules = []
    for i in range(layers):
        at = f"model.layers.{i}"
        fused = (("gate_up_proj", (experts, 32, 8)), ("down_proj", (experts, 8, 16)))
        modules += [
            linear(f"{at}.self_attn.q_proj"),
            Module(f"{at}.mlp.experts", "experts", fused),
            linear(f"{at}.mlp.shared_expert.up_proj", 8, 16),
        ]
    return Blueprint("mixture", "", tuple(modules))


def on(blueprint, *names):
    """LoRA of rank 1 on every module with one of these short names."""
    modules = tuple(m for m in blueprint.modules if m.short_name in names)
    return Change((Group(modules, (Part("a", (1,)),), 1),))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.3.self_attn.q_proj", "attention"),
        ("transformer.h.0.attn.c_attn", "attention"),
        ("transformer.h.0.mlp.c_proj", "feed-forward"),
        ("encoder.block.1.layer.0.SelfAttention.q", "attention"),
        ("decoder.block.1.layer.1.EncDecAttention.q", "cross-attention"),
        ("decoder.block.1.layer.2.DenseReluDense.wi", "feed-forward"),
        ("bert.encoder.layer.0.attention.output.dense", "attention"),
        ("bert.encoder.layer.0.output.dense", "feed-forward"),
        ("model.decoder.layers.0.encoder_attn.k_proj", "cross-attention"),
        ("model.decoder.layers.0.fc1", "feed-forward"),
        ("model.layers.0.mlp.gate", "router"),
        ("model.layers.0.mlp.experts", "experts"),
        ("model.layers.0.mlp.shared_expert.up_proj", "shared expert"),
        ("model.layers.0.linear_attn.in_proj_qkvz", "linear attention"),
        ("backbone.layers.0.mixer.in_proj", "state space"),
        ("lm_head", "head"),
        ("score", "other"),
    ],
)
def test_a_module_belongs_to_the_block_that_its_name_says(name, block):
    assert block_type(linear(name), head="lm_head") == block


def test_rows_sum_to_the_weights_of_the_model():
    blueprint = hybrid()
    coverage = coverage_of(blueprint, on(blueprint, "q_proj", "v_proj"))
    rows = {row.block: row for row in coverage.blocks}
    assert sum(row.weights for row in rows.values()) == blueprint.parameters - 8 * 8
    assert (rows["attention"].reached, rows["attention"].modules) == (4, 4)
    assert rows["attention"].weights_reached == 4 * 64
    assert (rows["feed-forward"].reached, rows["feed-forward"].modules) == (0, 8)


def test_a_hybrid_whose_other_blocks_have_other_names_is_a_finding():
    blueprint = hybrid()
    names = ["q_proj", "v_proj"]
    coverage = coverage_of(blueprint, on(blueprint, *names), asked=names)
    (stack,) = coverage.stacks
    assert (stack.stack, stack.layers, stack.reached) == ("model.layers", 8, (3, 7))
    (finding,) = coverage.findings
    assert "2 of 8 layers" in finding
    assert "in_proj, out_proj, up_proj: name them in space.targets too" in finding


@pytest.mark.parametrize("names", [("q_proj", "in_proj"), ("up_proj",)])
def test_reaching_every_layer_is_no_finding(names):
    blueprint = hybrid()
    assert coverage_of(blueprint, on(blueprint, *names)).findings == ()


@pytest.mark.parametrize(
    ("layers", "reached", "found"),
    [(10, 9, False), (10, 8, True), (20, 18, False), (20, 17, True), (9, 8, True), (1, 0, False)],
)
def test_nine_layers_of_ten_are_enough(layers, reached, found):
    stack = tuple(linear(f"model.layers.{i}.self_attn.q_proj") for i in range(layers))
    blueprint = Blueprint("plain", "", stack)
    change = Change((Group(stack[:reached], (Part("a", (1,)),), 1),))
    findings = coverage_of(blueprint, change, asked=["q_proj"]).findings
    assert [f"{reached} of {layers} layers are reached" in each for each in findings] == (
        [True] if found else []
    )


@pytest.mark.parametrize(("more", "found"), [(0, False), (1, True)])
def test_half_of_the_feed_forward_weights_are_enough(more, found):
    fused = Module("model.layers.0.mlp.experts", "experts", (("up_proj", (1, 8 + more, 8)),))
    shared = linear("model.layers.0.mlp.shared_expert.up_proj")
    blueprint = Blueprint("mixture", "", (fused, shared))
    findings = coverage_of(blueprint, on(blueprint, "up_proj"), asked=["up_proj"]).findings
    assert bool(findings) is found


def test_layers_left_out_on_purpose_are_no_finding():
    blueprint = hybrid()
    change = on(blueprint, "q_proj")
    assert coverage_of(blueprint, change, chosen_layers=True).findings == ()


@pytest.mark.parametrize("asked", ["all-linear", ["q_proj", "up_proj"], ["down_proj"]])
def test_fused_experts_passed_over_are_a_finding_with_their_names(asked):
    blueprint = mixture()
    (finding,) = coverage_of(blueprint, on(blueprint, "q_proj", "up_proj"), asked=asked).findings
    held = 100 * 2 * 4 * (32 * 8 + 8 * 16) / blueprint.parameters
    assert f"{held:.0f} %" in finding
    assert "experts.gate_up_proj, experts.down_proj" in finding


@pytest.mark.parametrize("asked", [["q_proj"], None, r".*q_proj"])
def test_experts_that_nobody_asked_for_are_no_finding(asked):
    blueprint = mixture()
    assert coverage_of(blueprint, on(blueprint, "q_proj"), asked=asked).findings == ()


def test_experts_that_are_reached_are_no_finding():
    blueprint = mixture()
    change = on(blueprint, "q_proj", "experts")
    assert coverage_of(blueprint, change, asked="all-linear").findings == ()


def test_unfrozen_parameters_count_as_reached():
    blueprint = hybrid()
    norms = frozenset(f"model.layers.{i}.norm.weight" for i in range(8))
    coverage = coverage_of(blueprint, Change(unfrozen=norms))
    (row,) = (row for row in coverage.blocks if row.block == "norm")
    assert (row.modules, row.reached) == (8, 8)
    assert coverage.findings == ()


# --- layers that are left out on purpose


@pytest.mark.parametrize(
    "asked",
    [r".*\.3\..*q_proj", ["model.layers.3.self_attn.q_proj"], ["layers.3.self_attn.q_proj"]],
)
def test_targets_that_name_their_layers_leave_the_others_out_on_purpose(asked):
    blueprint = hybrid()
    modules = tuple(m for m in blueprint.modules if ".3." in m.name and m.short_name == "q_proj")
    change = Change((Group(modules, (Part("a", (1,)),), 1),))
    assert coverage_of(blueprint, change, asked=asked).findings == ()
    assert len(coverage_of(blueprint, change, asked=["q_proj"]).findings) == 1


def test_advice_names_the_field_that_was_set():
    blueprint = hybrid()
    change = on(blueprint, "q_proj")
    (finding,) = coverage_of(blueprint, change, asked=["q_proj"], field="target_modules").findings
    assert "name them in target_modules too" in finding
    # The default targets of a PEFT configuration are not asked for, but they can be set.
    (finding,) = coverage_of(blueprint, change, field="target_modules").findings
    assert "name them in target_modules too" in finding
    # BitFit has no targets to be named.
    (finding,) = coverage_of(blueprint, change).findings
    assert finding.endswith("the others have nothing that this method trains")


@pytest.mark.parametrize(
    ("field", "peft_type", "advice"),
    [
        ("space.targets", "", "`tunemath count --peft-config` counts them with target_parameters"),
        ("target_modules", "LORA", "name in target_parameters"),
        ("target_modules", "IA3", "IA3 can't train them; LORA can, where target_parameters names"),
    ],
)
def test_advice_on_experts_can_be_followed(field, peft_type, advice):
    blueprint = mixture()
    change, asked = on(blueprint, "q_proj", "up_proj"), "all-linear"
    (finding,) = coverage_of(
        blueprint, change, asked=asked, field=field, peft_type=peft_type
    ).findings
    assert f"{advice} experts.gate_up_proj, experts.down_proj" in finding


# --- what is trained elsewhere than in modules


def reached(peft_type, **values):
    """What a PEFT configuration reaches of the hybrid, whose sizes its model would have."""
    sizes = {
        "hidden_size": 8, "num_hidden_layers": 8, "num_attention_heads": 2, "vocab_size": 32,
    }  # fmt: skip
    blueprint = replace(hybrid(), model_type="llama", config=sizes)
    config = AdapterConfig(peft_type, task_type="CAUSAL_LM", **values)
    change = peft_change(blueprint, config)
    return coverage_of(blueprint, change, peft_type=peft_type, field="target_modules")


@pytest.mark.parametrize("peft_type", ["PREFIX_TUNING", "CARTRIDGE"])
def test_a_prefix_reaches_the_keys_and_values_of_every_layer(peft_type):
    coverage = reached(peft_type, num_virtual_tokens=4)
    assert coverage.findings == ()
    assert coverage.beside == (
        "the keys and values of every layer of model.layers, before which trained ones stand",
    )
    (stack,) = coverage.stacks
    assert stack.reached == tuple(range(8))


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_a_prompt_reaches_the_input(peft_type):
    coverage = reached(peft_type, num_virtual_tokens=4)
    assert coverage.findings == ()
    assert coverage.beside == ("the input, before which trained virtual tokens stand",)
    assert all(row.reached == 0 for row in coverage.blocks)


def test_prompts_in_the_attention_reach_the_layers_that_have_them():
    change = Change(shared=(Shared("model.layers.7.self_attn", (Part("adaption_gate", (1,)),), 1),))
    (stack,) = coverage_of(hybrid(), change, chosen_layers=True).stacks
    assert stack.reached == (7,)


def test_corrected_blocks_are_reached():
    """ShadowPEFT gives each block a correction, which lies in none of its modules."""
    parts = (Part("shadow_down.weight", (2, 8)),)
    shared = tuple(Shared(f"model.layers.{i}", parts, 16) for i in range(8))
    coverage = coverage_of(hybrid(), Change(shared=shared), field="target_modules")
    assert coverage.stacks[0].reached == tuple(range(8))
    assert coverage.findings == ()


def test_frozen_experts_of_an_x_lora_are_not_trained():
    blueprint = hybrid()
    modules = tuple(m for m in blueprint.modules if m.short_name == "q_proj")
    frozen = Group(modules, (Part("lora_A.weight", (1, 8), trainable=False),), 0)
    coverage = coverage_of(blueprint, Change((frozen,)), peft_type="XLORA", field="target_modules")
    assert all(row.reached == 0 for row in coverage.blocks)
    assert coverage.findings == ()
    assert coverage.beside == ("the weights that a trained classifier gives its adapters",)


def test_layers_that_share_one_trained_vector_are_reached():
    """TinyLoRA's layers hold no parameters of their own: the vector lies beside the model."""
    coverage = reached("TINYLORA", target_modules=["up_proj"], u=3, r=2, weight_tying=1.0)
    (stack,) = coverage.stacks
    assert stack.reached == tuple(range(8))


# --- names that match nothing


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("experts.gate_up_prj", "experts.gate_up_proj"),
        ("down_prj", "down_proj"),
        ("model.layers.0.mlp.experts.down_porj", "model.layers.0.mlp.experts.down_proj"),
    ],
)
def test_parameters_near_a_name_are_given_as_it_was_written(name, near):
    assert near_parameters(mixture(), name)[0] == near
    assert near_parameters(mixture(), "zzz") == []
