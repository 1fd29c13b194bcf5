"""The stage that spends, and the proof of what it left: train, artefact."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunemath.mask import Encoded
from tunemath.pipeline.planning import schedule_of
from tunemath.pipeline.run import Run

if TYPE_CHECKING:
    from tunemath.runner.trainer import Row

__all__ = ["MERGED", "artefact", "train"]

MERGED = ".merged"
"""Where the merged model lies while it is read back."""
_PROBE = "probe.safetensors"


def train(run: Run) -> list[str]:
    """Train what the contract says through transformers' Trainer, and keep the evidence."""
    from tunemath.runner.training import TrainingJob, train_adapter

    schedule = schedule_of(run)
    job = TrainingJob(
        contract=run.contract,
        model=run.model,
        examples=_rows(run.examples),
        order=run.order,
        steps=schedule["steps"],
        warmup_steps=schedule["warmup_steps"],
        trainable=run.ledger.trainable,
        pad=run.tokenizer.pad_id,
        folder=run.folder.path / "checkpoints",
        adapter=run.update,
        probes=_rows(run.probe_examples),
        probe=run.folder.path / _PROBE,
    )
    for name in {"adapter", "weights"} - {run.update.name}:
        shutil.rmtree(run.folder.path / name, ignore_errors=True)  # of another method, with --fresh
    return [
        run.folder.write("training.json", train_adapter(job, run.progress)),
        _PROBE,
        *(f"{run.update.name}/{path.name}" for path in sorted(run.update.iterdir())),
    ]


def _rows(examples: Sequence[Sequence[Encoded]]) -> list[tuple[Row, ...]]:
    return [tuple((row.input_ids, row.supervised) for row in example) for example in examples]


def artefact(run: Run) -> list[str]:
    """Prove that the saved update, and the base with it merged, are the model that was trained."""
    from tunemath.runner.artefact import Probe, prove_artefact

    product = prove_artefact(
        run.model,
        run.update,
        run.contract.space,
        Probe.read(run.folder.path / _PROBE),
        run.folder.path / MERGED,
        run.progress,
    )
    return [run.folder.write("artefact.json", product)]
