from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
LAYER = {"target_modules": ["q_proj", "query", "q", "c_attn", "fc1", "qkv_proj"]}

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": ({**ALL, "r": 3, "bias": "deft_only", "decomposition_method": "qr"}, ()),
    "para": ({**ALL, "para": True, "bias": "all"}, ()),
    "capped": ({**ALL, "r": 40, "alpha": 8}, ()),
    "one-layer": ({**LAYER, "layers_to_transform": 1}, ()),
    "excluded": ({**LAYER, "exclude_modules": r".*1\..*"}, ()),
    "lost-pattern": ({**LAYER, "layers_pattern": "layers"}, FAMILIES),
    "lost-layers": ({**ALL, "layers_to_transform": 1}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "unknown-method": ({**ALL, "decomposition_method": "svd"}, FAMILIES),
    "embeddings": ({"target_modules": ["embed_tokens", "wte", "word_embeddings"]}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "DEFT", values) == (family not in refused)


def test_methods_must_be_known():
    config = AdapterConfig("DEFT", decomposition_method="svd")
    with pytest.raises(ModelError, match="decomposition_method is 'svd'; set it to one of relu, q"):
        peft_change(blueprint("llama"), config)
