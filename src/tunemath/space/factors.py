"""The factors of a saved LoRA adapter, module by module, from its two files alone.

``ΔW = s·B A`` with ``s = α/r``, or ``α/√r`` under rsLoRA; α and r may differ by module
(``alpha_pattern``, and the shape of A). No base model is read, no ΔW is formed, no torch is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunemath.errors import ModelError
from tunemath.shown import one_line, shown
from tunemath.space.checkpoint import TensorHeader, not_finite, read_array, read_tensor_headers
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.names import pattern_value
from tunemath.space.spectrum import factor_singular_values

__all__ = [
    "MOVES_BASE",
    "Factors",
    "lora_factors",
    "lora_scale",
    "nonzero",
    "not_a_product",
    "read_matrix",
]

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_MOST_ALPHA = 1e6
# Initialisations that subtract their first product from the base.
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Variants that put more into the update than the two factors, or use it for some inputs only.
_OTHERWISE = ("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
              "use_bdlora", "use_qalora")  # fmt: skip
# PEFT's names: a linear or convolution's factors, an embedding's.
_A = re.compile(r"^base_model\.model\.(?P<name>.+)\.lora_(embedding_)?A(\.weight)?$")


@dataclass(frozen=True)
class Factors:
    """A module's update in factors."""

    name: str
    """The module's name in the model."""
    A: np.ndarray
    """(r, d_in); a convolution's d_in is channels × kernel, an embedding's the vocabulary."""
    B: np.ndarray
    """(d_out, r)."""
    scale: float
    """s of ΔW = s·B A."""
    transposed: bool = False
    """Whether the weight is stored as (d_in, d_out): an embedding, or GPT-2's Conv1D."""

    @property
    def rank(self) -> int:
        """r, the most singular values that can differ from zero."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of s·B A."""
        return self.B.shape[0], self.A.shape[1]

    def singular_values(self) -> np.ndarray:
        """Return those of ΔW, (min(r, d_out, d_in),) float64, descending."""
        a, b = (factor.astype(np.float64) for factor in (self.A, self.B))
        return np.asarray(factor_singular_values(a, b, self.scale))

    def delta(self) -> np.ndarray:
        """Return ΔW as the weight is stored, its axes after the first taken together; float32."""
        a, b = (factor.astype(np.float32) for factor in (self.A, self.B))
        product = np.float32(self.scale) * (b @ a)
        return product.T if self.transposed else product

    def directions(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first left (m, k) and right (n, k) singular vectors of ΔW as it is stored.

        k is at most ``count``, and the number of singular values that differ from zero.
        """
        (q_out, r_out), (q_in, r_in) = (
            np.linalg.qr(factor.astype(np.float64)) for factor in (self.B, self.A.T)
        )
        u, values, vh = np.linalg.svd(self.scale * (r_out @ r_in.T))
        k = min(count, nonzero(values))
        left, right = q_out @ u[:, :k], q_in @ vh[:k].T
        return (right, left) if self.transposed else (left, right)


def nonzero(values: np.ndarray) -> int:
    """Return how many descending singular values are more than rounding."""
    return int(np.sum(values > 1e-12 * values[0])) if len(values) else 0


def lora_factors(adapter: Path) -> Iterator[Factors]:
    """Yield the factors of each module, by name, read when its turn comes.

    ``adapter`` is a folder with PEFT's adapter_config.json and adapter_model.safetensors. Raises
    `ModelError` where ΔW is no product of the two: another tuner type, DoRA, an initialisation that
    changed the base; and where a factor lacks its partner.
    """
    config = AdapterConfig.read(adapter / _CONFIG)
    why = not_a_product(config)
    if why:
        raise ModelError(f"{adapter}: {why}, so its update is no product of LoRA's two factors")
    tensors = read_tensor_headers(adapter / _WEIGHTS)
    found = sorted((match["name"], key) for key in tensors if (match := _A.match(key)))
    if not found:
        raise ModelError(f"{adapter / _WEIGHTS} has no lora_A; it holds {_some(tensors)}")
    for name, key in found:
        partner = re.sub(r"A(\.weight)?$", r"B\1", key)
        if partner not in tensors:
            raise ModelError(f"{adapter / _WEIGHTS} has {key} without {partner}; it is damaged")
        a, b = (read_matrix(adapter, each, tensors[each]) for each in (key, partner))
        if a.shape[0] != b.shape[1]:
            raise ModelError(
                f"{adapter / _WEIGHTS}: {key} {a.shape} and {partner} {b.shape} do not go "
                "together; expected (r, d_in) and (d_out, r)"
            )
        transposed = "embedding" in key or bool(config["fan_in_fan_out"])
        yield Factors(name, a, b, lora_scale(config, name, len(a)), transposed)


def not_a_product(config: AdapterConfig) -> str:
    """Return why the ΔW of an adapter is not s·B A; empty if it is."""
    start = config.get("init_lora_weights")
    if config.peft_type != "LORA":
        return f"it is a {config.peft_type} adapter"
    if config["use_dora"]:
        return "DoRA scales the weight's rows besides"
    if isinstance(start, str) and start.lower().startswith(MOVES_BASE):
        return f"init_lora_weights {start!r} took the first B A away from the base's weights"
    for name in _OTHERWISE:
        if config[name] not in (None, False):
            return f"{name} is set, which computes otherwise"
    if config["target_parameters"]:
        return "target_parameters have factors for several matrices in one"
    return ""


def read_matrix(folder: Path, name: str, header: TensorHeader) -> np.ndarray:
    """Return a stored tensor as a matrix, its axes after the first taken together."""
    array = read_array(folder, header)
    if not array.ndim:
        raise ModelError(
            f"{folder / header.file}: {one_line(name, 200)} has no axes; it is damaged"
        )
    odd = array.size - int(np.isfinite(array).sum())
    if odd:
        raise not_finite(folder / header.file, name, odd)
    return array.reshape(array.shape[0], -1)


def lora_scale(config: AdapterConfig, name: str, rank: int) -> float:
    """Return s of a module's ``ΔW = s·B A``, by the first of ``alpha_pattern`` that means it."""
    alpha = pattern_value(config["alpha_pattern"] or {}, name, config["lora_alpha"])
    known = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not known or not abs(alpha) <= _MOST_ALPHA:
        raise ModelError(
            f"the adapter has lora_alpha {shown(alpha)} for {one_line(name, 200)}; expected a "
            f"number up to {_MOST_ALPHA:,.0f}"
        )
    return alpha / (math.sqrt(rank) if config["use_rslora"] else rank)


def _some(tensors: dict[str, Any]) -> str:
    names = list(tensors)
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "nothing"
