"""ΔW of PEFT's tuners that keep it in factors, from the adapter's two files alone.

========  ===================================================================  ==================
tuner     ΔW                                                                   source
========  ===================================================================  ==================
LoRA      ``s·B A``                                                            arXiv 2106.09685
AdaLoRA   ``α/(r + 10⁻⁵)·B diag(E) A``, r the rank before its budget was cut   arXiv 2303.10512
VeRA      ``diag(b) B diag(d) A``, A and B parts of two shared matrices        arXiv 2310.11454
DeLoRA    ``B diag(λ/(r‖a_i‖‖b_i‖)) A diag(‖w_j‖)``, norms of at least 10⁻⁴    arXiv 2503.18225
LoHa      ``α/r·(B₁A₁) ⊙ (B₂A₂)``, a product of rank up to r²                  arXiv 2108.06098
LoKr      ``α/r·W₁ ⊗ W₂``, whose singular values are products of theirs        arXiv 2309.14859
========  ===================================================================  ==================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tunemath.errors import ModelError
from tunemath.space.checkpoint import TensorHeader, read_tensor_headers
from tunemath.space.factors import Factors, lora_factors, nonzero, read_matrix
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.names import pattern_value

__all__ = ["Kronecker", "Saved", "saved_factors"]

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_SHARED = re.compile(r"^base_model\.(?P<part>vera_[AB])$")
_PARTS = {
    "LORA": r"lora_(embedding_)?[AB](\.weight)?",
    "ADALORA": r"lora_[ABE]",
    "VERA": r"vera_lambda_[bd]",
    "DELORA": r"delora_(A|B|lambda|w_norm)",
    "LOHA": r"hada_w[12]_[ab]",
    "LOKR": r"lokr_w[12](_[ab])?",
}
ShapeOf = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class Kronecker:
    """A module's update as a Kronecker product."""

    name: str
    """The module's name in the model."""
    first: np.ndarray
    """W₁ (a, b)."""
    second: np.ndarray
    """W₂ (c, d); ΔW is (a c, b d)."""
    scale: float
    """s of ΔW = s·W₁ ⊗ W₂."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        (a, b), (c, d) = self.first.shape, self.second.shape
        return a * c, b * d

    @property
    def rank(self) -> int:
        """The most singular values that can differ from zero."""
        return min(self.first.shape) * min(self.second.shape)

    def singular_values(self) -> np.ndarray:
        """Return those of ΔW, (rank,) float64, descending: ``|s| σ_i(W₁) σ_j(W₂)``."""
        one, two = (
            np.linalg.svd(factor.astype(np.float64), compute_uv=False)
            for factor in (self.first, self.second)
        )
        return np.sort(abs(self.scale) * np.outer(one, two).ravel())[::-1]

    def delta(self) -> np.ndarray:
        """Return ΔW in float32."""
        return np.kron(self.scale * self.first, self.second).astype(np.float32)

    def directions(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first left (m, k) and right (n, k) singular vectors, as `Factors` does."""
        (u1, s1, v1), (u2, s2, v2) = (
            np.linalg.svd(factor.astype(np.float64), full_matrices=False)
            for factor in (self.first, self.second)
        )
        products = np.outer(s1, s2).ravel()
        order = np.argsort(-products)
        order = order[: min(count, nonzero(products[order]))]
        pairs = [divmod(int(place), len(s2)) for place in order]
        left = np.stack([np.kron(u1[:, i], u2[:, j]) for i, j in pairs], axis=1)
        return left, np.stack([np.kron(v1[i], v2[j]) for i, j in pairs], axis=1)


@dataclass(frozen=True)
class Saved:
    """The tensors of an adapter whose ΔW are in factors."""

    folder: Path
    config: AdapterConfig
    modules: dict[str, dict[str, TensorHeader]]
    """Of each module its factors by name, such as lora_E."""
    shared: dict[str, TensorHeader]
    """Factors that all modules share: VeRA's."""
    others: dict[str, TensorHeader] = field(default_factory=dict)
    """All else that was trained, as biases and whole weights, by its name in the model."""

    def of(self, module: str, part: str) -> np.ndarray:
        """Return a module's factor as a matrix in float64; one axis becomes one column."""
        header = self.modules[module][part] if module else self.shared[part]
        return read_matrix(self.folder, f"{part} of {module or 'all modules'}", header).astype(
            np.float64
        )

    def updates(self, shape_of: ShapeOf) -> Iterator[Factors | Kronecker]:
        """Yield each module's update; ``shape_of`` gives the shape of a module's weight."""
        if self.config.peft_type == "LORA":
            yield from lora_factors(self.folder)
            return
        make = _MAKERS[self.config.peft_type]
        for name in sorted(self.modules):
            yield make(self, name, shape_of)


def saved_factors(adapter: Path) -> Saved | None:
    """Return what a saved adapter holds; None where its ΔW is not in the factors that it holds.

    That is so for the other tuners, for VeRA without its shared matrices, for convolutions under
    LoHa and LoKr that have a core tensor, and for the variants that `lora_factors` refuses.
    """
    config = AdapterConfig.read(adapter / _CONFIG)
    parts = _PARTS.get(config.peft_type)
    if parts is None:
        return None
    pattern = re.compile(rf"^base_model\.model\.(?P<name>.+)\.(?P<part>{parts})$")
    modules: dict[str, dict[str, TensorHeader]] = {}
    shared, others = {}, {}
    for key, header in read_tensor_headers(adapter / _WEIGHTS).items():
        if match := pattern.match(key):
            modules.setdefault(match["name"], {})[match["part"]] = header
        elif match := _SHARED.match(key):
            shared[match["part"]] = header
        else:
            others[key.removeprefix("base_model.model.")] = header
    if config.peft_type == "VERA" and len(shared) < 2:
        return None
    if config.peft_type == "LORA":
        try:
            next(lora_factors(adapter))
        except ModelError:
            return None
    return Saved(adapter, config, modules, shared, others)


def _adalora(saved: Saved, name: str, shape_of: ShapeOf) -> Factors:
    a, b, e = (saved.of(name, f"lora_{part}") for part in "ABE")
    alpha = saved.config["lora_alpha"]
    scale = (alpha if alpha > 0 else len(a)) / (saved.config["init_r"] + 1e-5)
    return Factors(name, a * e, b, scale, bool(saved.config["fan_in_fan_out"]))


def _vera(saved: Saved, name: str, shape_of: ShapeOf) -> Factors:
    b, d = (saved.of(name, f"vera_lambda_{part}") for part in "bd")
    transposed = bool(saved.config["fan_in_fan_out"])
    d_in = shape_of(name)[0 if transposed else 1]
    a = d * saved.of("", "vera_A")[: len(d), :d_in]
    return Factors(name, a, b * saved.of("", "vera_B")[: len(b), : len(d)], 1.0, transposed)


def _delora(saved: Saved, name: str, shape_of: ShapeOf) -> Factors:
    a, b = saved.of(name, "delora_A"), saved.of(name, "delora_B")
    lengths = [np.maximum(np.linalg.norm(f, axis=axis), 1e-4) for f, axis in ((a, 1), (b, 0))]
    strength = saved.of(name, "delora_lambda")[0, 0] / (len(a) * lengths[0] * lengths[1])
    return Factors(name, a * saved.of(name, "delora_w_norm").T, b * strength, 1.0)


def _loha(saved: Saved, name: str, shape_of: ShapeOf) -> Factors:
    b1, a1, b2, a2 = (saved.of(name, f"hada_w{i}_{side}") for i in "12" for side in "ab")
    # Row i of A₁ times row j of A₂ for every pair, and so for the columns of B₁ and B₂.
    a = (a1[:, None, :] * a2[None, :, :]).reshape(-1, a1.shape[1])
    b = (b1[:, :, None] * b2[:, None, :]).reshape(len(b1), -1)
    return Factors(name, a, b, _lycoris_scale(saved.config, name))


def _lokr(saved: Saved, name: str, shape_of: ShapeOf) -> Kronecker:
    parts = saved.modules[name]
    first, second = (
        saved.of(name, whole)
        if whole in parts
        else saved.of(name, f"{whole}_a") @ saved.of(name, f"{whole}_b")
        for whole in ("lokr_w1", "lokr_w2")
    )
    return Kronecker(name, first, second, _lycoris_scale(saved.config, name))


def _lycoris_scale(config: AdapterConfig, name: str) -> float:
    rank = pattern_value(config["rank_pattern"] or {}, name, config["r"])
    return float(pattern_value(config["alpha_pattern"] or {}, name, config["alpha"])) / rank


_MAKERS = {"ADALORA": _adalora, "VERA": _vera, "DELORA": _delora, "LOHA": _loha, "LOKR": _lokr}
