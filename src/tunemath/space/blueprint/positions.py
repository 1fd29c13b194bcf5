"""How many positions a model has: a table that ends, or the length that it was trained for.

A table of positions has no row for a token beyond its end, so the model fails there. Rotary and
relative positions can be computed for any token; a configuration says up to which the model was
trained, and by how much scaling has extended that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunemath.errors import ModelError
from tunemath.shown import shown
from tunemath.space.blueprint.record import Blueprint

__all__ = ["Positions", "positions_of"]

_TABLES = frozenset(
    {"wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed"}
)
# Models that build their table when they are made, so that no weight tells its size.
_BUILT = {
    "codegen": "n_positions",
    "ctrl": "n_positions",
    "gptj": "n_positions",
    "mpt": "max_seq_len",
}
# Models that count positions from the one after the padding token's id.
_AFTER_PADDING = frozenset(
    {
        "altclip", "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer",
        "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
        "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
_PADDING = 1
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True)
class Positions:
    """The tokens that a model can tell apart by position."""

    limit: int | None
    """The most tokens of a row; None where nothing says so."""
    ends: bool
    """Whether the model fails beyond the limit; else it was only not trained there."""


def positions_of(blueprint: Blueprint) -> Positions:
    """Return how many positions a model has, virtual tokens among them.

    Raises `ModelError` where the padding token's id leaves none.

    A model with ALiBi or relative positions, or without attention, has no limit. Of rotary
    positions it is the configuration's ``max_position_embeddings``, or what scaling extends it to.
    """
    table = _table(blueprint)
    if table is not None:
        return Positions(table, True)
    config = _text_config(blueprint.config)
    if blueprint.model_type in _BUILT:
        return Positions(_count(config.get(_BUILT[blueprint.model_type])), True)
    if config.get("alibi") or "relative_attention_num_buckets" in config:
        return Positions(None, False)
    lengths = [_count(config.get(key)) for key in _LENGTHS]
    known = max((length for length in lengths if length is not None), default=None)
    return Positions(None if known is None else _extended(known, config), False)


def _table(blueprint: Blueprint) -> int | None:
    """Return the usable rows of the smallest table of positions beside the token embeddings."""
    beside = blueprint.embedding.rpartition(".")[0]
    rows = [
        module.shape[0]
        for module in blueprint.modules
        if module.kind == "embedding"
        and module.short_name in _TABLES
        and (not beside or module.name.startswith(f"{beside}."))
    ]
    if not rows or not blueprint.embedding:
        return None
    config = _text_config(blueprint.config)
    if blueprint.model_type in _AFTER_PADDING:
        padding = config.get("pad_token_id", _PADDING)
        left = min(rows) - 1 - (padding if type(padding) is int else _PADDING)
        if not 0 < left < min(rows):
            raise ModelError(
                f"the configuration has pad_token_id {shown(padding)}, and positions are counted "
                f"from the one after it in a table of {min(rows):,}; correct it"
            )
        return left
    # Some tables begin with two rows that stand for padding, and the configuration leaves them out.
    stated = _count(config.get("max_position_embeddings"))
    return min(rows) if stated is None else min(*rows, stated)


def _extended(known: int, config: Mapping[str, Any]) -> int:
    """Return the length that the scaling of rotary positions states, if it is the larger one.

    A scaling that does not say from which length it starts is taken to start from the stated one:
    too many, where that is the extended one.
    """
    lengths = [known]
    for scaling in _scalings(config):
        factor = scaling.get("factor")
        original = scaling.get("original_max_position_embeddings")
        if isinstance(factor, int | float) and factor > 1:
            lengths.append(int(factor * (_count(original) or known)))
    return max(lengths)


def _scalings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the records of rotary scaling: one, or one for each kind of layer."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, Mapping):
            yield value
            yield from (inner for inner in value.values() if isinstance(inner, Mapping))


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return {**text, **config} if isinstance(text, Mapping) else config


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
