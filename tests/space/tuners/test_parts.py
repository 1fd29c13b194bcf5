from __future__ import annotations

import copy
import warnings

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_models import base, blueprint, task_of

from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
CONVOLUTIONS = {"target_modules": ["conv1", "conv2", "q_proj"], "r": 2}
CASES = {
    "vera": ("VERA", ALL),
    "pvera": ("PVERA", ALL),
    "frod": ("FROD", {**ALL, "progressbar": False}),
    "randlora": ("RANDLORA", {**ALL, "r": 5}),
    "vblora": ("VBLORA", {**ALL, "vector_length": 8, "num_vectors": 3}),
    "unilora": ("UNILORA", ALL),
    "tinylora": ("TINYLORA", {**ALL, "u": 3, "weight_tying": 0.7}),
    "loha": ("LOHA", ALL),
    "loha-convolutions": ("LOHA", {**CONVOLUTIONS, "use_effective_conv2d": True}),
    "lokr": ("LOKR", {**ALL, "r": 2, "decompose_both": True, "decompose_factor": 4}),
    "lokr-convolutions": ("LOKR", {**CONVOLUTIONS, "r": 1, "use_effective_conv2d": True}),
    "gralora": ("GRALORA", {**ALL, "hybrid_r": 2}),
    "glora": ("GLORA", ALL),
    "glora-vectors": ("GLORA", {**ALL, "config_A_B": "constant", "config_C": "vector",
                                "config_D_E": "vector"}),
    "delora": ("DELORA", ALL),
}  # fmt: skip


@pytest.mark.parametrize("family", ["qwen2", "whisper"])
@pytest.mark.parametrize("case", CASES)
def test_parts_are_the_live_models_parameters_by_name_and_shape(case, family):
    peft_type, values = CASES[case]
    values = {**values, "task_type": task_of(family)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)](**copy.deepcopy(values))
        live = peft.get_peft_model(copy.deepcopy(base(family)), config)
    # What is shared lies in every layer as well as in the tuner; the tuner's is the shortest name.
    names: dict[int, str] = {}
    for name, p in live.named_parameters(remove_duplicate=False):
        if p.requires_grad:
            names[id(p)] = min(names.get(id(p), name), name, key=len)
    trained = {name: live.get_parameter(name).shape for name in names.values()}
    shapes = {
        name.removeprefix("base_model.").removeprefix("model.").replace(".default", ""): shape
        for name, shape in trained.items()
    }
    change = peft_change(blueprint(family), AdapterConfig(peft_type, **values))
    parts = {
        f"{module.name}.{part.name}": part.shape
        for group in change.groups
        for module in group.modules
        for part in group.parts
    }
    parts |= {part.name: part.shape for each in change.shared for part in each.parts}
    assert parts == shapes
