"""The spectrum of what was learnt: from LoRA's factors, or from the weights before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tunemath.runner.mapped import read_mapped
from tunemath.runner.models import load_base, load_trained, why_not_merged
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.updates import read_update
from tunemath.space import LoraSpace, UpdateSpace, lora_factors
from tunemath.space.weights.differences import Difference
from tunemath.space.weights.recipe import NamesDiffer, Recipe, parts_of
from tunemath.space.weights.spectra import SpectrumSettings, weight_spectra
from tunemath.space.weights.summary import summarise

__all__ = ["adapter_spectrum", "dense_spectrum", "update_spectrum"]


def update_spectrum(model: ResolvedModel, folder: Path, space: UpdateSpace) -> dict[str, Any]:
    """Return ``spectrum.json``: of every changed weight the singular values of ΔW, and medians.

    ``skipped`` says why there are none, where the method changes no weight.
    """
    if isinstance(space, LoraSpace) and space.method == "lora":
        return adapter_spectrum(model, folder)
    why = why_not_merged(space)
    if why is not None:
        return _skipped(why)
    return dense_spectrum(model, folder)


def _skipped(why: str) -> dict[str, Any]:
    return {"modules": [], "summary": {}, "skipped": why}


def adapter_spectrum(model: ResolvedModel, adapter: Path) -> dict[str, Any]:
    """Return the spectra of a saved LoRA adapter, from its factors; no ΔW is formed."""
    weights = _Weights(model)
    return _product(Difference(f.name, weights.of(f.name), update=f) for f in lora_factors(adapter))


def dense_spectrum(model: ResolvedModel, folder: Path) -> dict[str, Any]:
    """Return the spectra of all weights of two dimensions that differ from the base's.

    They are read a tensor at a time, where the files name them as the model does.
    """
    try:
        recipe = read_update(model, folder).recipe
    except NamesDiffer:
        return _product(_of_models(model, folder))
    return _product(_of_tensors(recipe))


def _product(differences: Iterable[Difference]) -> dict[str, Any]:
    rows = list(weight_spectra(differences, SpectrumSettings(directions=0, intruders=0)))
    if not rows:
        return _skipped("no weight of two dimensions changed")
    return {"modules": rows, "summary": summarise(rows)}


def _of_tensors(recipe: Recipe) -> Iterator[Difference]:
    """Yield each matrix that changed, as the files give it."""
    for name, (_, change, shape) in recipe.changed():
        if len(shape) == 2 and change is not None:
            parts = [(before, after) for before, after, _ in parts_of(recipe, name)]
            before, after = (torch.cat(each) for each in zip(*parts, strict=True))
            if not torch.equal(before, after):
                yield Difference(change.module, before, after)


def _of_models(model: ResolvedModel, folder: Path) -> Iterator[Difference]:
    """Yield each matrix that changed; the base's are mapped from its files."""
    tuned = load_trained(model, folder, torch.device("cpu"), torch.float32)
    if hasattr(tuned, "merge_and_unload"):
        with quiet_libraries():
            tuned = tuned.merge_and_unload()
    after = dict(tuned.named_parameters())
    base = read_mapped(model.folder, model.id, model.trust_remote_code)
    for name, weight in base.named_parameters():
        before = weight.detach().float()
        if weight.dim() == 2 and not torch.equal(before, after[name]):
            yield Difference(name.removesuffix(".weight"), before, after[name].detach())


class _Weights:
    """Base weights by the live model's names, read one at a time where the files name them."""

    def __init__(self, model: ResolvedModel) -> None:
        self.model = model
        self.live: Any = None
        self.files: dict[str, Path] = {}
        for path in model.weight_files():
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def of(self, module: str) -> torch.Tensor:
        """Return a module's weight, its axes after the first taken together."""
        name: str | None = f"{module}.weight"
        if name not in self.files:  # a checkpoint of the bare body leaves the first part out
            name = next((key for key in self.files if f"{module}.weight".endswith(f".{key}")), None)
        if name is None:  # a tied head, or a weight that transformers renames as it loads
            if self.live is None:
                self.live = load_base(self.model, torch.device("cpu"), torch.float32)
            return self.live.get_submodule(module).weight.detach().flatten(1)
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name).flatten(1)
