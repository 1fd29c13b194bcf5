"""The curves of the preference losses: value and slope against what each is a function of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from curves import POINTS, Drawn, Panel, Place, Series, line, loss_panel, values, with_slope

from tunemath.objective import preference as p

__all__ = ["PREFERENCE"]


def _pair(loss: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    """Return a loss as a function of the margin, with β = 1."""

    def of_margin(m: Any) -> Any:
        zero = torch.zeros_like(m)
        return loss(m, zero, zero, zero, **{"beta": 1.0, **options})

    return of_margin


def margin() -> Drawn:
    """Return the losses of the margin."""
    x, label = line(-4, 4), "margin × β"
    two = {"chosen_length": torch.full_like(x, 2), "rejected_length": torch.full_like(x, 2)}
    shown: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        ("dpo_loss", p.dpo_loss, {}),
        ("dpo_loss, ε = 0.2", p.dpo_loss, {"label_smoothing": 0.2}),
        ("robust_loss, ε = 0.2", p.robust_loss, {"label_smoothing": 0.2}),
        ("hinge_loss", p.hinge_loss, {}),
        ("ipo_loss", p.ipo_loss, {}),
        ("exo_pair_loss, ε = 0.1", p.exo_pair_loss, {"label_smoothing": 0.1}),
        ("discopop_loss, τ = 0.05", p.discopop_loss, {}),
        ("sigmoid_norm_loss", p.sigmoid_norm_loss, two),
    ]
    panels = [
        loss_panel(
            title, label, x, _pair(loss, **options), ylim=(-2.2, 5.2),
            labels=((-2, 3, "left"), (-3.8, -1.6, "left")) if k == 0 else None,
            beside=_pair(p.dpo_loss) if k else None,
        )
        for k, (title, loss, options) in enumerate(shown)
    ]  # fmt: skip
    alt = (
        "Eight losses and their slopes against the margin from −4 to 4 with β = 1. DPO falls from "
        "4 to 0 and is log 2 at 0; with smoothing it has a minimum; the robust loss goes on "
        "falling; hinge is 0 from 1 on; IPO is a parabola with its minimum at ½; EXO is flat on "
        "both sides; DiscoPOP is DPO on the left and exp(−x), with a bump, on the right; per "
        "token, the margin is divided."
    )
    return Drawn("Losses of the margin, and their slopes", alt, tuple(panels), columns=4)


def anchored() -> Drawn:
    """Return the losses that hold each answer against zero."""
    x = line(-4, 4)
    zero = torch.zeros_like(x)
    shown = (p.nca_pair_loss, p.bco_pair_loss, p.sppo_hard_loss, p.apo_zero_loss, p.apo_down_loss)
    panels = []
    for k, loss in enumerate(shown):
        # With the other answer at 0, APO-down does not depend on the chosen one.
        down = loss is p.apo_down_loss
        other = zero - 2 if down else zero
        by_chosen, chosen = with_slope(lambda c, f=loss, r=other: f(c, r, zero, zero, 1.0), x)
        by_rejected, rejected = with_slope(lambda r, f=loss, c=other: f(c, r, zero, zero, 1.0), x)
        bounded = "apo" in loss.__name__
        title = f"{loss.__name__}, the other at −2" if down else loss.__name__
        panels.append(Panel(title, "log-ratio × β", values(x), (
            Series("chosen", by_chosen, "accent", at=(-3.2, 4.4, "left") if k == 0 else None),
            Series("rejected", by_rejected, "second", at=(3.8, 4, "right") if k == 0 else None),
            Series("slope", chosen, "accent", True),
            Series("slope", rejected, "second", True),
        ), (-0.7, 2.2) if bounded else (-3.2, 6.2)))  # fmt: skip
    alt = (
        "Five losses against the reward of the chosen answer, the rejected at 0, and against that "
        "of the rejected, the chosen at 0. NCA has a minimum for the chosen answer at log 2; BCO "
        "falls in the one and rises in the other; SPPO has parabolas about ½ and −½; APO-zero is a "
        "sum of two sigmoids; APO-down rises with the rejected answer, and has a minimum for the "
        "chosen one."
    )
    return Drawn("Anchored losses: each answer against zero", alt, tuple(panels))


def reference_free() -> Drawn:
    """Return the losses without a reference."""
    x, u = line(-4, 4), line(-4, -0.02)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    mean = "chosen's log-probability a token, the rejected's −1"
    panels = (
        loss_panel("cpo_loss, β = 1", "log π(c) − log π(r)", x,
                    lambda m: p.cpo_loss(m, zero, 1.0), ylim=(-2.2, 5.2),
                    labels=((-2.3, 2.8, "left"), (-3.9, -1.5, "left"))),
        loss_panel("simpo_loss, β = 2, γ = 1", mean, u,
                    lambda c: p.simpo_loss(c, -one, one, one, 2.0, gamma=1.0), ylim=(-4.2, 9)),
        loss_panel("alphapo_loss, α = 0.25", mean, u,
                    lambda c: p.alphapo_loss(c, -one, one, one, 2.0, gamma=1.0, alpha=0.25),
                    ylim=(-4.2, 9)),
        loss_panel("odds_ratio_loss", mean, u,
                    lambda c: p.odds_ratio_loss(c, -one, one, one), ylim=(-2.2, 5.2)),
    )  # fmt: skip
    alt = (
        "CPO is DPO's logistic loss of the difference of log-probabilities. SimPO, AlphaPO and "
        "ORPO against the chosen answer's mean log-probability: SimPO's slope tends to −2, "
        "AlphaPO's goes on growing to the left, and ORPO's goes from −1 to −0.58."
    )
    return Drawn("Losses without a reference", alt, panels, columns=2)


def unpaired() -> Drawn:
    """Return the losses of single answers."""
    x = line(-5, 5)
    zero, good = torch.zeros_like(x), torch.ones(POINTS, dtype=torch.bool)
    shown: list[tuple[str, str, Callable[[Any, Any], Any]]] = [
        ("kto_loss, z = 1", "log π(y)/ρ(y), β = 1", lambda u, d: p.kto_loss(u, zero, d, 1.0, 1.0)),
        ("apo_zero_unpaired_loss", "log π(y)/ρ(y), β = 1",
         lambda u, d: p.apo_zero_unpaired_loss(u, zero, d, 1.0)),
        ("bco_loss, δ = 1", "log π(y)/ρ(y), β = 1", lambda u, d: p.bco_loss(u, zero, d, 1.0, 1.0)),
    ]  # fmt: skip
    panels = []
    for k, (title, label, loss) in enumerate(shown):
        up, up_slope = with_slope(lambda u, f=loss: f(u, good), x)
        down, down_slope = with_slope(lambda u, f=loss: f(u, ~good), x)
        bounded = "bco" not in title
        panels.append(Panel(title, label, values(x), (
            Series("desirable", up, "accent", at=(-4.8, 1.1, "left") if k == 0 else None),
            Series("undesirable", down, "second", at=(4.8, 1.1, "right") if k == 0 else None),
            Series("slope", up_slope, "accent", True),
            Series("slope", down_slope, "second", True),
        ), (-0.35, 1.2) if bounded else (-1.6, 6)))  # fmt: skip
    alt = (
        "KTO and APO-zero are sigmoids between 0 and 1, falling for desirable answers and rising "
        "for undesirable ones, about the reference point; BCO is the logistic loss about its shift."
    )
    return Drawn("Losses of single answers", alt, tuple(panels))


def scores() -> Drawn:
    """Return the f-divergences' scores."""
    u = line(-2, 4)
    shown: list[tuple[str, float | None, str, Place]] = [
        ("reverse_kl", None, "accent", (2.9, 3.4, "right")),
        ("js_divergence", None, "second", (4, 0.32, "right")),
        ("forward_kl", None, "bad", (4, 1.35, "right")),
        ("alpha_divergence", 0.5, "good", (4, 2.05, "right")),
    ]
    both = [with_slope(lambda x, d=d, a=a: p.divergence_score(x, d, a), u) for d, a, *_ in shown]
    names = [d if a is None else "α = ½" for d, a, *_ in shown]
    score = tuple(
        Series(name, y, role, at=at)
        for name, (y, _), (*_, role, at) in zip(names, both, shown, strict=True)
    )
    slope = tuple(
        Series(name, s, role)
        for name, (_, s), (*_, role, _) in zip(names, both, shown, strict=True)
    )
    x = values(u)
    alt = (
        "All scores are 0 at a log-ratio of 0. Reverse KL is the log-ratio itself. Forward KL "
        "tends to 1 and Jensen–Shannon to log 2 on the right, the α-divergence to 2; on the left "
        "forward KL falls exponentially."
    )
    panels = (
        Panel("divergence_score", "log π(y)/ρ(y)", x, score, (-2, 4.4)),
        Panel("its slope", "log π(y)/ρ(y)", x, slope, (0, 4)),
    )
    return Drawn("What stands for the log-ratio under other divergences", alt, panels, columns=2)


PREFERENCE: dict[str, Callable[[], Drawn]] = {
    "anchored": anchored,
    "margin": margin,
    "reference-free": reference_free,
    "scores": scores,
    "unpaired": unpaired,
}
