"""The curves of the objectives of single tokens: SFT, divergences, estimators, distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from curves import POINTS, Drawn, Panel, Place, Series, line, values, with_slope

from tunemath import objective as o

__all__ = ["TOKENS"]


def _bernoulli(x: Any) -> Any:
    return torch.stack([x, 1 - x], dim=-1)


def divergences() -> Drawn:
    """Return the divergences of Bernoulli(p) from Bernoulli(0.3)."""
    x = line(0.001, 0.999)
    a, b = _bernoulli(x), _bernoulli(torch.full_like(x, 0.3))
    label = "p, for q = 0.3"

    def series(name: str, y: Any, role: str, x: float, y_label: float, side: str) -> Series:
        return Series(name, values(y), role, at=(x, y_label, side))

    panels = (
        Panel("kl_divergence", label, values(x), (
            series("KL(p ‖ q)", o.kl_divergence(a, b), "accent", 0.99, 0.3, "right"),
            series("KL(q ‖ p)", o.kl_divergence(b, a), "second", 0.9, 1.7, "right"),
        ), (0, 2)),
        Panel("total_variation, js_divergence", label, values(x), (
            series("TV", o.total_variation(a, b), "good", 0.66, 0.46, "right"),
            series("JS", o.js_divergence(a, b), "accent", 0.8, 0.08, "left"),
        ), (0, 0.75)),
        Panel("skewed_kl, λ = 0.1", label, values(x), (
            series("(p, q)", o.skewed_kl(a, b, 0.1), "accent", 0.98, 0.3, "right"),
            series("(q, p)", o.skewed_kl(b, a, 0.1), "second", 0.88, 0.95, "right"),
        ), (0, 2)),
        Panel("alpha_divergence", label, values(x), (
            series("2", o.alpha_divergence(a, b, 2), "bad", 1.02, 1.17, "left"),
            series("½", o.alpha_divergence(a, b, 0.5), "good", 1.02, 1.75, "left"),
            series("α = −1", o.alpha_divergence(a, b, -1), "second", 0.84, 1.6, "right"),
        ), (0, 2)),
        Panel("renyi_divergence", label, values(x), (
            series("α = ∞", o.renyi_divergence(a, b, math.inf), "bad", 0.58, 0.8, "right"),
            series("2", o.renyi_divergence(a, b, 2), "second", 0.64, 0.6, "center"),
            series("1", o.renyi_divergence(a, b, 1), "accent", 0.75, 0.55, "center"),
            series("½", o.renyi_divergence(a, b, 0.5), "good", 0.85, 0.51, "center"),
        ), (0, 1.4)),
    )  # fmt: skip
    alt = (
        "Divergences of two Bernoulli distributions against p, with q = 0.3: all are 0 at p = q. "
        "KL(q ‖ p) grows without bound at both ends and KL(p ‖ q) does not; Jensen–Shannon stays "
        "below log 2, total variation is straight; larger orders give larger Rényi divergences."
    )
    return Drawn("Divergences of Bernoulli(p) from Bernoulli(0.3)", alt, panels)


def estimators() -> Drawn:
    """Return what the estimators' value and gradient are on average, θ being the policy's logit."""
    theta = line(-4, 4)
    log_q = torch.log(_bernoulli(torch.full_like(theta, 0.5)))

    def log_policy(t: Any) -> Any:
        z = torch.stack([t, torch.zeros_like(t)], dim=-1)
        return z - o.log_normaliser(z)[..., None]

    def mean(k: Callable[..., Any], samples: torch.Tensor) -> Callable[[Any], Any]:
        """Return E[k] with the samples' distribution fixed, as a batch of samples has it."""
        return lambda t: (samples * k(log_policy(t), log_q)).sum(-1)

    fixed = torch.exp(log_policy(theta))
    found = {k.__name__: with_slope(mean(k, fixed), theta) for k in (o.kl_k1, o.kl_k2, o.kl_k3)}
    kl = with_slope(lambda t: o.kl_divergence(log_policy(t), log_q, log=True), theta)
    reverse = with_slope(lambda t: o.kl_divergence(log_q, log_policy(t), log=True), theta)
    on_average = (
        Series("E[k₂]", found["kl_k2"][0], "second", at=(2.6, 0.24, "left")),
        Series("E[k₁] = E[k₃] = KL(p ‖ q)", found["kl_k1"][0], "accent", at=(0, 0.62, "center")),
    )
    slopes = (
        Series("E[∇k₁] = 0", found["kl_k1"][1], "muted", at=(-3.9, 0.08, "left")),
        Series("E[∇k₂]", found["kl_k2"][1], "second", at=(1.05, 0.09, "left")),
        Series("E[∇k₃]", found["kl_k3"][1], "bad", at=(2.4, 0.5, "right")),
        Series("∇KL(p ‖ q)", kl[1], "ink", True),
        Series("∇KL(q ‖ p)", reverse[1], "ink", True),
    )
    x = values(theta)
    panels = (
        Panel("value", "the policy's logit, the reference's 0", x, on_average, (0, 0.8)),
        Panel("gradient (dashed: that of the divergences)",
              "the policy's logit, the reference's 0", x, slopes, (-0.75, 0.75)),
    )  # fmt: skip
    alt = (
        "On average k1 and k3 are KL(p ‖ q), and k2 falls short of it far away. The mean "
        "gradient of k1 is zero, that of k2 lies on the gradient of KL(p ‖ q), "
        "and that of k3 on the gradient of KL(q ‖ p)."
    )
    return Drawn("Estimators of KL: mean value and mean gradient", alt, panels, columns=2)


def sft() -> Drawn:
    """Return cross-entropy and its variants against the target's probability."""
    x, size = line(0.002, 0.998), 100
    rest = torch.zeros(POINTS, size - 1, dtype=torch.float64)
    # With the others at 0, this logit gives the target the probability p.
    logit = torch.log(x / (1 - x)) + math.log(size - 1)
    ids = torch.zeros(POINTS, dtype=torch.int64)

    def found(loss: Callable[..., Any], **options: Any) -> tuple[list[float], list[float]]:
        def of_logit(t: Any) -> Any:
            return loss(torch.cat([t[:, None], rest], dim=1), ids, **options)

        value, slope = with_slope(of_logit, logit)
        return value, [-one for one in slope]

    plain, smooth = found(o.cross_entropy), found(o.cross_entropy, label_smoothing=0.1)
    dft = found(o.dft_loss)
    panels = (
        Panel("loss", "the target's probability", values(x), (
            Series("cross_entropy", plain[0], at=(0.04, 0.8, "left")),
            Series("label_smoothing = 0.1", smooth[0], "second", at=(0.45, 1.35, "left")),
            Series("dft_loss", dft[0], "bad", at=(0.2, 0.15, "left")),
        ), (0, 4)),
        Panel("pull on the target's logit", "the target's probability", values(x), (
            Series("cross_entropy", plain[1], at=(0.4, 0.7, "left")),
            Series("label_smoothing = 0.1", smooth[1], "second", at=(0.86, -0.09, "right")),
            Series("dft_loss", dft[1], "bad", at=(0.36, 0.28, "right")),
        ), (-0.15, 1.05)),
    )  # fmt: skip
    alt = (
        "Cross-entropy falls from infinity to 0 as the target's probability rises, and its pull on "
        "the target's logit is 1 − p. Smoothing turns the pull negative near p = 0.9. The DFT loss "
        "is at most 1/e, and its pull p (1 − p) vanishes at both ends."
    )
    return Drawn("Cross-entropy, smoothed and weighted", alt, panels, columns=2)


def distillation() -> Drawn:
    """Return the distillation losses against the temperature, with and without their factor."""
    tau = line(0.5, 8)
    rng = np.random.default_rng(0)
    teacher, move = 2 * rng.standard_normal(1000), rng.standard_normal(1000)
    shown: list[tuple[str, str, Place]] = [
        ("forward_kl", "accent", (0.6, 0.77, "left")),
        ("reverse_kl", "second", (1.4, 0.66, "left")),
        ("js", "good", (7.9, 0.17, "right")),
        ("total_variation", "bad", (7.9, 0.46, "right")),
    ]
    scaled, bare = [], []
    for name, role, at in shown:
        options: Any = {"divergence": name}
        y = [float(o.distillation_loss(teacher + move, teacher, temperature=float(t), **options))
             for t in tau]  # fmt: skip
        factor = [float(t) ** (1 if name == "total_variation" else 2) for t in tau]
        scaled.append(Series(name, y, role, at=at))
        plain = [v / f for v, f in zip(y, factor, strict=True)]
        bare.append(Series(name, plain, role))
    x = values(tau)
    panels = (
        Panel("distillation_loss", "temperature τ", x, tuple(scaled), (0, 0.9)),
        Panel(
            "the divergence alone, without the factor", "temperature τ", x, tuple(bare), (0, 0.9)
        ),
    )
    alt = (
        "Four distillation losses against the temperature, over 1000 outcomes. With the factor τ² "
        "(τ for total variation) they level off; without it they fall towards 0."
    )
    return Drawn("What the factor of the temperature does", alt, panels, columns=2)


TOKENS: dict[str, Callable[[], Drawn]] = {
    "distillation": distillation,
    "divergences": divergences,
    "estimators": estimators,
    "sft": sft,
}
