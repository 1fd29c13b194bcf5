"""The most memory that each stage of a run holds, and in which stage it is most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tunemath.budget.peaks import (
    Widths,
    answering_bytes,
    choosing_bytes,
    holding_bytes,
    moving_bytes,
    proving_bytes,
)
from tunemath.mask import common_prefix
from tunemath.pipeline.memory import Scenario
from tunemath.pipeline.run import Run
from tunemath.space import UNFREEZING

__all__ = ["run_peaks"]

_FLOAT32 = 4


def run_peaks(run: Run, scenario: Scenario, product: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step's memory product with the peak of every stage, and the highest of all.

    ``total_bytes`` is the most that any stage holds, and whether the run fits is judged by it.
    """
    found = _Peaks(run, scenario)
    stages = {"baselines": found.baselines, "train": max(product["peak_bytes"], found.probes)}
    stages |= {
        "artefact": found.artefact,
        "evaluate": found.evaluate,
        "movement": found.movement,
    }
    highest = max(stages, key=lambda stage: stages[stage])
    whole = {"stages": stages, "highest": highest, "total_bytes": stages[highest]}
    if product["limit_bytes"] is None:
        return {**product, **whole}
    fits = stages[highest] <= product["limit_bytes"]
    found = {**product, **whole, "fits": fits}
    if product["fits"] and not fits:  # what would make the step smaller is no help
        found |= {"changes": [], "largest": {}}
    return found


class _Peaks:
    """The stages' peaks in bytes, weights and the device's context included."""

    def __init__(self, run: Run, scenario: Scenario) -> None:
        self.run, self.scenario = run, scenario
        blueprint, held = scenario.blueprint, scenario.held
        self.widths = Widths(
            hidden=blueprint.hidden,
            intermediate=blueprint.intermediate,
            layers=blueprint.layers,
            heads=blueprint.heads,
            kv_heads=blueprint.kv_heads,
            head_dim=blueprint.head_dim,
            vocab=blueprint.vocab,
            element=held.element,
            device=scenario.device,
        )
        terms = {term.name: term.bytes for term in scenario.memory.terms}
        self.context = terms.get("device context", 0)
        self.base = terms.get("base weights", 0) + self.context
        self.added = terms.get("added weights", 0)
        self.method = run.contract.space.method

    @property
    def baselines(self) -> int:
        """The base's answers, without and with examples in the prompt."""
        few = self._few_shot()
        return self.base + max(self._loading, *self._asking(0), *self._asking(few))

    @property
    def probes(self) -> int:
        """The batch whose cuts are compared, before there is an optimizer: its two gradients."""
        rows = [row for example in self.run.probe_examples for row in example]
        probed = replace(
            self.scenario,
            tokens=max(len(row.input_ids) for row in rows),
            supervised=max(sum(row.supervised) for row in rows),
            batch=len(self.run.probe_examples),
            micro_batch=len(self.run.probe_examples),
        )
        terms = {term.name: term for term in probed.memory.terms}
        state = terms["optimizer state"].at_peak if "optimizer state" in terms else 0
        return probed.memory.peak - state + terms["gradients"].bytes

    @property
    def artefact(self) -> int:
        """The proof, on the rows that are probed."""
        rows = [row for example in self.run.probe_examples for row in example]
        change = self.scenario.ledger.change
        names = {module.name for module in change.targets} | {
            name.removesuffix(".weight") for name in change.unfrozen
        }
        largest = max(
            (prod(shape) for name, shape in self.scenario.blueprint.tensors()
             if name.removesuffix(".weight") in names),
            default=0,
        )  # fmt: skip
        proof = proving_bytes(
            self.widths,
            rows=len(rows),
            tokens=max(len(row.input_ids) for row in rows),
            positions=sum(sum(row.supervised) for row in rows),
            largest=0 if self.method in UNFREEZING else largest,
        )
        live = self.base + self.added + max(self._loading, proof)
        return max(live, self.context + holding_bytes(largest))

    @property
    def evaluate(self) -> int:
        """The tuned model's answers."""
        return self._tuned + max(self._loading, *self._asking(0))

    @property
    def movement(self) -> int:
        """Both models on the reference answers.

        One that was trained in full goes before the base comes, but for its states and its head.
        """
        kept = head = 0
        if self.method == "full":
            kept = sum(sum(lengths) for _, lengths in self._sets(reference=True))
            head = self.widths.element * self.widths.vocab * self.widths.hidden
        sets = self._sets(reference=True)
        most = max(
            moving_bytes(self.widths, len(lengths), shared, max(lengths), kept)
            for shared, lengths in sets
        )
        return self._tuned + max(self._loading, head + most)

    @property
    def _loading(self) -> int:
        """A tied head, which has a weight of its own until the model is whole."""
        widths, blueprint = self.widths, self.scenario.blueprint
        tied = f"{blueprint.head}.weight" in blueprint.tied
        return widths.element * widths.vocab * widths.hidden if tied else 0

    @property
    def _tuned(self) -> int:
        """The base, what was added, and of its own trained weights a copy to switch them off."""
        copied = sum(count * prod(shape) for shape, count in self.scenario.held.unfrozen)
        own = self.method in UNFREEZING and self.method != "full"
        return self.base + self.added + (_FLOAT32 * copied if own else 0)

    def _sets(self, reference: bool) -> Iterator[tuple[int, list[int]]]:
        """Yield the shared tokens of a set, and the lengths of its prompts behind them.

        With ``reference``, the reference answers are read after them.
        """
        for name, items in self.run.items.items():
            prompts: Sequence[Sequence[int]] = self.run.prompts[name]
            shared = len(common_prefix(prompts))
            lengths = [len(prompt) - shared for prompt in prompts]
            if reference:
                lengths = [
                    n + self._tokens(item.reference) for n, item in zip(lengths, items, strict=True)
                ]
            yield shared, lengths

    def _asking(self, few: int) -> list[int]:
        """Return what each set takes, with ``few`` more tokens in every prompt."""
        evaluation, found = self.run.contract.evaluation, []
        for (shared, lengths), items in zip(
            self._sets(reference=False), self.run.items.values(), strict=True
        ):
            rows = min(evaluation.batch_size, len(items))
            if items[0].choices is None:
                new = evaluation.max_new_tokens
                found.append(answering_bytes(self.widths, rows, shared + few, max(lengths), new))
                continue
            widest = max(
                n + sum(self._tokens(choice) for choice in item.choices or ())
                for n, item in zip(lengths, items, strict=True)
            )
            found.append(choosing_bytes(self.widths, rows, shared + few, widest))
        return found

    def _few_shot(self) -> int:
        """Return by how many tokens the examples make a prompt longer."""
        item = next(iter(self.run.items.values()))[0]
        shown = self.run.prompt_ids(item, with_examples=True)
        return len(shown) - len(self.run.prompt_ids(item))

    def _tokens(self, text: str) -> int:
        return len(self.run.tokenizer.encode(text)) + 1
