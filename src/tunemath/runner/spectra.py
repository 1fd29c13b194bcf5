"""The spectrum of a saved LoRA adapter, from its factors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from tunemath.runner.resolve import ResolvedModel
from tunemath.space import effective_rank, energy, factor_singular_values, stable_rank

__all__ = ["adapter_spectrum"]

_FACTOR = re.compile(r"^base_model\.model\.(?P<name>.+)\.lora_A\.weight$")


def adapter_spectrum(model: ResolvedModel, adapter: Path, scale: float) -> dict[str, Any]:
    """Return ``spectrum.json``: every module's singular values, ranks and energy, and medians."""
    factors = load_file(adapter / "adapter_model.safetensors")
    norms = _WeightNorms(model)
    modules = []
    for key in sorted(factors):
        match = _FACTOR.match(key)
        if match:
            name = match["name"]
            a, b = factors[key], factors[key.replace("lora_A", "lora_B")]
            modules.append(_module(name, a, b, scale, norms.of(name)))
    return {"modules": modules, "summary": _summary(modules)}


def _module(
    name: str, a: np.ndarray, b: np.ndarray, scale: float, weight_norm: float
) -> dict[str, Any]:
    values = factor_singular_values(a.astype(np.float64), b.astype(np.float64), scale)
    layer = re.search(r"\.(\d+)\.", name)
    norm = float(np.linalg.norm(values))
    return {
        "name": name,
        "target": name.rpartition(".")[2],
        "layer": int(layer[1]) if layer else None,
        "shape": [int(b.shape[0]), int(a.shape[1])],
        "rank": int(a.shape[0]),
        "singular_values": [float(value) for value in values],
        "energy": [float(share) for share in energy(values)],
        "effective_rank": float(effective_rank(values)),
        "stable_rank": float(stable_rank(values)),
        "frobenius": norm,
        "relative_norm": norm / weight_norm,
    }


def _summary(modules: list[dict[str, Any]]) -> dict[str, Any]:
    energies = np.array([module["energy"] for module in modules])
    needed = [int(np.argmax(row >= 0.9)) + 1 for row in energies]
    targets = sorted({module["target"] for module in modules})
    return {
        "median_effective_rank": float(np.median([m["effective_rank"] for m in modules])),
        "rank_for_90_percent": float(np.median(needed)),
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


def _median(modules: list[dict[str, Any]], target: str, key: str) -> float:
    return float(np.median([module[key] for module in modules if module["target"] == target]))


class _WeightNorms:
    """Frobenius norms of base weights, read one tensor at a time."""

    def __init__(self, model: ResolvedModel) -> None:
        self.files: dict[str, Path] = {}
        for path in model.weight_files():
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def of(self, module: str) -> float:
        """Return ‖W‖_F of a module's weight."""
        name = f"{module}.weight"
        if name not in self.files:  # a checkpoint of the bare body leaves the first part out
            name = next(key for key in self.files if f"{module}.weight".endswith("." + key))
        with safe_open(self.files[name], framework="pt") as file:
            return float(file.get_tensor(name).double().norm())
