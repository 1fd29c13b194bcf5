"""One run: a contract, its folder, its model and its data, read once and shared by the stages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tunemath.contract import FineTune
from tunemath.errors import DataError
from tunemath.mask import (
    Encoded,
    Example,
    Item,
    Message,
    Pair,
    Template,
    Tokenizer,
    TrainingRows,
    encode_answer,
    encode_prompt,
    encode_rows,
    load_tokenizer,
    read_rows,
)
from tunemath.pipeline.folder import RunFolder
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import ResolvedModel, resolve_model
from tunemath.space import Blueprint, Ledger, ledger_of, read_blueprint
from tunemath.space.record import UNFREEZING
from tunemath.storage import hash_file

__all__ = ["Run"]


class Run:
    """A contract being carried out in ``runs/NAME``."""

    def __init__(
        self,
        contract: FineTune,
        runs: str | Path = "runs",
        progress: Progress = silent,
        fresh: bool = False,
    ) -> None:
        self.contract = contract
        self.folder = RunFolder(Path(runs) / contract.name)
        self.progress = progress
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

    @cached_property
    def ledger(self) -> Ledger:
        """The exact count of what the contract trains."""
        return ledger_of(self.blueprint, self.contract.space)

    @cached_property
    def blueprint(self) -> Blueprint:
        """The base model's shapes."""
        return read_blueprint(self.model.folder)

    @cached_property
    def template(self) -> Template:
        """The model's chat template."""
        return Template.load(self.model.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return load_tokenizer(self.model.folder)

    @cached_property
    def training(self) -> Sequence[Example] | Sequence[Pair]:
        """The training rows as written."""
        return read_rows(self.contract.mask.train, self.contract.objective.kind)

    @cached_property
    def items(self) -> dict[str, list[Item]]:
        """The evaluation items by set; retention is absent when the contract has none."""
        evaluation = self.contract.evaluation
        found = {"task": read_rows(evaluation.task, "evaluation")}
        if evaluation.retention is not None:
            found["retention"] = read_rows(evaluation.retention, "evaluation")
        return found

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
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a generated answer: the model's own, and the one trained on."""
        turn = [Message("user", "?")]
        trained = encode_answer(self.template, self.tokenizer, turn, "!")[-1]
        return tuple(dict.fromkeys((*self.tokenizer.eos_ids, trained)))

    @cached_property
    def shared_system(self) -> str | None:
        """The system message that every training row begins with, if there is one."""
        rows = (row.prompt if isinstance(row, Pair) else row.messages for row in self.training)
        first = {row[0].content if row[0].role == "system" else None for row in rows}
        return first.pop() if len(first) == 1 else None

    def prompt_ids(self, item: Item, with_examples: bool = False) -> tuple[int, ...]:
        """Return an item's prompt; the examples stand between its system message and its turns."""
        messages = list(item.prompt)
        if with_examples:
            start = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
            messages[start:start] = self.few_shot
        return encode_prompt(self.template, self.tokenizer, messages, item.where)

    def answer_ids(self, item: Item, answer: str) -> tuple[int, ...]:
        """Return an answer to an item with its terminator."""
        return encode_answer(self.template, self.tokenizer, item.prompt, answer, item.where)

    @cached_property
    def prompts(self) -> dict[str, list[tuple[int, ...]]]:
        """The items' prompts by set, as the base and the tuned model read them."""
        return {name: [self.prompt_ids(i) for i in items] for name, items in self.items.items()}

    def choice_ids(self, item: Item) -> list[tuple[int, ...]]:
        """Return the ids by which an item's choices are compared.

        A pair's sides are scored as they are trained, terminator included. Other choices are
        scored without it, so that having learned to stop does not pass for knowing more; only
        where one choice begins another is the terminator needed to tell them apart.
        """
        whole = [self.answer_ids(item, choice) for choice in item.choices or ()]
        if item.is_pair:
            return whole
        bare = [ids[:-1] for ids in whole]
        nested = any(a != b and b[: len(a)] == a for a in bare for b in bare)
        return whole if nested else bare

    @cached_property
    def data_hashes(self) -> dict[str, str]:
        """The SHA-256 of each data file."""
        paths = {"train": self.contract.mask.train, "task": self.contract.evaluation.task}
        if self.contract.evaluation.retention is not None:
            paths["retention"] = self.contract.evaluation.retention
        return {name: hash_file(path) for name, path in paths.items()}

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
