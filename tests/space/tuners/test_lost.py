from __future__ import annotations

import copy
import re
import warnings

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_models import agree, base, blueprint

from tunemath.space.coverage import coverage_of
from tunemath.space.peft import AdapterConfig, peft_change

QUERY = {"target_modules": ["q_proj"]}
SIDES = {"target_modules_bd_a": ["q_proj", "qproj"], "nblocks": 2}


def findings(peft_type: str, family: str = "llama", **values) -> tuple[str, ...]:
    return peft_change(blueprint(family), AdapterConfig(peft_type, **values)).findings


def warned(peft_type: str, **values) -> list[str]:
    """Return what PEFT warns of on the tiny Llama."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft.get_peft_model(copy.deepcopy(base("llama")), config(**copy.deepcopy(values)))
    return [str(each.message) for each in caught]


# Each case: the tuner type, its settings, and how the one finding on them begins.
LOST = {
    "rank": (
        "LORA",
        {**QUERY, "rank_pattern": {"q_proj": 4, "qproj": 2}},
        "rank_pattern has 'qproj', which matches nothing that is adapted and so has no effect; "
        "near it: q_proj; correct it",
    ),
    "rank-not-adapted": (
        "LORA",
        {**QUERY, "rank_pattern": {"v_proj": 4}},
        "rank_pattern has 'v_proj', which matches nothing that is adapted",
    ),
    "rank-other-layer": (
        "LOHA",
        {**QUERY, "rank_pattern": {r"layers\.7\..*": 4}},
        r"rank_pattern has 'layers\\.7\\..*'",
    ),
    "alpha": (
        "LOKR",
        {**QUERY, "alpha_pattern": {"attn.q_proj": 4, "0.self_attn.q_proj": 2}},
        "alpha_pattern has 'attn.q_proj', which matches nothing that is adapted and so has no "
        "effect; near it: self_attn.q_proj",
    ),
    "frequencies": (
        "FOURIERFT",
        {**QUERY, "n_frequency": 9, "n_frequency_pattern": {"k_proj": 3}},
        "n_frequency_pattern has 'k_proj'",
    ),
    "blocks": (
        "C3A",
        {**QUERY, "block_size": 4, "block_size_pattern": {"k_proj": 8}},
        "block_size_pattern has 'k_proj'",
    ),
    "found-anywhere": (
        "OSF",
        {**QUERY, "rank_pattern": {"q_": 4, "z_": 3}},
        "rank_pattern has 'z_'",
    ),
    "excluded": (
        "LORA",
        {"target_modules": "all-linear", "exclude_modules": ["up_prj", "q_proj", "0.mlp"]},
        "exclude_modules has 'up_prj', which matches nothing in this model and so has no effect; "
        "near it: up_proj",
    ),
    "excluded-expression": (
        "LORA",
        {"target_modules": ["q_proj"], "exclude_modules": "layers.0"},
        "exclude_modules has 'layers.0', which matches no whole name",
    ),
    "layers": (
        "LORA",
        {**QUERY, "layers_to_transform": [0, 2, 40, -1]},
        "layers_to_transform has 2, 40, -1, and the model's layers are 0 to 1; leave out",
    ),
    "layers-of-an-expression": (
        "PEANUT",
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        "layers_to_transform has no effect beside target_modules '.*q_proj': PEFT adapts every",
    ),
    "feed-forward": (
        "IA3",
        {"target_modules": ".*(q_proj|down_proj)", "feedforward_modules": ["down_proj", "fc2"]},
        "feedforward_modules has 'fc2', which is in the name of nothing adapted",
    ),
    "sides": (
        "LORA",
        {**QUERY, "use_bdlora": SIDES},
        "use_bdlora.target_modules_bd_a has 'qproj', which is in the name of nothing adapted",
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_a_setting_without_effect_is_a_finding(case):
    peft_type, values, begins = LOST[case]
    (finding,) = findings(peft_type, **values)
    assert finding.startswith(begins)
    assert agree("llama", peft_type, values)


FOUND = {
    "none": ("LORA", QUERY),
    "ranks": ("LORA", {**QUERY, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {r".*\.0\..*": 2}}),
    "excluded": ("LORA", {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"}),
    "excluded-block": ("LORA", {"target_modules": "all-linear", "exclude_modules": ["mlp"]}),
    "layers": ("LORA", {**QUERY, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "layer": ("LORA", {**QUERY, "layers_to_transform": 0}),
    "kept": ("ADALORA", {**QUERY, "total_step": 9, "rank_pattern": {"q_proj.lora_E": [True]}}),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_has_an_effect_is_no_finding(case):
    peft_type, values = FOUND[case]
    assert findings(peft_type, **values) == ()


@pytest.mark.parametrize("pattern", ["q_proj", "qproj", r".*\.0\..*", "v_proj", "self_attn.q_proj"])
def test_patterns_without_effect_are_those_that_peft_warns_of(pattern):
    values = {**QUERY, "rank_pattern": {pattern: 4}}
    said = [each for each in warned("LORA", **values) if "did not match any" in each]
    assert len(findings("LORA", **values)) == len(said)


@pytest.mark.parametrize("excluded", [["q_proj"], ["nothing"], "nothing", r".*\.0\..*", ["mlp"]])
def test_exclusions_without_effect_are_those_that_peft_warns_of(excluded):
    values = {"target_modules": ["v_proj"], "exclude_modules": excluded}
    said = [each for each in warned("LORA", **values) if "no modules were excluded" in each]
    assert len(findings("LORA", **values)) == len(said)


def test_the_ranks_of_experts_are_those_of_their_tensors():
    values = {"target_modules": [], "target_parameters": ["down_proj"]}
    assert findings("LORA", "mixtral", **values, rank_pattern={"down_proj": 2}) == ()
    (finding,) = findings("LORA", "mixtral", **values, rank_pattern={"w2": 2})
    assert finding.startswith("rank_pattern has 'w2'")


def test_findings_are_part_of_what_a_method_reaches():
    model = blueprint("llama")
    change = peft_change(model, AdapterConfig("LORA", **QUERY, rank_pattern={"qproj": 2}))
    assert coverage_of(model, change, asked=["q_proj"]).findings == change.findings


def test_layers_do_not_choose_among_single_tensors():
    values = {
        "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"],
        "layers_to_transform": [1],
    }  # fmt: skip
    assert agree("mixtral", "LORA", values)
    (note,) = peft_change(blueprint("mixtral"), AdapterConfig("LORA", **values)).notes
    assert re.match("layers_to_transform chooses among modules alone: .* every layer, 2 of", note)
