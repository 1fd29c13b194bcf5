"""An adapter that PEFT saved, made to say what others can use."""

from __future__ import annotations

from pathlib import Path

from tunemath.runner.resolve import ResolvedModel
from tunemath.space import read_blueprint
from tunemath.space.checkpoint import read_tensor_headers
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.portable import portable, shortest_targets
from tunemath.storage import read_json, write_json

__all__ = ["make_portable"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FIRST = (".lora_A.weight", ".lora_embedding_A")


def make_portable(folder: Path, model: ResolvedModel) -> None:
    """Rewrite the configuration of an adapter of ``model``: its base's name, its targets' shortest.

    A folder without adapter_config.json is left as it is.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return
    values = {
        **read_json(path),
        "base_model_name_or_path": model.reference,
        "revision": model.revision,
    }
    keys = read_tensor_headers(folder / _WEIGHTS)
    adapted = {
        key.removeprefix(_PREFIX).removesuffix(end)
        for key in keys
        for end in _FIRST
        if key.endswith(end)
    }
    if adapted:
        blueprint = read_blueprint(model.folder)
        values |= shortest_targets(blueprint, AdapterConfig.read(folder), adapted)
    write_json(path, portable(values))
