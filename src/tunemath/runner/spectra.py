"""The spectrum of what was learnt: from LoRA's factors, or from the weights before and after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from tunemath.runner.models import load_adapter, load_base, why_not_merged
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.space import (
    LoraSpace,
    UpdateSpace,
    effective_rank,
    energy,
    lora_factors,
    stable_rank,
)

__all__ = ["adapter_spectrum", "dense_spectrum", "update_spectrum"]

_SHOWN = 64  # of a dense update's singular values
_MOST = 3e8  # elements of changed weights whose singular values take minutes, not hours


def update_spectrum(model: ResolvedModel, folder: Path, space: UpdateSpace) -> dict[str, Any]:
    """Return ``spectrum.json``: of every changed weight the singular values of ΔW, and medians.

    ``skipped`` says why there are none, where the method changes no weight or the weights are many.
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
    norms = _WeightNorms(model)
    return _product(
        [
            _module(f.name, f.singular_values(), f.shape, norms.of(f.name), shown=f.rank)
            for f in lora_factors(adapter)
        ]
    )


def dense_spectrum(model: ResolvedModel, folder: Path) -> dict[str, Any]:
    """Return the spectra of all weights of two dimensions that differ from the base's."""
    device, dtype = torch.device("cpu"), torch.float32
    base = load_base(model, device, dtype)
    with quiet_libraries():
        tuned = load_adapter(load_base(model, device, dtype), folder).merge_and_unload()
    changed = list(_changed(base, tuned))
    elements = sum(weight.numel() for _, weight, _ in changed)
    if elements > _MOST:
        return _skipped(f"{elements:.3g} changed weights are too many for exact singular values")
    shown = min((_SHOWN, *(min(weight.shape) for _, weight, _ in changed)))
    modules = []
    for name, before, after in changed:
        delta = (after.double() - before.double()).numpy()
        values = np.linalg.svd(delta, compute_uv=False)
        norm = float(before.double().norm())
        modules.append(_module(name, values, delta.shape, norm, shown=shown))
    if not modules:
        return _skipped("no weight of two dimensions changed")
    return _product(modules)


def _changed(base: Any, tuned: Any) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the name of each matrix that changed, and what it was and is."""
    after = dict(tuned.named_parameters())
    for name, weight in base.named_parameters():
        if weight.dim() == 2 and not torch.equal(weight, after[name]):
            yield name.removesuffix(".weight"), weight.detach(), after[name].detach()


def _module(
    name: str, values: np.ndarray, shape: tuple[int, int], weight_norm: float, shown: int
) -> dict[str, Any]:
    layer = re.search(r"\.(\d+)\.", name)
    norm = float(np.linalg.norm(values))
    shares = energy(values)
    return {
        "name": name,
        "target": name.rpartition(".")[2],
        "layer": int(layer[1]) if layer else None,
        "shape": [int(size) for size in shape],
        "rank": len(values),
        "singular_values": [float(value) for value in values[:shown]],
        "energy": [float(share) for share in shares[:shown]],
        "rank_for_90_percent": int(np.argmax(np.asarray(shares) >= 0.9)) + 1,
        "effective_rank": float(effective_rank(values)),
        "stable_rank": float(stable_rank(values)),
        "frobenius": norm,
        "relative_norm": norm / weight_norm,
    }


def _product(modules: list[dict[str, Any]]) -> dict[str, Any]:
    # Of a matrix with fewer rows than the rank there are fewer values; together they are all.
    longest = max(len(module["energy"]) for module in modules)
    energies = [
        [*module["energy"], *module["energy"][-1:] * (longest - len(module["energy"]))]
        for module in modules
    ]
    targets = sorted({module["target"] for module in modules})
    summary = {
        "median_effective_rank": float(np.median([m["effective_rank"] for m in modules])),
        "rank_for_90_percent": float(np.median([m["rank_for_90_percent"] for m in modules])),
        "energy": np.median(energies, axis=0).tolist(),
        "by_target": [
            {
                "target": target,
                "median_effective_rank": _median(modules, target, "effective_rank"),
                "relative_norm": _median(modules, target, "relative_norm"),
            }
            for target in targets
        ],
    }
    return {"modules": modules, "summary": summary}


def _median(modules: list[dict[str, Any]], target: str, key: str) -> float:
    return float(np.median([module[key] for module in modules if module["target"] == target]))


class _WeightNorms:
    """Frobenius norms of base weights, read one tensor at a time where the files name it."""

    def __init__(self, model: ResolvedModel) -> None:
        self.model = model
        self.live: Any = None
        self.files: dict[str, Path] = {}
        for path in model.weight_files():
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def of(self, module: str) -> float:
        """Return ‖W‖_F of a module's weight."""
        name: str | None = f"{module}.weight"
        if name not in self.files:  # a checkpoint of the bare body leaves the first part out
            name = next((key for key in self.files if f"{module}.weight".endswith(f".{key}")), None)
        if name is None:  # a tied head, or a weight that transformers renames as it loads
            if self.live is None:
                self.live = load_base(self.model, torch.device("cpu"), torch.float32)
            return float(self.live.get_submodule(module).weight.detach().double().norm())
        with safe_open(self.files[name], framework="pt") as file:
            return float(file.get_tensor(name).double().norm())
