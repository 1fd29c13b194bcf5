"""Tokens that an update added or ends its answers with, and whether its product knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tunemath.errors import ModelError
from tunemath.runner.loading import one_line
from tunemath.space.weights.provenance import read_provenance
from tunemath.space.weights.recipe import Recipe
from tunemath.storage import read_json

__all__ = ["new_tokens", "stop_tokens"]

_TOKENIZER = "tokenizer.json"


def new_tokens(base: Path, adapter: Path, recipe: Recipe | None) -> dict[str, Any]:
    """Return the tokens that the adapter's tokenizer has beyond the base's, and which are trained.

    A token is trained if the update changes its row; ``rows`` are those of the embedding then.
    """
    first, second = (_vocabulary(folder / _TOKENIZER) for folder in (base, adapter))
    added = sorted(set(second.values()) - set(first.values())) if second else []
    embedding = recipe.tensors[recipe.embedding] if recipe and recipe.embedding else None
    change = embedding.change if embedding else None
    rows = embedding.shape[0] if embedding else None
    if change is None:
        untrained = added
    elif change.token_rows is not None and change.value is None and change.step is None:
        untrained = [token for token in added if token not in change.tokens]
    else:
        untrained = []
    return {
        "added": added,
        "untrained": untrained,
        "beyond": [token for token in added if rows is not None and token >= rows],
        "rows": rows,
    }


def stop_tokens(adapter: Path, product: Path) -> dict[str, Any]:
    """Return the tokens that training ended answers with, and those that stop the product."""
    record = read_provenance(adapter)
    trained = record.settings.get("answers_end_with") if record is not None else None
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if not stops and (product / name).is_file():
            found = read_json(product / name).get("eos_token_id")
            stops = found if isinstance(found, list) else [found] if found is not None else []
    return {"trained": trained, "stops": stops}


def _vocabulary(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare exceptions
        raise ModelError(f"{path} cannot be read ({one_line(error)}); copy it again") from None
