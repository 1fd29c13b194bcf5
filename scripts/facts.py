"""Write down what tunemath must know of other libraries without importing them.

python scripts/facts.py            write space/peft/facts.json and space/blueprint/facts.json
python scripts/facts.py --check    exit 1 if they are not what PEFT and transformers say
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import peft
import transformers
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from peft.utils.transformers_weight_conversion import (
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_FUSED_TARGETS,
    _MOE_TARGET_MODULE_MAPPING,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tunemath.runner.blueprints import classes_of
from tunemath.space.blueprint.families import model_types

SPACE = Path(__file__).parent.parent / "src/tunemath/space"
PEFT_FACTS = SPACE / "peft/facts.json"
TRANSFORMERS_FACTS = SPACE / "blueprint/facts.json"

# Fields that never decide a shape: what training, generation and numerics use.
NO_SHAPE = ("_token_id", "_token_index", "dropout", "_prob", "use_cache", "rope_parameters",
            "attn_config")  # fmt: skip


def peft_facts() -> dict[str, Any]:
    """Return, of each tuner type, its fields with their defaults, and its default targets."""
    types = {}
    for kind in sorted(PEFT_TYPE_TO_CONFIG_MAPPING, key=lambda kind: kind.value):
        facts: dict[str, Any] = {"defaults": defaults(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
        targets = getattr(tuner, "target_module_mapping", None)
        if isinstance(targets, dict):
            facts["target_modules"] = {name: plain(value) for name, value in targets.items()}
        if kind == peft.PeftType.IA3:
            facts["target_modules"] = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
            facts["feedforward_modules"] = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
        facts["prefix"] = PEFT_TYPE_TO_PREFIX_MAPPING.get(kind)
        facts["refuses"] = [
            case
            for case, values in _LAYERS.items()
            if "layers_pattern" in facts["defaults"]
            and refuses(PEFT_TYPE_TO_CONFIG_MAPPING[kind], values)
        ]
        types[kind.value] = facts
    return {"version": peft.__version__, "types": types, "mixtures": mixtures()}


# Choices of layers that only some types take.
_LAYERS = {
    "layers with an expression": {"target_modules": ".*", "layers_to_transform": [0]},
    "a pattern with an expression": {"target_modules": ".*", "layers_pattern": "h"},
    "an empty pattern with an expression": {"target_modules": ".*", "layers_pattern": []},
    "a pattern without layers": {"target_modules": ["q"], "layers_pattern": "h"},
}


def refuses(config: type, values: dict[str, Any]) -> bool:
    """Return whether a configuration class takes no such values."""
    needed = {"total_step": 1} if config is peft.AdaLoraConfig else {}
    try:
        config(**values, **needed)
    except ImportError:  # AdaMSS asks for scikit-learn
        return False
    except ValueError:
        return True
    return False


def mixtures() -> dict[str, Any]:
    """Return, of each model type whose experts transformers 5 fused, how PEFT renames targets."""
    built_like = {
        model_type: family
        for model_type, family in sorted(_MODEL_TO_CONVERSION_PATTERN.items())
        if family in _MOE_TARGET_MODULE_MAPPING
        and get_checkpoint_conversion_mapping(model_type) is not None
    }
    return {
        "built_like": built_like,
        "renamed": _MOE_TARGET_MODULE_MAPPING,
        "fused": _MOE_FUSED_TARGETS,
    }


def defaults(config: type) -> dict[str, Any]:
    """Return each field of a configuration class and its default."""
    found = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            found[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = plain(field.default_factory())
        else:
            found[field.name] = None
    for name in ("peft_type", "auto_mapping", "peft_version", "runtime_config"):
        found.pop(name, None)
    return {**found, "auto_mapping": None, "peft_version": None}


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    return value


def transformers_facts() -> dict[str, Any]:
    """Return, of each model type that is described, its fields, their other names, its classes."""
    types = {}
    for model_type in model_types():
        config = CONFIG_MAPPING[model_type]
        facts: dict[str, Any] = {"defaults": shape_defaults(config)}
        if config.attribute_map:
            facts["aliases"] = config.attribute_map
        if config.sub_configs_defaults:
            specs = config.sub_configs_defaults.items()
            facts["parts"] = {key: spec.model_type for key, spec in specs}
            facts["parts"].pop("attn_config", None)
        labels = config().num_labels
        if labels != 2:
            facts["labels"] = labels
        facts["tasks"] = classes_of(model_type)
        facts["classes"] = model_classes(config)
        types[model_type] = facts
    return {"version": transformers.__version__, "types": types}


def shape_defaults(config: type) -> dict[str, Any]:
    """Return the fields of a configuration class that may decide a shape, and their defaults."""
    common = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    common.discard("is_encoder_decoder")
    found = {}
    for field in dataclasses.fields(config):
        if field.name in common or field.name.endswith(NO_SHAPE):
            continue
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is dataclasses.MISSING or isinstance(value, float):
            continue
        found[field.name] = plain(value)
    return found


def model_classes(config: type) -> list[str]:
    """Return the names of the models that are built from a configuration's file."""
    name = config.__module__.replace("configuration_", "modeling_")
    module = importlib.import_module(name)
    return sorted(
        key
        for key, value in inspect.getmembers(module, inspect.isclass)
        if key in module.__all__
        and issubclass(value, transformers.PreTrainedModel)
        and value.config_class is config
        and not key.endswith(("PreTrainedModel", "PretrainedModel"))
        and key != "PretrainedBartModel"
    )


def compact(facts: dict[str, Any]) -> str:
    """Return JSON of a line a type, which is small and still shows what changed."""
    short = (",", ":")
    lines = (
        f"{json.dumps(key)}:{json.dumps(value, separators=short)}"
        for key, value in facts["types"].items()
    )
    version = json.dumps(facts["version"])
    return '{"version":' + version + ',"types":{\n' + ",\n".join(lines) + "\n}}\n"


def main() -> int:
    """Write the facts, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if stale")
    check = parser.parse_args().check
    texts = {
        PEFT_FACTS: json.dumps(peft_facts(), indent=1) + "\n",
        TRANSFORMERS_FACTS: compact(transformers_facts()),
    }
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in stale:
            print(
                f"{path} is not that of peft {peft.__version__} and transformers "
                f"{transformers.__version__}; python {__file__}"
            )
        return 1 if stale else 0
    for path in stale:
        path.write_text(texts[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
