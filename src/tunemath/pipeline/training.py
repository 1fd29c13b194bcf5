"""The stage that spends: train."""

from __future__ import annotations

from tunemath.pipeline.planning import schedule_of
from tunemath.pipeline.run import Run
from tunemath.space import lora_ledger

__all__ = ["train"]


def train(run: Run) -> list[str]:
    """Train the adapter through transformers' Trainer, and keep the evidence."""
    from tunemath.runner.training import ADAPTER_FILES, TrainingJob, train_adapter

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
        trainable=lora_ledger(run.blueprint, run.contract.space).trainable,
        pad=run.tokenizer.pad_id,
        folder=run.folder.path / "checkpoints",
        adapter=run.folder.path / "adapter",
    )
    training, artefact = train_adapter(job, run.progress)
    return [
        run.folder.write("training.json", training),
        run.folder.write("artefact.json", artefact),
        *(f"adapter/{name}" for name in ADAPTER_FILES),
    ]
