"""Choice 4, the optimizer budget: what it costs in steps, memory, operations and seconds."""

from __future__ import annotations

from tunemath.budget.activations import (
    MIXINGS,
    Attention,
    Decoder,
    DecoderLayer,
    Linear,
    Mixing,
    Numbers,
)
from tunemath.budget.compute import Training, attended_pairs, forward_flops, training_flops
from tunemath.budget.device import Device, parse_size, this_device
from tunemath.budget.fitting import largest
from tunemath.budget.memory import (
    DTYPES,
    QUANTISATIONS,
    Held,
    Memory,
    Quantisation,
    Reference,
    Step,
    Term,
    step_memory,
    weight_bytes,
)
from tunemath.budget.optimizers import OPTIMIZERS, state_bytes, step_bytes
from tunemath.budget.passes import Activations, Curves, Passes
from tunemath.budget.power import smallest_detectable_difference
from tunemath.budget.rate import measured_gflops
from tunemath.budget.record import Budget
from tunemath.budget.schedule import learning_rates, plan_steps, warmup_steps
from tunemath.budget.seconds import Work, seconds_of
from tunemath.budget.shapes import Shapes

__all__ = [
    "DTYPES",
    "MIXINGS",
    "OPTIMIZERS",
    "QUANTISATIONS",
    "Activations",
    "Attention",
    "Budget",
    "Curves",
    "Decoder",
    "DecoderLayer",
    "Device",
    "Held",
    "Linear",
    "Memory",
    "Mixing",
    "Numbers",
    "Passes",
    "Quantisation",
    "Reference",
    "Shapes",
    "Step",
    "Term",
    "Training",
    "Work",
    "attended_pairs",
    "forward_flops",
    "largest",
    "learning_rates",
    "measured_gflops",
    "parse_size",
    "plan_steps",
    "seconds_of",
    "smallest_detectable_difference",
    "state_bytes",
    "step_bytes",
    "step_memory",
    "this_device",
    "training_flops",
    "warmup_steps",
    "weight_bytes",
]
