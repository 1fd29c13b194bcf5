"""Settings that PEFT refuses whatever the model."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.peft.config import AdapterConfig

__all__ = ["refuse_new_heads"]


def refuse_new_heads(config: AdapterConfig) -> None:
    """Raise for tasks whose new head PEFT trains by ``modules_to_save``, which this type hasn't.

    PEFT itself stops there with a TypeError. In sequence classification it leaves the head frozen.
    """
    if config["task_type"] in ("TOKEN_CLS", "QUESTION_ANS"):
        raise ModelError(
            f"{config.peft_type} has task_type {config['task_type']}, whose head must be trained, "
            "and no modules_to_save to train it; set task_type to None, which leaves it as it is"
        )
