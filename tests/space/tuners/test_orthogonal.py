from __future__ import annotations

import peft
import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint, live_counts
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
EMBEDDINGS = {"target_modules": r".*\.(embed_tokens|wte|word_embeddings)"}
NO_CONV1D = ("gpt2",)
DEFAULT = (*NO_DEFAULTS, *NO_CONV1D)

# Each case: the tuner type, its settings, the families for which PEFT refuses them.
CASES = {
    "oft": ("OFT", {}, DEFAULT),
    "oft-all-linear": ("OFT", {**ALL, "oft_block_size": 8, "coft": True}, NO_CONV1D),
    # 7 divides no width: 8 is nearest to it for 32, 6 and 8 are equally near for 48.
    "oft-size-moved": ("OFT", {**ALL, "oft_block_size": 7, "bias": "oft_only"}, NO_CONV1D),
    "oft-size-beyond": ("OFT", {**ALL, "oft_block_size": 400}, NO_CONV1D),
    "oft-number": ("OFT", {**ALL, "oft_block_size": 0, "r": 5, "bias": "all"}, NO_CONV1D),
    "oft-shared": ("OFT", {**ALL, "oft_block_size": 8, "block_share": True}, NO_CONV1D),
    "oft-embeddings": ("OFT", {**EMBEDDINGS, "oft_block_size": 4}, ("vit",)),
    "oft-both": ("OFT", {**ALL, "r": 4}, FAMILIES),
    "oft-neither": ("OFT", {**ALL, "oft_block_size": 0}, FAMILIES),
    "boft": ("BOFT", {}, DEFAULT),
    "boft-all-linear": ("BOFT", {**ALL, "boft_block_size": 8, "bias": "boft_only"}, NO_CONV1D),
    "boft-number": ("BOFT", {**ALL, "boft_block_size": 0, "boft_block_num": 2}, NO_CONV1D),
    "boft-factors": ("BOFT", {**ALL, "boft_n_butterfly_factor": 2}, NO_CONV1D),
    "boft-indivisible": ("BOFT", {**ALL, "boft_block_size": 5}, FAMILIES),
    "boft-both": ("BOFT", {**ALL, "boft_block_num": 2}, FAMILIES),
    "hra": ("HRA", {}, DEFAULT),
    "hra-all-linear": ("HRA", {**ALL, "r": 3, "bias": "hra_only"}, NO_CONV1D),
    "hra-orthogonalised": ("HRA", {**ALL, "r": 40, "apply_GS": True}, NO_CONV1D),
    "hra-no-rank": ("HRA", {**ALL, "r": 0}, FAMILIES),
    "hra-embeddings": ("HRA", EMBEDDINGS, FAMILIES),
}


@pytest.fixture(autouse=True)
def extension(monkeypatch):
    """PEFT without its CUDA extension, which it would try to compile for every layer of BOFT."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    peft_type, values, refused = CASES[case]
    assert agree(family, peft_type, values) == (family not in refused)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(8, 12, 3)
        self.square = nn.Conv2d(8, 12, 3)
        self.point = nn.Conv2d(8, 12, 1, bias=False)
        self.three = nn.Conv3d(8, 12, 3)


@pytest.mark.parametrize("name", ["one", "square", "point", "three"])
@pytest.mark.parametrize("peft_type", ["OFT", "BOFT", "HRA"])
def test_convolutions_over_two_dimensions_are_counted(peft_type, name):
    counted = agree_on(Convolutions(), peft_type, {"target_modules": [name]})
    assert counted == (name in ("square", "point"))
    if not counted:
        config = AdapterConfig(peft_type, target_modules=[name])
        with pytest.raises(ModelError, match=f"over 2 dimensions; that of {name} has a weight"):
            peft_change(blueprint_of(Convolutions()), config)


@pytest.mark.parametrize("peft_type", ["OFT", "BOFT", "HRA"])
def test_the_patches_of_a_vision_model_are_counted(peft_type):
    assert agree("vit", peft_type, {"target_modules": ["projection"]})


def test_more_butterfly_factors_are_there_with_the_extension(monkeypatch):
    values = {**ALL, "boft_block_size": 4, "boft_n_butterfly_factor": 3}
    change = peft_change(blueprint("llama"), AdapterConfig("BOFT", **values))
    one = Ledger(blueprint("llama"), change).trainable
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: True)
    three, _ = live_counts("llama", peft.BOFTConfig(task_type="CAUSAL_LM", **values))
    factor = (three - one) // 2
    assert f"3 has {factor:,} parameters" in change.notes[1]


def test_permutations_are_named_as_left_out_of_the_total():
    change = peft_change(blueprint("llama"), AdapterConfig("BOFT"))
    # Two layers of q and v, each with a permutation (32, 32).
    assert f"{2 * 2 * 32 * 32:,} frozen numbers" in change.notes[0]


def test_oft_counts_are_the_papers():
    """A skew-symmetric block of 12 has 66 entries (arXiv 2306.07280), and 48 inputs have four."""
    config = AdapterConfig("OFT", target_modules=["down_proj"], oft_block_size=12)
    (group,) = peft_change(blueprint("llama"), config).groups
    assert group.trainable == 4 * 66


@pytest.mark.parametrize(
    ("peft_type", "values", "message"),
    [
        ("OFT", {"r": 4}, "oft_block_size 32 and r 4, .*; give one and set the other to 0"),
        ("BOFT", {"boft_block_size": 5}, r"q_proj is 32 wide; set boft_block_size to .* as 4"),
        ("HRA", {"r": 0}, "HRA: r is 0"),
    ],
)
def test_blocks_must_fit(peft_type, values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig(peft_type, **values))
