from __future__ import annotations

import pytest
from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.blueprint import Blueprint, Builder
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
NO_CONV1D = ("gpt2",)
# The names of queries, the whole name of one, an alternative that PEFT cuts in two, none of any.
PATTERN = {"q_proj|k_proj": 16, "model.layers.1.self_attn.v_proj": 8, "query": 2, "absent": 1}
FREQUENCIES = {**ALL, "n_frequency": 30, "n_frequency_pattern": PATTERN}
TOO_MANY = (*NO_DEFAULTS, "llama", "qwen2", "mixtral")  # values of 512 entries

# Each case: the tuner type, its settings, the families for which PEFT refuses them.
CASES = {
    "fourierft": ("FOURIERFT", {}, TOO_MANY),
    "fourierft-fewer": ("FOURIERFT", {"n_frequency": 90, "bias": "fourier_only"}, NO_DEFAULTS),
    "fourierft-all-linear": ("FOURIERFT", {**FREQUENCIES, "bias": "all"}, ()),
    "fourierft-none": ("FOURIERFT", {**ALL, "n_frequency": 0}, FAMILIES),
    "fourierft-no-patterns": ("FOURIERFT", {**ALL, "n_frequency_pattern": None}, FAMILIES),
    "fourierft-embeddings": (
        "FOURIERFT",
        {"target_modules": r".*\.(embed_tokens|wte|word_embeddings)", "n_frequency": 3},
        FAMILIES,
    ),
    "waveft": ("WAVEFT", {}, {*FAMILIES} - {"gpt2"}),  # its c_proj has 4096 entries
    "waveft-fewer": ("WAVEFT", {"n_frequency": 90, "bias": "waveft_only"}, NO_DEFAULTS),
    "waveft-all-linear": ("WAVEFT", {**FREQUENCIES, "use_idwt": False}, ()),
    "waveft-shares": (
        "WAVEFT",
        {**FREQUENCIES, "proportional_parameters": True, "wavelet_family": "coif3"},
        (),
    ),
    "waveft-least-shares": (
        "WAVEFT",
        {**ALL, "n_frequency": 1, "proportional_parameters": True},
        (),
    ),
    "waveft-unknown": ("WAVEFT", {**ALL, "n_frequency": 9, "wavelet_family": "haar"}, FAMILIES),
    "c3a": ("C3A", {}, FAMILIES),
    "c3a-smaller": ("C3A", {"block_size": 16, "bias": "c3a_only"}, (*NO_DEFAULTS, "gpt2")),
    "c3a-all-linear": ("C3A", {**ALL, "block_size": 4}, ("gpt2", "vit")),
    "c3a-patterns": (
        "C3A",
        {"target_modules": ["q_proj", "k_proj", "v_proj", "query"], "block_size": 4,
         "block_size_pattern": PATTERN},
        ("phi3", "gpt2", "t5"),
    ),
    "c3a-ones": ("C3A", {**ALL, "block_size": 1, "init_weights": "gaussian"}, NO_CONV1D),
    "c3a-no-block": ("C3A", {**ALL, "block_size": 0}, FAMILIES),
    "c3a-unknown": ("C3A", {**ALL, "block_size": 1, "init_weights": "ones"}, FAMILIES),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    peft_type, values, refused = CASES[case]
    assert agree(family, peft_type, values) == (family not in refused)


class Names(nn.Module):
    """Layers at the top and one below, told apart by what patterns say of a name without a dot."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8)
        self.block = nn.ModuleDict({"query": nn.Linear(8, 8), "b": nn.Linear(8, 8)})


@pytest.mark.parametrize(
    "pattern",
    [{"query": 4}, {"que.*": 4}, {"que.*": 4, "query": 2}, {"b|query": 4}, {"block.b": 2}],
)
@pytest.mark.parametrize(
    ("peft_type", "key"),
    [("FOURIERFT", "n_frequency"), ("WAVEFT", "n_frequency"), ("C3A", "block_size")],
)
def test_patterns_are_matched_by_the_rule_of_their_tuner(peft_type, key, pattern):
    values = {"target_modules": ["query", "value", "b"], key: 8, f"{key}_pattern": pattern}
    assert agree_on(Names(), peft_type, values)


def queries_and_values(layers: int, width: int) -> Blueprint:
    build = Builder()
    for i in range(layers):
        for name in ("q_proj", "v_proj"):
            build.linear(f"model.layers.{i}.self_attn.{name}", width, width)
    return Blueprint("llama", "LlamaForCausalLM", tuple(build.modules))


# Gao et al. 2024, arXiv 2405.03003: "only 0.064M trainable parameters" on LLaMA2-7B (abstract), of
# which n is 1000 for each query and value; LoRA's 33.5M there is of rank 64.
def test_fourierft_counts_are_the_papers():
    model = queries_and_values(32, 4096)
    ours = Ledger(model, peft_change(model, AdapterConfig("FOURIERFT", n_frequency=1000)))
    assert ours.trainable == 64_000
    lora = Ledger(model, peft_change(model, AdapterConfig("LORA", r=64)))
    assert lora.trainable == pytest.approx(33.5e6, rel=0.005)


def test_c3a_counts_are_the_papers():
    """d_in d_out / b of arXiv 2407.19342: with the largest block a layer costs its width."""
    model = queries_and_values(1, 768)
    change = peft_change(model, AdapterConfig("C3A", block_size=768))
    assert [group.trainable for group in change.groups] == [768]


def test_wavelets_are_those_of_peft():
    for family in WAVELET_REDUCTIONS:
        config = AdapterConfig("WAVEFT", n_frequency=9, wavelet_family=family)
        assert peft_change(blueprint("llama"), config).groups
    for family in ("db0", "db39", "sym1", "coif18", "db", None):
        config = AdapterConfig("WAVEFT", n_frequency=9, wavelet_family=family)
        with pytest.raises(ModelError, match=r"set it to one of db1 to db38, sym2 to sym20, coif1"):
            peft_change(blueprint("llama"), config)


@pytest.mark.parametrize(
    ("peft_type", "values", "message"),
    [
        ("FOURIERFT", {}, r"n_frequency 1000 for .*v_proj, whose weight has 512 entries"),
        ("FOURIERFT", {"n_frequency_pattern": {"(": 1}}, r"'\(' is used as a regular expression"),
        ("C3A", {}, "block_size 256, and .*q_proj takes 32 and gives 32; set block_size to a"),
        ("C3A", {"block_size_pattern": {"q_proj": 0}}, "C3A: block_size is 0"),
        ("C3A", {"block_size_pattern": [4]}, r"block_size_pattern is \[4\]; expected a mapping"),
    ],
)
def test_settings_must_fit(peft_type, values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig(peft_type, **values))


def test_shares_add_up_to_the_mean():
    config = AdapterConfig("WAVEFT", **ALL, n_frequency=64, proportional_parameters=True)
    change = peft_change(blueprint_of(Names()), config)
    assert [(len(g.modules), g.trainable) for g in change.groups] == [(4, 64)]
