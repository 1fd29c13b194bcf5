"""The stage that spends: train."""

from __future__ import annotations

import shutil

from tunemath.pipeline.planning import schedule_of
from tunemath.pipeline.run import Run

__all__ = ["train"]


def train(run: Run) -> list[str]:
    """Train what the contract says through transformers' Trainer, and keep the evidence."""
    from tunemath.runner.training import TrainingJob, train_adapter

    schedule = schedule_of(run)
    job = TrainingJob(
        contract=run.contract,
        model=run.model,
        examples=[
            tuple((row.input_ids, row.supervised) for row in example) for example in run.examples
        ],
        order=run.order,
        steps=schedule["steps"],
        warmup_steps=schedule["warmup_steps"],
        trainable=run.ledger.trainable,
        pad=run.tokenizer.pad_id,
        folder=run.folder.path / "checkpoints",
        adapter=run.update,
    )
    for name in {"adapter", "weights"} - {run.update.name}:
        shutil.rmtree(run.folder.path / name, ignore_errors=True)  # of another method, with --fresh
    training, artefact = train_adapter(job, run.progress)
    return [
        run.folder.write("training.json", training),
        run.folder.write("artefact.json", artefact),
        *(f"{run.update.name}/{path.name}" for path in sorted(run.update.iterdir())),
    ]
