from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft import AdapterConfig, peft_change

QUIET = {"progressbar": False}
ALL = {**QUIET, "target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": (QUIET, NO_DEFAULTS),
    "all-linear": ({**ALL, "sparse_rate": 0.3, "bias": "frod_only"}, ()),
    "one-entry": ({**ALL, "sparse_rate": 1e-6}, ()),
    "no-entries": ({**ALL, "sparse_rate": 0.0}, ()),
    "every-entry": ({**ALL, "sparse_rate": 1.0}, ()),
    "too-many": ({**ALL, "sparse_rate": 1.5}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "FROD", values) == (family not in refused)


class Twins(nn.Module):
    """Two layers of the same kind by their names, of different input widths."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleDict({"proj": nn.ModuleDict({"out": nn.Linear(4, 6)})})
        self.second = nn.ModuleDict({"proj": nn.ModuleDict({"out": nn.Linear(8, 6)})})


def test_layers_that_share_a_basis_must_be_of_one_input_width():
    assert not agree_on(Twins(), "FROD", {**QUIET, "target_modules": ["out"]})
    assert agree_on(Twins(), "FROD", {**QUIET, "target_modules": ["first.proj.out"]})
    config = AdapterConfig("FROD", target_modules=["out"])
    with pytest.raises(
        ModelError, match=r"'proj_out'.*first.proj.out takes 4 and second.proj.out 8"
    ):
        peft_change(blueprint_of(Twins()), config)


def test_fixed_factors_are_named_as_left_out_of_the_total():
    (note,) = peft_change(blueprint("llama"), AdapterConfig("FROD")).notes
    # Two layers of q (32, 32) and v (16, 32), a V (32, 32) for each of the two kinds.
    assert f"{2 * (32 * 32 + 16 * 32) + 2 * 32 * 32:,} frozen numbers" in note
