"""A model's modules from its config.json alone, without torch or transformers.

The families' descriptions are in ``families``; what transformers would fill in (defaults, other
names of fields, the class of each task) is in facts.json, written from transformers itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint.families import Family, Fields, Unsupported, family_of
from tunemath.space.blueprint.record import Blueprint

__all__ = ["TASKS", "blueprint_of_config", "class_name"]

TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""PEFT's task types."""


def blueprint_of_config(
    config: Mapping[str, Any], *, task_type: str | None = None
) -> Blueprint | None:
    """Return the blueprint of the model that a config.json describes; None if it is not known here.

    It is that of the model which transformers builds: ``task_type``, PEFT's, chooses the class,
    then ``architectures``, then the family. Fields that are left out take transformers' defaults.
    Raises `ModelError` for a field that can't be.

    >>> sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> blueprint = blueprint_of_config({"model_type": "llama", **sizes}, task_type="SEQ_CLS")
    >>> blueprint.architecture, blueprint.modules[-1].name, blueprint.modules[-1].shape
    ('LlamaForSequenceClassification', 'score', (2, 64))
    """
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise ModelError(
            f"the configuration has {model_type!r:.60} as model_type; expected a string"
        )
    family = family_of(model_type or "")
    if family is None or not model_type or config.get("per_layer_config"):
        return None
    facts = _facts()[model_type]
    name = class_name(config, facts["tasks"], task_type)
    architecture = _known_as(name, facts["classes"])
    ending = family.ending(name)
    if architecture is None or ending is None:
        return None
    values = _settled(model_type, family, config)
    try:
        if values is None:
            return None
        draft = family.build(Fields(values, labels=facts.get("labels", 2)), ending)
    except Unsupported:
        return None
    return Blueprint(
        model_type=model_type,
        architecture=architecture,
        modules=tuple(draft.modules),
        config={**values, **draft.sets},
        tied=draft.tied,
        embedding=draft.input,
        head=draft.output,
        dtype=_dtype(config),
        unlearnable=frozenset(draft.frozen),
    )


def class_name(
    config: Mapping[str, Any], tasks: Mapping[str, str], task_type: str | None = None
) -> str:
    """Return the class that a model is built as: the task's, else the one that was saved.

    ``tasks`` has the family's class of each task. A configuration that names no class is that of a
    language model, or of the base model where the family has none.
    """
    kind = config.get("model_type")
    if task_type is not None:
        if task_type not in TASKS:
            raise ModelError(
                f"task_type {task_type!r} is none of PEFT's; known: {', '.join(TASKS)}"
            )
        if task_type not in tasks:
            known = ", ".join(task for task in TASKS if task in tasks)
            raise ModelError(
                f"task_type is {task_type}, for which transformers has no {kind} model; "
                f"it has {known or 'none for any'}"
            )
        return tasks[task_type]
    saved = config.get("architectures")
    if saved:
        if isinstance(saved, list | tuple) and isinstance(saved[0], str):
            return saved[0]
        raise ModelError(
            f"the configuration of this {kind} has {saved!r:.60} as architectures; "
            "expected the name of one class in a list"
        )
    first = "SEQ_2_SEQ_LM" if "SEQ_2_SEQ_LM" in tasks else "CAUSAL_LM"
    found = tasks.get(first) or tasks.get("FEATURE_EXTRACTION")
    if found is None:
        raise ModelError(
            f"the configuration of this {kind} names no class and no task has one by default; "
            "set task_type"
        )
    return found


def _known_as(name: str, classes: Collection[str]) -> str | None:
    """Return transformers' spelling of a class's name; older files write some in capitals."""
    return next((each for each in classes if each.lower() == name.lower()), None)


def _settled(model_type: str, family: Family, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields with transformers' defaults; None where a part is of no known family."""
    facts = _facts()[model_type]
    fields, aliases = facts["defaults"], facts.get("aliases", {})
    # As transformers does: a class's own fields are set first, then whatever else was given.
    own = {key: value for key, value in config.items() if key in fields}
    rest = {key: value for key, value in config.items() if key not in fields}
    values: dict[str, Any] = {}
    for given in (fields, own, rest):
        values.update((aliases.get(key, key), value) for key, value in given.items())
    for key, kind in facts.get("parts", {}).items():
        part = _part(key, kind, values)
        if part is None:
            return None
        values[key] = part
    if family.settle:
        family.settle(values)
    return values


def _part(key: str, kind: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """Return a configuration within another one, settled; None where it is of another family."""
    given = values.get(key) or {}
    # Older CLIPs hold a part twice; the second counts, with defaults for what it leaves out.
    over = values.pop(f"{key}_dict", None) or {}
    if not isinstance(given, Mapping) or not isinstance(over, Mapping):
        raise Fields(values).wrong(key, "a configuration of its own")
    family = family_of(kind)
    if family is None or given.get("model_type", kind) != kind:
        return None
    if over:
        given = {**given, **_facts()[kind]["defaults"], **over}
    return _settled(kind, family, {**given, "model_type": kind})


def _dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that a configuration names, which transformers 4 called torch_dtype."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    if not isinstance(dtype, str) or dtype == "auto":
        return "float32"
    return dtype.removeprefix("torch.")


@cache
def _facts() -> dict[str, Any]:
    """Return what was read from transformers: of each model type, defaults, names and classes."""
    text = Path(__file__).with_name("facts.json").read_text("utf-8")
    facts: dict[str, Any] = json.loads(text)["types"]
    return facts
