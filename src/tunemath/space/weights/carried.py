"""What goes with a model's weights wherever they go: configuration, tokenizer, template, code."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunemath.storage import storage_errors

__all__ = ["CARRIED", "carry"]

_CONFIG = "config.json"
CARRIED = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "generation_config.json",
    "*processor_config.json",
    "*.py",
)
"""Patterns of what lies beside weights and is no part of them."""


def carry(source: Path, target: Path, config: bool = True) -> None:
    """Copy what a model's folder has beside its weights to another that holds new weights.

    A config.json that is there already stays, since it may say what differs; any other file of the
    same name is the source's afterwards. ``config`` is false for an adapter, which has another.
    """
    with storage_errors(target):
        if config and (source / _CONFIG).is_file() and not (target / _CONFIG).exists():
            shutil.copyfile(source / _CONFIG, target / _CONFIG)
        for pattern in CARRIED:
            for path in source.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, target / path.name)
