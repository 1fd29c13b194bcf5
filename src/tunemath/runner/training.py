"""Training what the contract says, with the evidence that it was trained as written."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tunemath.contract import FineTune
from tunemath.errors import RunError
from tunemath.mask import row_hash
from tunemath.runner import probes
from tunemath.runner.artefact import Probe
from tunemath.runner.checkpoints import SealCheckpoints, latest_checkpoint
from tunemath.runner.launchers import without_launcher
from tunemath.runner.models import attach_adapter, choose_device, load_base, trainable_counts
from tunemath.runner.portable import make_portable
from tunemath.runner.prefixes import VirtualTokens
from tunemath.runner.probing import answer_logits
from tunemath.runner.progress import Progress
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.trainer import OneDevice, Row, Rows, TuneTrainer, Witness
from tunemath.runner.tuned import TunedModel
from tunemath.runner.unfrozen import UnfrozenModel
from tunemath.space.weights.provenance import Provenance, Source
from tunemath.storage import storage_errors

__all__ = ["TrainingJob", "train_adapter"]

_COMMON = 0.1
"""The share of answers that end with a token, from which on it is one that ends answers."""


@dataclass(frozen=True)
class TrainingJob:
    """What training needs: certified examples, their order over all epochs, planned figures."""

    contract: FineTune
    model: ResolvedModel
    examples: Sequence[tuple[Row, ...]]
    """One row an example for SFT; (chosen, rejected) for DPO."""
    order: Sequence[int]
    steps: int
    warmup_steps: int
    trainable: int
    pad: int
    folder: Path
    """Checkpoints live here until training is complete."""
    adapter: Path
    """Where the trained adapter, or the trained weights, appear, whole."""
    probes: Sequence[tuple[Row, ...]]
    """Examples of unlike length that models are compared on."""
    probe: Path
    """Where the trained model's logits on a few rows are kept."""


def train_adapter(job: TrainingJob, progress: Progress) -> dict[str, Any]:
    """Train, save the update and the probe, and return the evidence, ``training.json``.

    Killed at any point, the same call goes on from the last whole checkpoint and ends with the
    same numbers.
    """
    started = time.perf_counter()
    device, dtype = choose_device(job.contract.space)
    rows = [row for example in job.probes for row in example]
    base = load_base(job.model, device, dtype)
    base_logits = answer_logits(base, rows)
    model = attach_adapter(base, job.contract.space, job.contract.seed)
    if isinstance(model, UnfrozenModel) and job.contract.objective.kind == "dpo":
        model.keep_base()  # the reference
    witness = Witness([row_hash(*row) for example in job.examples for row in example])
    checkpoint = latest_checkpoint(job.folder)
    resumed_at = []
    if checkpoint is not None:
        seal = checkpoint[1]
        witness.restore(seal["witness"])
        resumed_at = [*seal["resumed_at"], int(checkpoint[0].name.rpartition("-")[2])]
    with without_launcher():
        trainer = _trainer(job, model, witness, resumed_at, device, progress)
    before = probes.tensor_hashes(model)
    evidence = {
        "objective": job.contract.objective.kind,
        "device": str(device),
        "devices": torch.cuda.device_count() if device.type == "cuda" else 1,
        "dtype": str(model.dtype).removeprefix("torch."),
        "trainable": {"planned": job.trainable, **trainable_counts(model)},
        "identity": probes.identity(base_logits, model, rows),
        "micro_batch": probes.micro_batch(trainer, job.probes),
    }
    evidence |= _first_losses(trainer, model, job.probes, evidence["micro_batch"]["loss"])
    del base, base_logits
    with quiet_libraries(), without_launcher(), storage_errors(job.folder):
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
    evidence |= _outcome(job, trainer, witness)
    evidence["resumed_at"] = resumed_at
    evidence["tensors"] = probes.compare_tensors(before, probes.tensor_hashes(model))
    model.eval()
    _save(model, job)
    Probe.of(model, rows).write(job.probe)
    evidence["seconds"] = time.perf_counter() - started
    return evidence


def _first_losses(
    trainer: TuneTrainer, model: Any, examples: Sequence[tuple[Row, ...]], loss: float
) -> dict[str, float]:
    """Return the loss before the first step as the objective foretells it, and as it is.

    ``loss`` is that of the examples. DPO starts at ln 2 where policy and reference are one model.
    Virtual tokens make them two from the start, so the first figure is theirs switched off.
    """
    if not isinstance(model, VirtualTokens):
        return {"step0_loss": loss}
    with model.disable_adapter():
        off = probes.first_loss(trainer, examples)
    return {"step0_loss": off, "step0_loss_moved": loss}


def _trainer(
    job: TrainingJob,
    model: Any,
    witness: Witness,
    resumed_at: list[int],
    device: torch.device,
    progress: Progress,
) -> TuneTrainer:
    budget = job.contract.budget
    schedule = "constant_with_warmup" if budget.schedule == "constant" else budget.schedule
    arguments = OneDevice(
        output_dir=str(job.folder),
        num_train_epochs=1,  # the data set already holds every epoch, in its order
        per_device_train_batch_size=budget.micro_batch_size or budget.batch_size,
        gradient_accumulation_steps=budget.accumulation,
        learning_rate=budget.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=job.warmup_steps,
        weight_decay=budget.weight_decay,
        max_grad_norm=budget.max_grad_norm,
        optim="adamw_torch",
        seed=job.contract.seed,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        activation_checkpointing=budget.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="steps",
        save_steps=budget.save_every or max(1, math.ceil(job.steps / 5)),
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        remove_unused_columns=False,
    )
    with quiet_libraries():
        trainer = TuneTrainer(
            objective=job.contract.objective,
            pad=job.pad,
            witness=witness,
            model=model,
            args=arguments,
            train_dataset=Rows(job.examples, job.order),
        )
    trainer.remove_callback(_printer())
    trainer.add_callback(SealCheckpoints(witness, resumed_at))
    trainer.add_callback(_Report(progress))
    return trainer


def _printer() -> type[TrainerCallback]:
    from transformers import PrinterCallback

    return PrinterCallback


class _Report(TrainerCallback):
    """Tells the progress bar each optimizer step, and stops at a gradient that is not finite."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("training", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise RunError(
                f"the gradient norm became {norm} at step {state.global_step}; "
                "lower budget.learning_rate, or look at the rows of that step"
            )


def _outcome(job: TrainingJob, trainer: TuneTrainer, witness: Witness) -> dict[str, Any]:
    """Return what the finished run did, beside what was planned."""
    keys = ("step", "loss", "learning_rate", "grad_norm", "margin", "accuracy")
    log = [
        {key: entry[key] for key in keys if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    expected = Counter(row_hash(*row) for index in job.order for row in job.examples[index])
    return {
        "steps": trainer.state.global_step,
        "steps_planned": job.steps,
        "log": log,
        "rows_seen": {
            "expected": expected.total(),
            "certified": witness.seen.total(),
            "uncertified": witness.uncertified,
            "miscounted": ((expected - witness.seen) + (witness.seen - expected)).total(),
        },
        "supervised_tokens": witness.supervised_tokens,
    }


def _save(model: Any, job: TrainingJob) -> None:
    """Save the update, in PEFT's own format where PEFT has one; the folder appears whole."""
    folder = job.adapter
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    about: dict[str, Any] = {}
    if isinstance(model, TunedModel):
        about["base"] = {"id": job.model.reference, "sha256": job.model.weights_hash()}
    with storage_errors(folder), quiet_libraries():
        model.save_pretrained(temporary, safe_serialization=True, **about)
        (temporary / "README.md").unlink(missing_ok=True)
        make_portable(temporary, job.model)
        _record(job).write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)


def _record(job: TrainingJob) -> Provenance:
    """Return what update and base are to each other, and what trained answers end with."""
    ends: Counter[int] = Counter()
    for example in job.examples:
        for ids, supervised in example:
            ends.update(
                [token for token, counts in zip(ids, supervised, strict=True) if counts][-1:]
            )
    common = sorted(token for token, count in ends.items() if count >= _COMMON * ends.total())
    settings = {"method": job.contract.space.method, "answers_end_with": common}
    base = Source("base", job.model.reference, job.model.weights_hash())
    return Provenance("train", (base,), settings)
