"""Small measurements on the live model that show it is the one that was meant."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tunemath.objective import kl_from_logits
from tunemath.runner.hf_labels import collate, shift_targets
from tunemath.runner.models import load_adapter, load_base, why_not_merged
from tunemath.runner.prefixes import VirtualTokens
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.trainer import Row, TuneTrainer
from tunemath.runner.verifying import verify_product
from tunemath.space.weights.recipe import NamesDiffer
from tunemath.storage import storage_errors

if TYPE_CHECKING:
    from tunemath.runner.training import TrainingJob

__all__ = [
    "answer_logits",
    "artefact",
    "compare_tensors",
    "difference",
    "first_loss",
    "identity",
    "logit_tolerance",
    "micro_batch",
    "tensor_hashes",
]

_LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}
_SPLIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Rounding alone: bfloat16 keeps 8 bits, and logits are of order 10."""


def logit_tolerance(model: Any) -> float:
    """Return by how much any logit of two equal models may differ in the model's precision."""
    return _LOGIT_TOLERANCE[model.dtype]


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


@torch.inference_mode()
def answer_logits(model: Any, rows: Sequence[Row], pad: int) -> torch.Tensor:
    """Return the logits at every position that predicts a supervised token, (N, V), float32."""
    inputs = {key: value.to(model.device) for key, value in collate(rows, pad).items()}
    _, counts = shift_targets(inputs["labels"])
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return out[:, :-1][counts].float()


def identity(model: Any, rows: Sequence[Row], pad: int) -> dict[str, Any]:
    """Measure how far the fresh update moves the logits, and whether it moves any by its nature.

    LoRA starts at B = 0, an adapter at W_up = 0, so not at all; a prefix or prompt is there from
    the start. The KL is KL(tuned ‖ base), the mean over positions in nats.
    """
    model.eval()
    tuned = answer_logits(model, rows, pad)
    with model.disable_adapter():
        base = answer_logits(model, rows, pad)
    return {
        **difference(base, tuned),
        "moves_by_nature": isinstance(model, VirtualTokens),
        "positions": len(tuned),
    }


def micro_batch(trainer: TuneTrainer, examples: Sequence[tuple[Row, ...]]) -> dict[str, Any]:
    """Cut one batch of unlike lengths into one piece and into single examples, through the Trainer.

    Loss and gradient must not depend on the cut. Dropout is off meanwhile.
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
        "loss_difference": abs(cut_loss - loss) / max(abs(loss), 1e-12),
        "gradient_difference": float(
            (cut_gradient - gradient).norm() / gradient.norm().clamp(min=1e-12)
        ),
    }


def first_loss(trainer: TuneTrainer, examples: Sequence[tuple[Row, ...]]) -> float:
    """Return the loss of the first batch before any step, in nats, dropout off."""
    inputs = trainer.collated(examples)
    with _undisturbed(trainer), torch.no_grad():
        inputs = {key: value.to(trainer.args.device) for key, value in inputs.items()}
        return float(trainer.compute_loss(trainer.model, inputs))


def _accumulate(
    trainer: TuneTrainer, batches: list[dict[str, torch.Tensor]], weight: int
) -> tuple[float, torch.Tensor]:
    model: Any = trainer.model
    model.zero_grad()
    loss = sum(float(trainer.training_step(model, batch, weight)) for batch in batches)
    learns = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.cat([(p.grad if p.grad is not None else p * 0).flatten() for p in learns])
    model.zero_grad()
    return loss, gradient.detach().clone()


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


def artefact(live: Any, job: TrainingJob, rows: Sequence[Row]) -> dict[str, Any]:
    """Compare the live model's logits with those of each thing that a user may deploy.

    The saved update on a fresh base; where it can be merged, that one merged in memory, and the
    merged model saved and read back. The largest difference of any logit and the mean KL to the
    live model are reported, and of the merged model's tensors what they hold of the update.
    """
    reference = answer_logits(live, rows, job.pad)
    device, dtype = live.device, live.dtype
    reloaded = load_adapter(load_base(job.model, device, dtype), job.adapter)
    result: dict[str, Any] = {"positions": len(reference), "tolerance": logit_tolerance(live)}
    result["adapter_vs_reloaded"] = difference(reference, answer_logits(reloaded, rows, job.pad))
    why = why_not_merged(job.contract.space)
    if why is not None:
        return {**result, "not_merged": why}
    with quiet_libraries():
        merged = reloaded.merge_and_unload()
    result["adapter_vs_merged"] = difference(reference, answer_logits(merged, rows, job.pad))
    folder = job.folder / "merged-probe"
    try:
        with storage_errors(folder), quiet_libraries():
            merged.save_pretrained(folder, safe_serialization=True)
        again = load_base(replace(job.model, folder=folder), device, dtype)
        result["adapter_vs_reloaded_merged"] = difference(
            reference, answer_logits(again, rows, job.pad)
        )
        del again
        result |= _of_product(job, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _of_product(job: TrainingJob, folder: Path) -> dict[str, Any]:
    """Hold the merged model's tensors against base and update, as their files give them."""
    try:
        found = verify_product(job.model, job.adapter, folder, probe=False)
    except NamesDiffer as why:
        return {"weights": {"unmeasured": str(why)}}
    del found["update"], found["dtype"]
    return found


def difference(reference: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Return the largest difference of any logit, and the mean KL(other ‖ reference) in nats."""
    return {
        "max_logit_difference": float((reference - other).abs().max()),
        "kl": float(kl_from_logits(other, reference).mean()),
    }
