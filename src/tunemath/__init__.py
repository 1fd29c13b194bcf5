"""A fine-tune is five choices: update space, objective, data mask, optimizer budget, evaluation.

tunemath computes exactly what they imply, runs them, and proves what was trained. The names below
are loaded when first used; importing this package imports neither torch nor NumPy. The ``linear_``
functions need torch: ``pip install tunemath[train]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunemath.checks import Checklist
    from tunemath.contract import FineTune
    from tunemath.errors import TunemathError
    from tunemath.evaluation import Scorecard
    from tunemath.objective import dpo_loss, kl_divergence, masked_mean
    from tunemath.objective.fused import (
        linear_cross_entropy,
        linear_entropy,
        linear_kl,
        linear_token_log_probs,
    )
    from tunemath.pipeline import Run, advance
    from tunemath.space import (
        adapter_parameter_count,
        lora_delta,
        lora_parameter_count,
        low_rank,
        prefix_parameter_count,
    )
    from tunemath.version import __version__

__all__ = [
    "Checklist",
    "FineTune",
    "Run",
    "Scorecard",
    "TunemathError",
    "__version__",
    "adapter_parameter_count",
    "advance",
    "dpo_loss",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_entropy",
    "linear_kl",
    "linear_token_log_probs",
    "lora_delta",
    "lora_parameter_count",
    "low_rank",
    "masked_mean",
    "prefix_parameter_count",
]

_HOMES = {
    "Checklist": "checks",
    "FineTune": "contract",
    "Run": "pipeline",
    "Scorecard": "evaluation",
    "TunemathError": "errors",
    "__version__": "version",
    "adapter_parameter_count": "space",
    "advance": "pipeline",
    "dpo_loss": "objective",
    "kl_divergence": "objective",
    "linear_cross_entropy": "objective.fused",
    "linear_entropy": "objective.fused",
    "linear_kl": "objective.fused",
    "linear_token_log_probs": "objective.fused",
    "lora_delta": "space",
    "lora_parameter_count": "space",
    "low_rank": "space",
    "masked_mean": "objective",
    "prefix_parameter_count": "space",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tunemath' has no attribute {name!r}")
    value = getattr(import_module(f"tunemath.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
