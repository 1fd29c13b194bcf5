from __future__ import annotations

import peft
import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft import AdapterConfig, peft_change, peft_ledger

ALL = {"target_modules": "all-linear"}
RANKS = {"q_proj": 2, "query": 3, "SelfAttention.q": 5}

# Each case: the tuner type, its settings, the families for which PEFT refuses them. GPT-2's layers
# are transformers' Conv1D, which LyCORIS has no form for.
CASES = {
    "loha": ("LOHA", {}, (*NO_DEFAULTS, "gpt2")),
    "loha-all-linear": ("LOHA", {**ALL, "r": 3}, ("gpt2",)),
    "loha-ranks": ("LOHA", {**ALL, "rank_pattern": RANKS}, ("gpt2",)),
    "loha-no-rank": ("LOHA", {**ALL, "r": 0}, FAMILIES),
    "lokr": ("LOKR", {}, (*NO_DEFAULTS, "gpt2")),
    "lokr-all-linear": ("LOKR", {**ALL, "r": 1}, ("gpt2",)),
    "lokr-ranks": ("LOKR", {**ALL, "rank_pattern": RANKS}, ("gpt2",)),
    "lokr-both": ("LOKR", {**ALL, "r": 1, "decompose_both": True}, ("gpt2",)),
    "lokr-factor": ("LOKR", {**ALL, "r": 3, "decompose_factor": 8, "decompose_both": True},
                    ("gpt2",)),
    "lokr-near-factor": ("LOKR", {**ALL, "r": 1, "decompose_factor": 7}, ("gpt2",)),
    "lokr-no-factor": ("LOKR", {**ALL, "r": 1, "decompose_factor": 0}, ("gpt2",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    peft_type, values, refused = CASES[case]
    assert agree(family, peft_type, values) == (family not in refused)


class Convolutions(nn.Module):
    """Convolutions of one and two dimensions, with groups, and with kernels of one place."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(8, 12, 3)
        self.one_point = nn.Conv1d(8, 12, 1)
        self.two = nn.Conv2d(8, 12, (3, 5), groups=2, bias=False)
        self.two_point = nn.Conv2d(8, 12, 1)
        self.wide = nn.Conv2d(24, 96, 3)


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("r", [1, 2, 8])
@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])
def test_convolutions_are_counted_as_in_the_live_model(peft_type, r, effective):
    values = {"target_modules": r"(one|two).*|wide", "r": r, "use_effective_conv2d": effective}
    assert agree_on(Convolutions(), peft_type, values)
    if peft_type == "LOKR":
        assert agree_on(Convolutions(), peft_type, {**values, "decompose_both": True})


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])
@pytest.mark.parametrize("family", ["vit", "whisper"])
def test_convolutions_of_real_models_are_counted(family, peft_type, effective):
    values = {"r": 2, "use_effective_conv2d": effective}
    assert agree(family, peft_type, {**values, "target_modules": ["projection", "conv1", "conv2"]})


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.three = nn.Conv3d(4, 4, 3)


@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])
def test_convolutions_of_three_dimensions_are_refused(peft_type):
    assert not agree_on(Volume(), peft_type, {"target_modules": ["three"]})
    with pytest.raises(ModelError, match=r"one or two dimensions; three has a weight of shape"):
        peft_change(blueprint_of(Volume()), AdapterConfig(peft_type, target_modules=["three"]))


def test_fedpara_counts_are_the_papers():
    """Proposition 1 of arXiv 2108.06098: 2 R (m + n), and of rank up to R²."""
    config = AdapterConfig("LOHA", r=4, target_modules=["down_proj"])
    (group,) = peft_change(blueprint("llama"), config).groups
    assert group.trainable == 2 * 4 * (48 + 32)


@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR"])
def test_layers_whose_weight_is_made_of_others_are_alike_only_if_it_is(peft_type):
    def made(kernel):
        return nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 8, kernel))

    model = nn.ModuleDict({"one": made(3), "two": made(5)})
    values = {"target_modules": ["one", "two"]}
    ledger = peft_ledger(blueprint_of(model), AdapterConfig(peft_type, **values))
    kinds = {"LOHA": peft.LoHaConfig, "LOKR": peft.LoKrConfig}
    live = peft.get_peft_model(model, kinds[peft_type](**values))
    assert ledger.trainable == live.get_nb_trainable_parameters()[0]
