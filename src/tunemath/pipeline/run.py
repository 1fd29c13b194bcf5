"""One run: a contract, its folder, its model and its data, read once and shared by the stages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tunemath.contract import FineTune
from tunemath.errors import ContractError, DataError
from tunemath.mask import (
    Encoded,
    Example,
    Item,
    Message,
    Pair,
    TrainingRows,
    encode_rows,
    read_rows,
)
from tunemath.pipeline.folder import RunFolder
from tunemath.pipeline.questions import Questions
from tunemath.pipeline.results import Results, products_in
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import ResolvedModel, resolve_model
from tunemath.space import Blueprint, Ledger, ledger_of, read_blueprint
from tunemath.space.record import UNFREEZING
from tunemath.storage import hash_file

__all__ = ["Run"]

_PROBE_ROWS = 4


class Run(Questions):
    """A contract being carried out in ``runs/NAME``.

    ``contract`` is one, or its YAML file, then with ``overrides`` such as ``"space.rank=16"``.
    `tunemath.advance` carries it out; ``results`` has what was found.
    """

    def __init__(
        self,
        contract: FineTune | str | Path,
        runs: str | Path = "runs",
        progress: Progress = silent,
        fresh: bool = False,
        overrides: Sequence[str] = (),
    ) -> None:
        if not isinstance(contract, FineTune):
            contract = FineTune.load(contract, overrides)
        elif overrides:
            raise ContractError("overrides are for a contract's file; FineTune.load takes them too")
        super().__init__(lambda: self.model.folder, contract.evaluation, progress)
        self.contract = contract
        self.folder = RunFolder(Path(runs) / contract.name)
        self.fresh = fresh

    @cached_property
    def model(self) -> ResolvedModel:
        """The base model on this disk."""
        return resolve_model(self.contract.model)

    @property
    def update(self) -> Path:
        """Where what was trained is: an adapter, or weights of the model itself."""
        name = "weights" if self.contract.space.method in UNFREEZING else "adapter"
        return self.folder.path / name

    @property
    def results(self) -> Results:
        """What the run found: verdict, scores, findings, items and more, as records or frames."""
        return Results(self.folder.path, self.contract)

    def __repr__(self) -> str:
        from tunemath.report import run_line

        found = products_in(self.folder.path, self.contract)
        return f"<Run {run_line(found, self.folder.path)}>"

    def _repr_html_(self) -> str:
        return self.results._repr_html_()

    @cached_property
    def ledger(self) -> Ledger:
        """The exact count of what the contract trains."""
        return ledger_of(self.blueprint, self.contract.space)

    @cached_property
    def blueprint(self) -> Blueprint:
        """The base model's shapes."""
        return read_blueprint(self.model.folder)

    @cached_property
    def training(self) -> Sequence[Example] | Sequence[Pair]:
        """The training rows as written."""
        return read_rows(self.contract.mask.train, self.contract.objective.kind)

    @cached_property
    def rows(self) -> TrainingRows:
        """The training rows as ids and masks."""
        mask = self.contract.mask
        return encode_rows(
            self.training,
            self.template,
            self.tokenizer,
            mask.answers,
            mask.max_length,
            mask.too_long,
        )

    @cached_property
    def examples(self) -> list[tuple[Encoded, ...]]:
        """What one example of training is: a row for SFT, (chosen, rejected) for DPO."""
        rows, sides = self.rows.encoded, 2 if self.rows.pairs else 1
        return [rows[start : start + sides] for start in range(0, len(rows), sides)]

    @cached_property
    def order(self) -> list[int]:
        """The examples' indices in the order in which they are seen, all epochs in a row."""
        generator = random.Random(self.contract.seed)
        order: list[int] = []
        for _ in range(self.contract.budget.epochs):
            epoch = list(range(len(self.examples)))
            generator.shuffle(epoch)
            order += epoch
        return order

    @cached_property
    def probe_examples(self) -> list[tuple[Encoded, ...]]:
        """A few examples of unlike length to probe a model on, two at least where there are two.

        They are of the shorter third: longer ones show no more and cost more.
        """

        def tokens(example: tuple[Encoded, ...]) -> int:
            return sum(len(row.input_ids) for row in example)

        examples = sorted(self.examples, key=tokens)
        count = min(_PROBE_ROWS // len(examples[0]), len(examples))
        last = max(len(examples) // 3, count - 1)
        return [examples[round(k * last / max(1, count - 1))] for k in range(count)]

    @cached_property
    def few_shot(self) -> list[Message]:
        """The training examples, as turns, that the prompt-only baseline is shown."""
        count = self.contract.evaluation.few_shot
        if count > len(self.training):
            raise DataError(
                f"evaluation.few_shot is {count}, but {self.contract.mask.train} has only "
                f"{len(self.training)} rows; lower it"
            )
        chosen = random.Random(self.contract.seed).sample(list(self.training), count)
        return [
            turn
            for row in chosen
            for turn in (row.sides()[0] if isinstance(row, Pair) else row).messages
            if turn.role != "system"
        ]

    @cached_property
    def shared_system(self) -> str | None:
        """The system message that every training row begins with, if there is one."""
        rows = (row.prompt if isinstance(row, Pair) else row.messages for row in self.training)
        first = {row[0].content if row[0].role == "system" else None for row in rows}
        return first.pop() if len(first) == 1 else None

    def prompt_ids(self, item: Item, with_examples: bool = False) -> tuple[int, ...]:
        """Return an item's prompt; the examples stand between its system message and its turns."""
        if not with_examples:
            return super().prompt_ids(item)
        messages = list(item.prompt)
        start = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
        messages[start:start] = self.few_shot
        return super().prompt_ids(replace(item, prompt=tuple(messages)))

    @property
    def data_paths(self) -> dict[str, Path]:
        """Where each data file is."""
        evaluation = self.contract.evaluation
        paths = {"train": self.contract.mask.train, "task": evaluation.task}
        if evaluation.retention is not None:
            paths["retention"] = evaluation.retention
        return paths

    @cached_property
    def data_hashes(self) -> dict[str, str]:
        """The SHA-256 of each data file."""
        return {name: hash_file(path) for name, path in self.data_paths.items()}

    def evidence(self) -> dict[str, Any]:
        """Return every product that the run has so far, by name, with contract and manifest."""
        found: dict[str, Any] = {
            "contract": self.contract.resolved(),
            "manifest": self.folder.manifest(),
        }
        for name in (
            "plan",
            "mask",
            "baselines",
            "training",
            "artefact",
            "evaluation",
            "movement",
            "spectrum",
            "scorecard",
            "checklist",
        ):
            if (self.folder.path / f"{name}.json").exists():
                found[name] = self.folder.read(f"{name}.json")
        return found
