"""What a model does at each rank of its update: hidden states where it answers, and KL of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunemath.errors import ModelError
from tunemath.mask import common_prefix
from tunemath.runner.adapters import BottleneckModel
from tunemath.runner.answering import batches
from tunemath.runner.heads import States, kl
from tunemath.runner.loading import loading_errors
from tunemath.runner.models import choose_device, load_adapter, load_base
from tunemath.runner.prefix import SharedPrefix, pad_right
from tunemath.runner.prefixes import VirtualTokens
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.truncation import Truncation, cut_differences, cut_factors, own_weight
from tunemath.runner.tuned import CONFIG
from tunemath.space import Factors, lora_factors, read_tensor_headers
from tunemath.space.checkpoint import read_array

__all__ = ["Asked", "answer_states", "load_tuned", "open_update", "row_kl"]

_ROWS = 32
_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Asked:
    """Items as ids: prompts, and the answers that are read after them, terminator included."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]


@torch.inference_mode()
def answer_states(
    model: Any, asked: Asked, *, pad: int, tick: Callable[[int], None] = lambda done: None
) -> States:
    """Return the states (N, …) at the positions that predict answer tokens, item by item."""
    shared = SharedPrefix(model, common_prefix(asked.prompts))
    skipped = len(shared.ids)
    rows = [[*p, *a][skipped:] for p, a in zip(asked.prompts, asked.answers, strict=True)]
    found: list[torch.Tensor | None] = [None] * len(rows)
    head, done = None, 0
    for indices in batches([len(row) for row in rows], _ROWS):
        states = shared.forward(pad_right([rows[index] for index in indices], pad, model.device))
        head = states.head
        for place, index in enumerate(indices):
            first = len(asked.prompts[index]) - 1 - skipped
            found[index] = states.values[place, first : len(rows[index]) - 1].clone()
        done += len(indices)
        tick(done)
    return States(torch.cat([values for values in found if values is not None]), head)


@torch.inference_mode()
def row_kl(tuned: States, base: States, asked: Asked) -> list[float]:
    """Return KL(tuned ‖ base) in nats, summed over each item's answer tokens."""
    values = kl(tuned, base).double()
    return [float(row.sum()) for row in values.split([len(answer) for answer in asked.answers])]


def load_tuned(base: ResolvedModel, update: Path) -> Any:
    """Return the tuned model in float32: a model of its own, or the base with a saved update.

    Raises `ModelError` where the update changes no weight, so that it has no rank.
    """
    device, dtype = choose_device()[0], torch.float32
    adapter = any((update / name).is_file() for name in (CONFIG, _PEFT_CONFIG))
    if not adapter:
        return load_base(replace(base, id=str(update), folder=update), device, dtype)
    live = load_base(base, device, dtype)
    if (update / _PEFT_CONFIG).is_file() and live.config.tie_word_embeddings:
        # PEFT's adapter of a tied head is the head's alone, and has to be when it is merged.
        names = {id(module): name for name, module in live.named_modules()}
        own_weight(live, f"{names[id(live.get_output_embeddings())]}.weight")
    tuned = load_adapter(live, update)
    if isinstance(tuned, BottleneckModel):
        raise ModelError(
            f"{update} is an adapter with a non-linearity inside, so it is no change of a weight "
            "and has no rank; compare runs of other widths"
        )
    if isinstance(tuned, VirtualTokens):
        raise ModelError(
            f"{update} stands before the input and changes no weight, so it has no rank; compare "
            "runs of other lengths"
        )
    return tuned


def open_update(
    base: ResolvedModel,
    tuned: Any,
    update: Path,
    ranks: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Truncation:
    """Return an update ready to be cut at up to ``ranks``; ``tuned`` is `load_tuned`'s model.

    A LoRA adapter is taken from its factors. Of every other update the differences of the weights
    are taken, for which ``tuned`` is merged; it can't be used as an adapter afterwards.
    """
    live = load_base(base, choose_device()[0], torch.float32)
    factors = _plain_factors(live, update)
    if factors is not None:
        return cut_factors(live, factors)
    if hasattr(tuned, "merge_and_unload"):
        with loading_errors(f"the update in {update} can't be written into the base's weights"):
            tuned = tuned.merge_and_unload()
    return cut_differences(live, tuned, ranks, tick)


def _plain_factors(live: Any, update: Path) -> list[Factors] | None:
    """Return LoRA's factors where they are the whole update, of linear layers and embeddings."""
    if not (update / _PEFT_CONFIG).is_file():
        return None
    try:
        factors = list(lora_factors(update))
    except ModelError:  # another tuner, or one whose ΔW is no product of two factors
        return None
    matrices = all(live.get_submodule(each.name).weight.dim() == 2 for each in factors)
    return factors if matrices and _nothing_else(live, update) else None


def _nothing_else(live: Any, update: Path) -> bool:
    """Say whether an adapter's file holds nothing that moves the model but LoRA's factors.

    Beside an adapter of the embeddings PEFT saves their own weight too, as it was.
    """
    before = dict(live.named_parameters(remove_duplicate=False))
    for name, header in read_tensor_headers(update / _PEFT_WEIGHTS).items():
        if ".lora_A" in name or ".lora_B" in name or ".lora_embedding_" in name:
            continue
        own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if own not in before:
            return False
        stored = torch.from_numpy(np.array(read_array(update, header), dtype=np.float32))
        if not torch.equal(stored, before[own].detach().cpu()):
            return False
    return True
