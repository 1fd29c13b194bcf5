"""Merging an update into its base, streamed, and the proof that the product is the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunemath.errors import ModelError
from tunemath.runner.mapped import stored_dtype
from tunemath.runner.models import load_adapter, load_base
from tunemath.runner.origins import refuse_merged_before, refuse_other_base
from tunemath.runner.probing import (
    TOLERANCES,
    compared,
    probe_logits,
    probe_rows,
    vocabulary_of,
)
from tunemath.runner.progress import Progress, silent
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel, weights_hash
from tunemath.runner.trainer import Row
from tunemath.runner.updates import SavedUpdate, read_update
from tunemath.runner.verifying import beside, held, probed
from tunemath.space.weights.carried import carry
from tunemath.space.weights.merging import Kepts, first_of, form_of, write_product
from tunemath.space.weights.provenance import Provenance, Source
from tunemath.space.weights.reader import Weights
from tunemath.space.weights.recipe import NamesDiffer
from tunemath.space.weights.rounding import FORMATS
from tunemath.space.weights.verifying import head_of, summary
from tunemath.storage import new_folder

__all__ = ["MergeOptions", "merge_update"]

_FOUR_BIT = {"4bit": ("nf4", "q4_0")}


@dataclass(frozen=True)
class MergeOptions:
    """How a product is written and proven."""

    dtype: str | None = None
    """Of all floating-point weights; None keeps each as the base stores it."""
    shard: int | None = None
    """The most bytes of a file; None divides as the base does."""
    check: tuple[str, ...] = ()
    """Further formats in which it is measured what would be left of the update."""
    probe: bool = True
    """Whether logits are compared."""

    @property
    def forms(self) -> tuple[str, ...]:
        """The formats of `check`, one by one."""
        return tuple(form for each in self.check for form in _FOUR_BIT.get(each, (each,)))

    def __post_init__(self) -> None:
        known = (*FORMATS, *_FOUR_BIT)
        for each in self.check:
            if each not in known:
                raise ModelError(f"--check {each}: expected one of {', '.join(known)}")


def merge_update(
    model: ResolvedModel,
    adapter: Path,
    out: Path,
    options: MergeOptions,
    rows: tuple[Sequence[Row], str] | None = None,
    answers: Callable[[Path], dict[str, Any]] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the base with a saved update in it to a new folder, and return the proof.

    ``rows`` are token ids to compare logits on, and what to call them; built-in prompts if None.
    ``answers`` asks the finished folder something more, for the proof.
    The folder appears whole, with tokenizer and record, and only if logits agree within the
    tolerance of its dtype.
    """
    refuse_merged_before(adapter, model.folder)
    refuse_other_base(adapter, model.folder)
    with new_folder(out) as part:
        update = None
        try:
            update = read_update(model, adapter)
        except NamesDiffer as why:
            evidence = _merge_whole(model, adapter, part, options, str(why))
        else:
            evidence = _merge_streamed(update, part, options, progress)
            if options.probe:
                evidence["weights"] |= held(update, part, progress)
                evidence |= probed(update, part, rows, evidence["dtype"], options.forms, progress)
        found = evidence.get("adapter_vs_reloaded_merged")
        if found and not found["max_logit_difference"] <= evidence["tolerance"]:  # NaN, too
            raise ModelError(
                f"the merged model differs from the adapter by {found['max_logit_difference']:.2g} "
                f"in a logit (at most {evidence['tolerance']:g} in {evidence['dtype']}; KL "
                f"{found['kl']:.2g} nats); nothing was written. --dtype float32 rounds least, and "
                "--no-probe writes it as it is"
            )
        for source in (model.folder, adapter):  # an adapter's own tokenizer is the newer one
            carry(source, part)
        evidence["carried"] = _carried(part)
        evidence |= beside(model, adapter, part, update)
        if answers is not None:
            evidence["items"] = answers(part)
        sources = (
            Source("base", model.reference, evidence["base"]["sha256"]),
            Source("adapter", adapter.name, weights_hash(adapter)),
        )
        settings = {"dtype": options.dtype, "shard": options.shard}
        Provenance("merge", sources, settings, evidence).write(part)
    return {"folder": str(out), **evidence}


def _merge_streamed(
    update: SavedUpdate, part: Path, options: MergeOptions, progress: Progress
) -> dict[str, Any]:
    recipe = update.recipe
    own = form_of(recipe, options.dtype)
    kepts = write_product(
        recipe,
        part,
        options.dtype,
        options.shard,
        forms=options.forms,
        tick=partial(progress, "merging"),
    )
    return {
        "update": update.kind,
        "computed": update.computed or "from the update's files",
        "dtype": own,
        "weights": _weights(kepts, own, options.forms, len(recipe.tensors)),
        "head": head_of(recipe, update.blueprint, Weights(part)),
        "untied": list(recipe.untied),
    }


def _weights(kepts: Kepts, own: str, forms: Sequence[str], tensors: int) -> dict[str, Any]:
    """Return what is left of the update, by tensor and in all, in the product and as checked."""
    first = first_of(kepts)
    by_tensor = [
        {"name": name, "norm": kept.update**0.5, "share": kept.share, "error": kept.error}
        for name, kept in first.items()
    ]
    others = {form: {name: each[form] for name, each in kepts.items()} for form in forms}
    return {
        "tensors": tensors,
        "changed": len(kepts),
        "by_tensor": by_tensor,
        **summary(first),
        "forms": {own: summary(first)} | {form: summary(each) for form, each in others.items()},
    }


def _merge_whole(
    model: ResolvedModel, adapter: Path, part: Path, options: MergeOptions, why: str
) -> dict[str, Any]:
    """Merge in memory where the update's parameters are not those that the files hold."""
    dtype = options.dtype or str(stored_dtype(model.folder)).removeprefix("torch.")
    with quiet_libraries():
        tuned = load_adapter(load_base(model, torch.device("cpu"), torch.float32), adapter)
        rows, about = probe_rows(model.folder, vocabulary_of(tuned))
        reference = probe_logits(tuned, rows) if options.probe else None
        limit = {} if options.shard is None else {"max_shard_size": options.shard}
        merged = tuned.merge_and_unload().to(getattr(torch, dtype))
        merged.save_pretrained(part, safe_serialization=True, **limit)
    evidence: dict[str, Any] = {
        "update": "peft",
        "computed": f"in memory as a whole, not a tensor at a time: {why}",
        "dtype": dtype,
        "untied": [],
    }
    if reference is not None:
        again = load_base(replace(model, folder=part), torch.device("cpu"), torch.float32)
        evidence |= {
            "positions": len(reference),
            "prompts": about,
            "tolerance": TOLERANCES[dtype],
            "adapter_vs_reloaded_merged": compared(reference, probe_logits(again, rows)),
        }
    return evidence


def _carried(part: Path) -> list[str]:
    """Return what lies beside a product's weights and configuration."""
    weights = ("config.json", "model.safetensors.index.json")
    names = (path.name for path in part.iterdir())
    return sorted(n for n in names if n not in weights and not n.endswith(".safetensors"))
