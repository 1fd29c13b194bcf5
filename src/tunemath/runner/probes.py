"""Small measurements on the live model that show it is the one that was meant."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from tunemath.runner.prefixes import VirtualTokens
from tunemath.runner.probing import answer_logits, compared
from tunemath.runner.trainer import Row, TuneTrainer
from tunemath.runner.unfrozen import UnfrozenModel

__all__ = ["compare_tensors", "first_loss", "identity", "micro_batch", "tensor_hashes"]

Gradient = list[torch.Tensor | None]
"""A tensor a trained parameter; None where it has none."""
_SPLIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Rounding alone: bfloat16 keeps 8 bits, and logits are of order 10."""


def tensor_hashes(model: nn.Module) -> dict[str, tuple[bool, str]]:
    """Return, for each parameter and buffer, whether it is trainable and its SHA-256."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.requires_grad, _hash(tensor)) for name, tensor in named}


def _hash(tensor: torch.Tensor) -> str:
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(flat).hexdigest()


def compare_tensors(
    before: dict[str, tuple[bool, str]], after: dict[str, tuple[bool, str]]
) -> dict[str, Any]:
    """Say which tensors moved: every trainable one should have, no frozen one may have.

    A tensor that vanished did not move; its name is in ``names_changed``.
    """
    moved = {name for name in before if after.get(name, before[name])[1] != before[name][1]}
    trainable = [name for name, (learns, _) in before.items() if learns]
    frozen = [name for name, (learns, _) in before.items() if not learns]
    unmoved = [name for name in trainable if name not in moved]
    return {
        "trainable": len(trainable),
        "moved": len(trainable) - len(unmoved),
        "unmoved": unmoved,
        "frozen": len(frozen),
        "frozen_changed": [name for name in frozen if name in moved],
        "names_changed": sorted(before.keys() ^ after.keys()),
    }


def identity(base: torch.Tensor, model: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Measure how far the fresh update moves the logits, and whether it moves any by its nature.

    ``base`` are the base's `answer_logits`, taken before the update was attached. LoRA starts at
    B = 0, an adapter at W_up = 0, so none may move; a prefix or prompt is there from the start. The
    KL is KL(tuned ‖ base), the mean over positions in nats. ``switched_off`` is the largest
    difference of a logit with the update off, where it can be.
    """
    model.eval()
    found: dict[str, Any] = {
        **compared(base, answer_logits(model, rows)),
        "moves_by_nature": isinstance(model, VirtualTokens),
        "positions": len(base),
    }
    if not isinstance(model, UnfrozenModel) or model.keeps_base:
        with model.disable_adapter():
            off = answer_logits(model, rows)
        found["switched_off"] = compared(base, off)["max_logit_difference"]
    return found


def micro_batch(trainer: TuneTrainer, examples: Sequence[tuple[Row, ...]]) -> dict[str, Any]:
    """Cut one batch of unlike lengths into one piece and into single examples, through the Trainer.

    Loss and gradient must not depend on the cut. Dropout is off meanwhile. ``loss`` is that of the
    whole, in nats.
    """
    whole = [trainer.collated(examples)]
    single = [trainer.collated([example]) for example in examples]
    weight = trainer.weight(whole[0])
    with _undisturbed(trainer):
        loss, gradient = _accumulate(trainer, whole, weight)
        cut_loss, cut_gradient = _accumulate(trainer, single, weight)
    return {
        "rows": len(examples),
        "cuts": [len(examples), 1],
        "tolerance": _SPLIT_TOLERANCE[cast(Any, trainer.model).dtype],
        "loss": loss,
        "loss_difference": abs(cut_loss - loss) / max(abs(loss), 1e-12),
        "gradient_difference": _apart(cut_gradient, gradient),
    }


def first_loss(trainer: TuneTrainer, examples: Sequence[tuple[Row, ...]]) -> float:
    """Return the loss of a batch before any step, in nats, dropout off."""
    inputs = trainer.collated(examples)
    with _undisturbed(trainer), torch.no_grad():
        inputs = {key: value.to(trainer.args.device) for key, value in inputs.items()}
        return float(trainer.compute_loss(trainer.model, inputs))


def _apart(gradient: Gradient, reference: Gradient) -> float:
    """Return ‖g − r‖ / ‖r‖ over all parameters."""
    off = norm = 0.0
    for one, other in zip(gradient, reference, strict=True):
        if one is not None or other is not None:
            there = other if other is not None else torch.zeros_like(cast(torch.Tensor, one))
            off += float(((one if one is not None else 0) - there).double().square().sum())
            norm += float(there.double().square().sum())
    return math.sqrt(off) / max(math.sqrt(norm), 1e-12)


def _accumulate(
    trainer: TuneTrainer, batches: list[dict[str, torch.Tensor]], weight: int
) -> tuple[float, Gradient]:
    """Return loss and gradient of some batches; the gradient is taken, not copied."""
    model: Any = trainer.model
    model.zero_grad()
    loss = sum(float(trainer.training_step(model, batch, weight)) for batch in batches)
    gradient = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad(set_to_none=True)
    return loss, gradient


@contextmanager
def _undisturbed(trainer: TuneTrainer) -> Iterator[None]:
    """Turn dropout and the witness off, and put random state and metrics back afterwards."""
    witness, trainer.witness = trainer.witness, None
    model: Any = trainer.model
    dropouts = [(m, m.p) for m in model.modules() if isinstance(m, nn.Dropout)]
    state = torch.get_rng_state()
    for module, _ in dropouts:
        module.p = 0.0
    try:
        yield
    finally:
        for module, probability in dropouts:
            module.p = probability
        torch.set_rng_state(state)
        trainer.step_metrics.clear()
        trainer.witness = witness
