"""What a figure of docs/objective consists of, and how a loss and its slope become curves.

Slopes are PyTorch's gradients, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = [
    "POINTS",
    "Drawn",
    "Panel",
    "Place",
    "Series",
    "line",
    "loss_panel",
    "values",
    "with_slope",
]

POINTS = 97

Place = tuple[float, float, str]
"""x and y in the panel's own units, and whether the text begins, is centred or ends there."""


@dataclass(frozen=True)
class Series:
    """A curve: its values, its colour by role, and where its label stands."""

    label: str
    y: list[float]
    role: str = "accent"
    dashed: bool = False
    at: Place | None = None
    """Where the label stands; nowhere when None."""


@dataclass(frozen=True)
class Panel:
    """Curves over one abscissa."""

    title: str
    xlabel: str
    x: list[float]
    series: tuple[Series, ...]
    ylim: tuple[float, float] | None = None


@dataclass(frozen=True)
class Drawn:
    """A figure: its panels, and what it shows in words."""

    title: str
    alt: str
    panels: tuple[Panel, ...]
    columns: int = 3


def line(low: float, high: float) -> torch.Tensor:
    """Return the abscissa of a panel."""
    return torch.linspace(low, high, POINTS, dtype=torch.float64)


def values(y: Any) -> list[float]:
    """Return an array as plain numbers."""
    return [float(one) for one in np.asarray(torch.as_tensor(y).detach())]


def with_slope(f: Callable[[Any], Any], x: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return f(x) and its derivative at every point."""
    x = x.clone().requires_grad_()
    y = f(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return values(y), values(slope)


def loss_panel(
    title: str,
    xlabel: str,
    x: torch.Tensor,
    f: Callable[[Any], Any],
    *,
    labels: tuple[Place, Place] | None = None,
    beside: Callable[[Any], Any] | None = None,
    ylim: tuple[float, float] | None = None,
) -> Panel:
    """Return a panel of a loss and its slope, in grey another loss beside it."""
    y, slope = with_slope(f, x)
    first, second = labels or (None, None)
    series = [Series("loss", y, at=first), Series("slope", slope, "second", True, at=second)]
    if beside is not None:
        series.insert(0, Series("dpo_loss", values(beside(x)), "line"))
    return Panel(title, xlabel, values(x), tuple(series), ylim)
