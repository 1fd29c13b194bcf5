"""Settings that PEFT refuses whatever the model."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.peft.config import AdapterConfig

__all__ = ["refuse_lost_layers", "refuse_new_heads"]


def refuse_new_heads(config: AdapterConfig) -> None:
    """Raise for tasks whose new head PEFT trains by ``modules_to_save``, which this type hasn't.

    PEFT itself stops there with a TypeError. In sequence classification it leaves the head frozen.
    """
    if config["task_type"] in ("TOKEN_CLS", "QUESTION_ANS"):
        raise ModelError(
            f"{config.peft_type} has task_type {config['task_type']}, whose head must be trained, "
            "and no modules_to_save to train it; set task_type to None, which leaves it as it is"
        )


def refuse_lost_layers(config: AdapterConfig, *, with_pattern: bool = False) -> None:
    """Raise where layers are asked for in a way that would be lost.

    Some types take no layers where ``target_modules`` is a regular expression; others ignore them
    (``with_pattern``).
    """
    layers, pattern = config["layers_to_transform"], config["layers_pattern"]
    if pattern and layers is None:
        raise ModelError(
            f"{config.peft_type}: layers_pattern is {pattern!r} without layers_to_transform; give "
            "the layers too, or leave it out"
        )
    targets = config["target_modules"]
    if isinstance(targets, str) and not (with_pattern or (layers is None and pattern is None)):
        raise ModelError(
            f"{config.peft_type}: target_modules is the regular expression {targets!r}, beside "
            "which PEFT takes no layers_to_transform; say the layers in the expression"
        )
