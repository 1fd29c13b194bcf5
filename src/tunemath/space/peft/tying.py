"""Layers tied to the input embedding: single rows that are trained, and adapters tied alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import compiled
from tunemath.space.peft.match import near_names

__all__ = ["row_count", "tied_modules", "token_rows", "with_tied_saved", "with_tied_targets"]

# The last parts of names by which PEFT knows embeddings and heads.
_EMBEDDINGS = ("embed_tokens", "lm_head")


def tied_modules(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the modules whose weight is the input embedding's; none where the config unties."""
    if blueprint.config.get("tie_word_embeddings") is False:
        return ()
    own = f"{blueprint.embedding}.weight"
    root = blueprint.tied.get(own, own)
    same = {name for name, first in blueprint.tied.items() if first == root} | {root}
    return tuple(sorted(name.rpartition(".")[0] for name in same - {own}))


def with_tied_saved(blueprint: Blueprint, config: AdapterConfig) -> AdapterConfig:
    """Return what ``ensure_weight_tying`` makes of saved modules: the embedding is copied once."""
    tied = tied_modules(blueprint) if config.get("ensure_weight_tying") else ()
    saved = config.get("modules_to_save") or ()
    if not tied or not _has_embedding(saved):
        return config
    kept = _without(saved, tied)
    return config.having(modules_to_save=list(dict.fromkeys([*kept, blueprint.embedding])))


def with_tied_targets(
    blueprint: Blueprint, config: AdapterConfig
) -> tuple[AdapterConfig, tuple[str, ...]]:
    """Return what ``ensure_weight_tying`` makes of targets, and the modules that follow one.

    Where the embedding or what is tied to it is a target, the embedding is adapted, and all that
    are tied to it follow, excluded or not.
    """
    tied = tied_modules(blueprint) if config["ensure_weight_tying"] else ()
    asked, embedding = config["target_modules"] or (), blueprint.embedding
    saved = config["modules_to_save"] or ()
    if not tied or embedding in saved or not _has_embedding(asked):
        return config, ()
    if isinstance(asked, str):
        return config.having(target_modules=rf"(?:{asked}|^{re.escape(embedding)}$)"), tied
    names = dict.fromkeys([*_without(asked, tied), embedding])
    return config.having(target_modules=list(names)), tied


def _has_embedding(names: str | Collection[str]) -> bool:
    """Whether names, or a regular expression, mean an embedding by what it is often called."""
    if isinstance(names, str):
        return any(compiled(names, names).fullmatch(name) for name in _EMBEDDINGS)
    return any(name.rpartition(".")[2] in _EMBEDDINGS for name in names)


def _without(names: Collection[str], tied: Sequence[str]) -> list[str]:
    """Return the names without the first that means each tied module."""
    kept = list(names)
    for module in tied:
        meant = (n for n in kept if compiled(rf"(^|.*\.){n}($|\..*)", n).match(module))
        first = next(meant, None)
        if first is not None:
            kept.remove(first)
    return kept


def token_rows(
    blueprint: Blueprint, config: AdapterConfig, change: Change, saved: Collection[str]
) -> tuple[Group, ...]:
    """Return the rows of ``trainable_token_indices``, ``n D`` for n tokens of D numbers.

    A list means the input embedding; layers tied to a trained one follow its rows. ``saved`` are
    the modules that are trained whole, which can't have such rows.
    """
    asked = config["trainable_token_indices"]
    asked = asked if isinstance(asked, Mapping) else {blueprint.embedding or "embed_tokens": asked}
    adapted = {module.name for module in change.targets}
    tied = [
        f"{name}.base_layer" if name in adapted else name
        for name in (tied_modules(blueprint) if _weights_tied(blueprint) else ())
    ]
    same = [name for name in asked if _is_tied(blueprint, tied, name)] if len(asked) > 1 else []
    differ = any(asked[name] != asked[same[0]] for name in same)
    if differ and config.get("ensure_weight_tying"):
        raise ModelError(
            f"{config.peft_type}: trainable_token_indices differ for {' and '.join(same)}, which "
            "are tied; give the same tokens, or turn ensure_weight_tying off"
        )
    follow = frozenset() if differ or not same[1:] else frozenset(same) & frozenset(tied)
    rows: dict[str, int] = {}
    for name, tokens in asked.items():
        if name not in follow:
            for module in _meant(blueprint, config, name):
                count = row_count(config, "trainable_token_indices", module, tokens)
                rows.setdefault(module.name, count)
    for name in rows:
        if name in adapted or name in saved:
            other = "modules_to_save, which trains all of it" if name in saved else "target_modules"
            raise ModelError(
                f"{config.peft_type}: {name} is in trainable_token_indices and in {other}; leave "
                "it out of one"
            )
    wrapped = [blueprint.by_name[name] for name in rows]
    return tuple(
        Group(alike, (Part("token_adapter.trainable_tokens_delta", (n, d)),), n * d)
        for (n, d), alike in grouped(wrapped, lambda m: (rows[m.name], m.shape[-1])).items()
    )


def _weights_tied(blueprint: Blueprint) -> bool:
    return bool(blueprint.config.get("tie_word_embeddings", blueprint.tied_head))


def _is_tied(blueprint: Blueprint, tied: Sequence[str], name: str) -> bool:
    return bool(tied) and (
        blueprint.embedding.endswith(name)
        or any(each.endswith(name) or name in each.split(".") for each in tied)
    )


def _meant(blueprint: Blueprint, config: AdapterConfig, name: str) -> list[Module]:
    """Return the modules whose names end so; no dot is asked for before the ending."""
    every = (*blueprint.containers, *blueprint.by_name)
    names = list(dict.fromkeys(each for each in every if each.endswith(name)))
    if not names:
        near = ", ".join(near_names(blueprint, name))
        hint = f" (near it: {near})" if near else ""
        raise ModelError(
            f"{config.peft_type}: trainable_token_indices has {name!r}, which matches no module"
            f"{hint}; the input embedding is {blueprint.embedding or 'not known'}"
        )
    for each in names:
        if each not in blueprint.by_name or blueprint.by_name[each].kind not in (
            "embedding",
            "linear",
        ):
            raise ModelError(
                f"{config.peft_type}: trainable_token_indices has {name!r}, which matches {each}, "
                "neither an embedding nor a linear layer; give the embedding's full name"
            )
    return [blueprint.by_name[each] for each in names]


def row_count(config: AdapterConfig, field: str, module: Module, tokens: Any) -> int:
    """Return the number of token ids, each of which must be a row of the module."""
    rows = module.shape[0]
    given = tokens if isinstance(tokens, list | tuple) else [tokens]
    wrong = [each for each in given if not (isinstance(each, int) and -rows <= each < rows)]
    if wrong or given is not tokens:
        raise ModelError(
            f"{config.peft_type}: {field} has {(wrong or given)[0]!r:.60} for {module.name}; "
            f"expected a list of numbers from 0 to {rows - 1}"
        )
    return len(given)
