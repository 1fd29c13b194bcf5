"""Choice 4, the optimizer budget: what it costs in steps, memory, operations and seconds."""

from __future__ import annotations

from tunemath.budget.compute import attended_pairs, forward_flops, training_flops
from tunemath.budget.memory import Term, training_memory
from tunemath.budget.power import smallest_detectable_difference
from tunemath.budget.rate import measured_gflops
from tunemath.budget.record import Budget
from tunemath.budget.schedule import learning_rates, plan_steps, warmup_steps
from tunemath.budget.seconds import Work, seconds_of
from tunemath.budget.shapes import Adapters, Shapes

__all__ = [
    "Adapters",
    "Budget",
    "Shapes",
    "Term",
    "Work",
    "attended_pairs",
    "forward_flops",
    "learning_rates",
    "measured_gflops",
    "plan_steps",
    "seconds_of",
    "smallest_detectable_difference",
    "training_flops",
    "training_memory",
    "warmup_steps",
]
