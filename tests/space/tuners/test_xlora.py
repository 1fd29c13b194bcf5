from __future__ import annotations

import copy
import json
import warnings

import peft
import pytest
from peft_models import FAMILIES, agree_on, base, blueprint, task_of

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.blueprint.config import blueprint_of_config
from tunemath.space.peft import AdapterConfig, peft_change

# The families whose layers' names start with model., which is where PEFT loads adapters.
LOADED = ("llama", "qwen2", "qwen3_moe", "gemma", "mixtral", "phi3", "whisper")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Return the function from a family to the folders of two LoRA adapters."""
    made: dict[str, tuple[str, str]] = {}

    def folders(family: str) -> tuple[str, str]:
        if family not in made:
            made[family] = tuple(str(save(family, r)) for r in (2, 3))
        return made[family]

    def save(family: str, r: int):
        folder = tmp_path_factory.mktemp(f"{family}-{r}")
        config = peft.LoraConfig(
            r=r, target_modules="all-linear", exclude_modules=["lm_head", "classifier"]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.get_peft_model(copy.deepcopy(base(family)), config).save_pretrained(folder)
        return folder

    return folders


def uncached(family: str):
    model = copy.deepcopy(base(family))
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model


CASES = {
    "experts": {},
    "deep": {"xlora_depth": 3, "xlora_size": 7},
    "deep-layerwise": {"xlora_depth": 2, "layerwise_scalings": True, "xlora_dropout_p": 0.0},
    "layerwise": {"layerwise_scalings": True},
    "trained": {"use_trainable_adapters": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case, adapters):
    first, second = adapters(family)
    values = {
        "adapters": {"0": first, "other": second},
        "hidden_size": 32,
        "task_type": task_of(family),
        **CASES[case],
    }
    assert agree_on(uncached(family), "XLORA", values) == (family in LOADED)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_adapters_train_nothing(family):
    assert agree_on(uncached(family), "XLORA", {"task_type": task_of(family)})


@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_a_cache_are_refused(family):
    """By default all have one but ViT."""
    assert agree_on(base(family), "XLORA", {"task_type": task_of(family)}) == (family == "vit")


def test_a_depth_of_none_is_refused(adapters):
    values = {"adapters": {"0": adapters("llama")[0]}, "hidden_size": 32, "xlora_depth": 0}
    assert not agree_on(uncached("llama"), "XLORA", values)


def change_of(adapters, **values):
    config = AdapterConfig("XLORA", adapters=adapters, hidden_size=32, **values)
    return peft_change(blueprint_of(uncached("llama")), config)


def test_the_classifier_has_a_weight_for_each_adapter_and_layer(adapters):
    one, two = adapters("llama")
    change = change_of({"a": one, "b": two}, layerwise_scalings=True)
    (classifier,) = change.shared
    # 2 blocks of 7 linear layers, 2 adapters.
    assert classifier.trainable == (32 + 1) * 2 * 14
    assert change.notes == ()


def test_adapters_are_trained_only_where_their_names_are_their_places(adapters):
    one, two = adapters("llama")
    change = change_of({"a": one, "1": two}, use_trainable_adapters=True)
    assert {group.trainable for group in change.groups if group.parts[0].shape[0] == 2} == {0}
    assert 0 not in {group.trainable for group in change.groups if group.parts[0].shape[0] == 3}
    assert "only where its name in adapters is its place" in change.notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "VERA"}, "is VERA; expected LORA"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"peft_type": "LORA", "bias": "all"}, "has bias"),
        ({"peft_type": "LORA", "target_modules": ["lm_head"]}, "adapts lm_head"),
    ],
)
def test_adapters_are_lora_factors_alone(settings, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        change_of({"a": str(tmp_path)})


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"adapter_config\.json does not exist"):
        change_of({"a": str(tmp_path)})
    with pytest.raises(ModelError, match="give a mapping from names to folders"):
        change_of([str(tmp_path)])
    assert blueprint("llama").config["use_cache"]


def test_a_configuration_that_does_not_say_has_the_cache_on(adapters):
    values = {k: v for k, v in base("llama").config.to_dict().items() if k != "use_cache"}
    config = AdapterConfig("XLORA", adapters={"0": adapters("llama")[0]}, hidden_size=32)
    for model in (values, {**values, "use_cache": True}):
        with pytest.raises(ModelError, match=r"unless its config\.json says otherwise"):
            peft_change(blueprint_of_config(model), config)
    assert peft_change(blueprint_of_config({**values, "use_cache": False}), config).shared
    assert not agree_on(base("llama"), "XLORA", dict(config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "wide"}, "XLORA: hidden_size is 'wide'; set it to a whole number"),
        ({"xlora_size": 2.5}, "XLORA: xlora_size is 2.5; set it to a whole number"),
    ],
)
def test_sizes_are_whole_numbers(values, message, adapters):
    config = AdapterConfig("XLORA", adapters={"0": adapters("llama")[0]}, **values)
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint_of(uncached("llama")), config)


def test_an_adapter_of_a_wrong_setting_is_refused(tmp_path):
    values = {"peft_type": "LORA", "target_modules": ["q_proj"], "layers_to_transform": [[0]]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(ModelError, match=r"layers_to_transform is .* expected a layer's number"):
        change_of({"a": str(tmp_path)})
