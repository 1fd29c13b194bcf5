"""The families of models whose modules follow from their configuration without transformers."""

from __future__ import annotations

from importlib import import_module

from tunemath.space.blueprint.families.draft import Family, Unsupported
from tunemath.space.blueprint.families.fields import Fields

__all__ = ["Family", "Fields", "Unsupported", "family_of", "model_types"]

# Where each model type is described; only that file is read.
_FILES = {
    "decoders": (
        "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text",
        "glm", "glm4", "granite", "llama", "ministral3", "mistral", "nemotron", "olmo", "olmo2",
        "olmo3", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
    ),
    "mixtures": (
        "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "granitemoeshared",
        "llama4_text", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
    ),
    "hybrids": ("jamba", "qwen3_next"),
    "gpt": (
        "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt",
    ),
    "bart": ("bart", "blenderbot", "m2m_100", "mbart", "opt", "pegasus", "whisper"),
    "t5": ("mt5", "t5", "umt5"),
    "bert": ("bert", "camembert", "electra", "roberta", "xlm-roberta"),
    "encoders": ("albert", "distilbert", "modernbert"),
    "deberta": ("deberta", "deberta-v2"),
    "vision": ("deit", "dinov2", "vit"),
    "towers": (
        "clip", "clip_text_model", "clip_vision_model", "gemma3", "siglip", "siglip_text_model",
        "siglip_vision_model",
    ),
}  # fmt: skip
_FILE_OF = {model_type: file for file, types in _FILES.items() for model_type in types}


def model_types() -> tuple[str, ...]:
    """Return every model type that is described here."""
    return tuple(sorted(_FILE_OF))


def family_of(model_type: str) -> Family | None:
    """Return the description of a model type; None where there is none."""
    file = _FILE_OF.get(model_type)
    if file is None:
        return None
    families: dict[str, Family] = import_module(f"{__name__}.{file}").FAMILIES
    return families[model_type]
