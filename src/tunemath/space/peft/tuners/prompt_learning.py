"""What prompt, P- and prefix tuning share: the sizes that PEFT reads off the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.blueprint.config import TASKS
from tunemath.space.peft.change import Change, Part, Shared
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import one_of, whole

__all__ = ["Sizes", "encoder_change", "prompt_sizes", "word_embeddings"]

_HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

# Where PEFT looks, in its order. It asks the configuration object for num_hidden_layers, which is
# another name for one of the last three in some families.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
           "decoder_layers")  # fmt: skip
_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")


class Sizes(NamedTuple):
    """The sizes of a prompt encoder."""

    tokens: int
    """n, the virtual tokens."""
    submodules: int
    """2 for sequence-to-sequence tasks (encoder and decoder), else 1."""
    layers: int
    """L, the layers that a prefix reaches."""
    width: int
    """d: of a prompt the embedding's width; of a prefix that of all KV heads together."""
    hidden: int
    """h, the width inside the encoder's own layers."""

    @property
    def prompt(self) -> int:
        """N, the rows of a prompt: the virtual tokens of every submodule."""
        return self.tokens * self.submodules


def prompt_sizes(blueprint: Blueprint, config: AdapterConfig, *, kv: bool = False) -> Sizes:
    """Return what PEFT takes for the sizes; ``kv`` for prefixes, which hold keys and values.

    Fields that the adapter's configuration sets come before the model's.
    """
    one_of(config, "task_type", TASKS)
    tokens = whole(config, "num_virtual_tokens")
    if config["num_transformer_submodules"] is None:
        submodules = 2 if config["task_type"] == "SEQ_2_SEQ_LM" else 1
    else:
        submodules = whole(config, "num_transformer_submodules")
    model = _language_part(blueprint.config)
    layers = _size(config, "num_layers", {**model, **blueprint.config}, _LAYERS)
    width = _size(config, "token_dim", model, _WIDTH)
    heads = _size(config, "num_attention_heads", model, _HEADS)
    if kv and "num_key_value_heads" in model:
        width = _kv_width(model, model["num_key_value_heads"] or heads, width // heads)
    hidden = width
    if config.get("encoder_hidden_size") is not None:
        hidden = whole(config, "encoder_hidden_size")
    return Sizes(tokens, submodules, layers, width, hidden)


def _language_part(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model within one of several modalities."""
    return model.get("text_config") or model


def _size(config: AdapterConfig, key: str, model: Mapping[str, Any], names: tuple[str, ...]) -> int:
    value = config[key]
    if value is None:
        value = next((model[name] for name in names if model.get(name) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"{config.peft_type}: {key} is {value!r}, and of {', '.join(names)} the model's "
            f"configuration has none that PEFT could take; set {key} to a whole number"
        )
    return value


def _kv_width(model: Mapping[str, Any], heads: int, head_dim: int) -> int:
    """Return the width of all key (or value) heads; where layers differ, of the widest heads."""
    if model.get("global_head_dim") is not None:
        return model["global_head_dim"] * (model.get("num_global_key_value_heads") or heads)
    layers = model.get("per_layer_config")
    if layers is not None:
        sizes = [(model.get("head_dim") or head_dim, heads)]
        sizes += [
            (each.get("head_dim", sizes[0][0]), each.get("num_key_value_heads", heads))
            for each in layers.values()
        ]
        head_dim, heads = max(sizes, key=lambda size: size[0])
    elif model.get("head_dim") is not None:
        head_dim = model["head_dim"]
    return head_dim * heads


def word_embeddings(blueprint: Blueprint) -> Module | None:
    """Return what PEFT takes for the word embeddings: the first weight with a row a token."""
    if not blueprint.config:
        return blueprint.by_name.get(blueprint.embedding)
    vocab = _language_part(blueprint.config).get("vocab_size")
    if vocab is None:
        raise ModelError(
            f"this {blueprint.model_type or 'model'} has no vocab_size in its configuration; "
            "prompt learning puts virtual tokens before a text, so it needs a language model"
        )
    if "embeddings.word_embeddings" in blueprint.by_name:
        return blueprint.by_name["embeddings.word_embeddings"]
    return next((m for m in blueprint.modules for _, shape in m.tensors if shape[:1] == (vocab,)),
                None)  # fmt: skip


def encoder_change(
    blueprint: Blueprint,
    config: AdapterConfig,
    parts: tuple[Part, ...],
    trainable: int,
    *notes: str,
) -> Change:
    """Return the change that a prompt encoder is: it lies beside the model, which is frozen."""
    embeddings = word_embeddings(blueprint)
    shared = [Shared("prompt_encoder", parts, trainable)]
    if embeddings is not None and _saved_twice(config):
        copies = tuple(Part(f"modules_to_save.{n}", shape) for n, shape in embeddings.tensors)
        shared.append(Shared("word_embeddings", copies, embeddings.parameters))
        notes = (
            *notes,
            "PEFT holds the word embeddings under a second name and makes a second trainable copy "
            f"of them for modules_to_save; that copy ({embeddings.parameters} parameters) is never "
            "used",
        )
    # PEFT freezes the model's children, which leaves what lies at its root as it was.
    root = blueprint.by_name.get("")
    unfrozen = {name for name, _ in root.tensors} - blueprint.unlearnable if root else set[str]()
    return Change(shared=tuple(shared), unfrozen=frozenset(unfrozen), notes=notes)


def _saved_twice(config: AdapterConfig) -> bool:
    """Whether PEFT's wrapper for heads meets the second name that it gave the embeddings."""
    saved = config["modules_to_save"] or ()
    return config["task_type"] in _HEADED and "word_embeddings".endswith(tuple(saved))
