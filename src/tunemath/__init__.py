"""A fine-tune is five choices: update space, objective, data mask, optimizer budget, evaluation.

tunemath computes exactly what they imply, runs them, and proves what was trained. The names below
are loaded when first used; importing this package imports neither torch nor NumPy. The ``linear_``
functions need torch, which the extra ``train`` brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunemath.lazy import lazy_names

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


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
