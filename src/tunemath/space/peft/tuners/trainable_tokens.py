"""A few rows of an embedding, trained in its place."""

from __future__ import annotations

from collections.abc import Iterator

from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets, require_kinds
from tunemath.space.peft.tuners.refused import refuse_new_heads
from tunemath.space.peft.tying import row_count

__all__ = ["trainable_tokens"]


def trainable_tokens(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the new rows of n tokens, D wide: ``n D`` an embedding.

    Layers tied to the input embedding follow its rows, unless they are targets themselves.
    """
    refuse_new_heads(config)
    if config["target_modules"] is None:
        config = config.having(target_modules=blueprint.embedding or "embed_tokens")
    modules = require_kinds(find_targets(blueprint, config), config, ("embedding", "linear"))
    groups = []
    for alike in grouped(modules).values():
        n = row_count(config, "token_indices", alike[0], config["token_indices"])
        d = alike[0].shape[-1]
        groups.append(Group(alike, (Part("trainable_tokens_delta", (n, d)),), n * d))
    return Change(tuple(groups), notes=tuple(_parted(blueprint, modules)))


def _parted(blueprint: Blueprint, targets: tuple[Module, ...]) -> Iterator[str]:
    """Yield a note on each weight whose rows PEFT holds more than once."""
    holders: dict[str, list[str]] = {}
    for target in targets:
        weight = f"{target.name}.weight"
        holders.setdefault(blueprint.tied.get(weight, weight), []).append(target.name)
    for names in holders.values():
        if len(names) > 1:
            yield (
                f"{' and '.join(names)} are tied, and PEFT trains rows of its own for each, which "
                "then differ; target only the input embedding for rows that stay the same"
            )
