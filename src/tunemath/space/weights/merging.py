"""A base with an update in it, or out of it again, written tensor by tensor and measured meanwhile.

Each changed tensor is computed in float32 and rounded once; the others are copied as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tunemath.space.checkpoint import read_json
from tunemath.space.weights.reader import row_blocks
from tunemath.space.weights.recipe import Recipe, parts_of
from tunemath.space.weights.rounding import Kept, rounded
from tunemath.space.weights.writer import in_files_of, sharded, write_checkpoint
from tunemath.storage import write_json

__all__ = ["Kepts", "first_of", "form_of", "write_product"]

Kepts = dict[str, dict[str, Kept]]
"""By tensor, then by format, how much of ΔW is left."""


def write_product(
    recipe: Recipe,
    folder: Path,
    dtype: str | None = None,
    shard: int | None = None,
    *,
    subtract: bool = False,
    forms: Sequence[str] = (),
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Kepts:
    """Write weights, index and config.json of the product; return what is left of each ΔW.

    ``dtype`` is that of all floating-point tensors, the base's own if None; ``shard`` the most
    bytes of a file, divided as the base if None. ``forms`` are further formats in which it is
    measured what would be left; under the product's own, it is what is.
    """
    plan = recipe.plan(dtype)
    kepts: Kepts = {}

    def make(name: str) -> Iterator[Tensor]:
        each, wanted = recipe.tensors[name], plan[name].dtype
        if each.change is None:
            yield from (recipe.base.read(each.source, r).to(wanted) for r in row_blocks(each.shape))
            return
        own = str(wanted).removeprefix("torch.")
        kepts[name] = {form: Kept() for form in dict.fromkeys((own, *forms))}
        for before, after, delta in parts_of(recipe, name, subtract):
            made = after.to(wanted)
            yield made
            step = -delta if subtract else delta
            for form, kept in kepts[name].items():
                there = made.float() if form == own else rounded(after, form)
                kept.add(there - rounded(before, form), step)

    headers = {name: recipe.base.tensors[i.source] for name, i in recipe.tensors.items()}
    files = in_files_of(headers) if shard is None else sharded(plan, shard)
    write_checkpoint(folder, plan, make, files, lambda done: tick(done, len(plan)))
    write_json(folder / "config.json", _config(recipe, dtype))
    return kepts


def first_of(kepts: Kepts) -> dict[str, Kept]:
    """Return what is left in the product itself, by tensor."""
    return {name: next(iter(each.values())) for name, each in kepts.items()}


def form_of(recipe: Recipe, dtype: str | None) -> str:
    """Return the dtype in which most of the product's changed numbers are."""
    plan = recipe.plan(dtype)
    sizes: dict[str, int] = {}
    for name, each in recipe.changed():
        form = str(plan[name].dtype).removeprefix("torch.")
        sizes[form] = sizes.get(form, 0) + torch.Size(each.shape).numel()
    return max(sizes, key=lambda form: sizes[form], default=dtype or "float32")


def _config(recipe: Recipe, dtype: str | None) -> dict:
    """Return the base's configuration with what the product has otherwise."""
    config = read_json(recipe.base.folder / "config.json")
    inner = [config, *(v for k, v in config.items() if k == "text_config" and isinstance(v, dict))]
    rows = recipe.tensors[recipe.embedding].shape[0] if recipe.embedding else None
    grew = rows is not None and rows != recipe.base.tensors[recipe.embedding].shape[0]
    for each in inner:
        if recipe.untied:
            each["tie_word_embeddings"] = False
        if dtype is not None:
            each.update({key: dtype for key in ("dtype", "torch_dtype") if key in each})
        if grew and "vocab_size" in each:
            each["vocab_size"] = rows
    if dtype is not None and not config.keys() & {"dtype", "torch_dtype"}:
        config["dtype"] = dtype
    return config
