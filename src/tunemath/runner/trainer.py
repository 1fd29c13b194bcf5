"""transformers' Trainer with our losses, our reduction, and a witness at the model's door."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from tunemath.errors import RunError
from tunemath.mask import row_hash
from tunemath.objective import dpo_loss, dpo_margin
from tunemath.objective.record import Objective
from tunemath.runner.heads import States, output_states
from tunemath.runner.hf_labels import IGNORED, collate, shift_targets, supervised_rows

__all__ = ["OneDevice", "Row", "Rows", "TuneTrainer", "Witness"]

_TRAINED = "trained.safetensors"

Row = tuple[Sequence[int], Sequence[bool]]
"""Token ids and, for each, whether it is a target; for DPO an example is a pair of rows."""


class Rows(Dataset):
    """Training examples in the order in which they will be seen, all epochs one after another."""

    def __init__(self, examples: Sequence[tuple[Row, ...]], order: Sequence[int]) -> None:
        self.examples, self.order = examples, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Row, ...]:
        return self.examples[self.order[index]]


class Witness:
    """Counts the rows that reach the loss, and those that the mask certificate does not know."""

    def __init__(self, certified: Sequence[str]) -> None:
        self.certified = frozenset(certified)
        self.seen: Counter[str] = Counter()
        self.uncertified = 0
        self.supervised_tokens = 0

    def look(self, inputs: dict[str, torch.Tensor]) -> None:
        """Hash every row of a batch as it is about to enter the model."""
        for ids, supervised in supervised_rows(inputs):
            key = row_hash(ids, supervised)
            if key in self.certified:
                self.seen[key] += 1
                self.supervised_tokens += sum(supervised)
            else:
                self.uncertified += 1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must carry."""
        return {
            "seen": dict(self.seen),
            "uncertified": self.uncertified,
            "supervised_tokens": self.supervised_tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the counts of a checkpoint."""
        self.seen = Counter(state["seen"])
        self.uncertified = state["uncertified"]
        self.supervised_tokens = state["supervised_tokens"]


class OneDevice(TrainingArguments):
    """Training arguments under which a step stays on one device, however many are there.

    transformers would wrap the model in `torch.nn.DataParallel` and take a micro-batch for each
    device: more rows a step than the contract says.
    """

    @property
    def n_gpu(self) -> int:
        """The number of GPUs used: one, or none."""
        return min(1, super().n_gpu)


class TuneTrainer(Trainer):
    """A Trainer whose loss is a sum over the micro-batch divided once by the global batch's weight.

    The weight is the number of supervised tokens (SFT) or of pairs (DPO) in the whole optimizer
    step, so neither the micro-batch nor padding changes the gradient.
    """

    def __init__(
        self, *, objective: Objective, pad: int, witness: Witness | None, **kwargs: Any
    ) -> None:
        self.pad = pad
        super().__init__(data_collator=self.collated, **kwargs)
        self.objective = objective
        self.witness = witness
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.step_metrics: defaultdict[str, float] = defaultdict(float)

    def collated(self, examples: Sequence[tuple[Row, ...]]) -> dict[str, torch.Tensor]:
        """Stack examples into a batch; of pairs, all chosen rows come before all rejected ones."""
        sides = zip(*examples, strict=True)
        return collate([row for side in sides for row in side], self.pad)

    def weight(self, batch: dict[str, torch.Tensor]) -> int:
        """Return what a batch adds to the divisor: supervised tokens, or pairs."""
        if self.objective.kind == "dpo":
            return len(batch["labels"]) // 2
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> int:
        return sum(self.weight(batch) for batch in batch_samples)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Return this micro-batch's share of the global mean loss, in nats."""
        if self.witness is not None:
            self.witness.look(inputs)
        weight = int(num_items_in_batch or self.weight(inputs))
        if self.objective.kind == "dpo":
            loss = self._dpo_sum(model, inputs) / weight
        else:
            states, targets, counts = self._supervised(model, inputs)
            loss = states.cross_entropy(targets, counts) / weight
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}; "
                "lower budget.learning_rate, or look at the rows of that step"
            )
        return loss

    def _supervised(
        self, model: Any, inputs: dict[str, torch.Tensor]
    ) -> tuple[States, torch.Tensor, torch.Tensor]:
        """Return states (B, C, …), their targets and which of these count, (B, C).

        C are the columns in which some row has a target. Rows are padded on the right, behind all
        that counts, and a causal model looks back only: it needs no mask, which would keep T²
        numbers a row and layer.
        """
        targets, counts = shift_targets(inputs["labels"])
        columns = counts.any(dim=0).nonzero()[:, 0]
        states = output_states(model, keep=columns, input_ids=inputs["input_ids"])
        return states, targets[:, columns], counts[:, columns]

    def _answer_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return each row's log-probability summed over its answer's tokens, (B,) nats."""
        states, targets, counts = self._supervised(model, inputs)
        return states.log_probs(targets, counts).sum(dim=1)

    def _dpo_sum(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum the DPO loss over pairs: policy is the update on, reference the update off."""
        chosen, rejected = self._answer_log_probs(model, inputs).chunk(2)
        with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
            reference_chosen, reference_rejected = self._answer_log_probs(model, inputs).chunk(2)
        pair = (chosen, rejected, reference_chosen, reference_rejected)
        margin = dpo_margin(*pair).detach()
        self.step_metrics["pairs"] += len(margin)
        self.step_metrics["margin"] += float(margin.sum())
        self.step_metrics["accuracy"] += float((margin > 0).sum())
        return dpo_loss(*pair, beta=cast(float, self.objective.beta)).sum()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the trained tensors, all that a checkpoint needs of any method's weights."""
        folder = Path(output_dir or cast(str, self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        named = cast(Any, self.model).named_parameters()
        tensors = {name: p.detach().cpu().contiguous() for name, p in named if p.requires_grad}
        save_file(tensors, folder / _TRAINED, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / _TRAINED)
        with torch.no_grad():
            for name, parameter in cast(Any, model or self.model).named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(tensors[name])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's mean DPO margin (nats) and accuracy to its log line."""
        pairs = self.step_metrics.pop("pairs", 0)
        if pairs and "loss" in logs:
            logs["margin"] = self.step_metrics["margin"] / pairs
            logs["accuracy"] = self.step_metrics["accuracy"] / pairs
            self.step_metrics.clear()
        super().log(logs, start_time)
