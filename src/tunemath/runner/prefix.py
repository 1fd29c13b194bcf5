"""A prompt's beginning, shared by many rows, computed once.

Rows of one evaluation begin alike: the system prompt, the few-shot examples, the question stem of
several choices. The keys and values of the longest common prefix are computed once and repeated
for every batch. By causality this changes no later logit (beyond the order of float sums).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tunemath.runner.heads import States, output_states

__all__ = ["Batch", "SharedPrefix", "pad_right"]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: ``ids`` and ``real`` are (B, T); padding is where ``real`` is false."""

    ids: torch.Tensor
    real: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each row without padding, (B,)."""
        return self.real.sum(dim=1)


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> Batch:
    """Stack rows of different lengths into a `Batch`."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return Batch(ids, torch.arange(width, device=device)[None, :] < lengths[:, None])


class SharedPrefix:
    """A model's keys and values of one prefix, repeated for each batch that continues it.

    Models whose cache is not one plain layer of keys and values a block (sliding windows,
    state spaces) get no sharing: `usable` is false, and rows are computed whole. Their windows
    count cache columns, so padding between a row's parts would push its own tokens out.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model = model
        cache = DynamicCache(config=model.config)
        self.usable = all(type(layer) is DynamicLayer for layer in cache.layers)
        self.ids = tuple(ids) if self.usable else ()
        self.cache = cache if self.ids else None
        self.states: States | None = None
        """One for each prefix position, (P, …); the last predicts a row's first own token."""

    def fill(self) -> None:
        """Compute the prefix; call under `torch.inference_mode` and the adapter state wanted."""
        if self.cache is not None and self.states is None:
            ids = torch.tensor([self.ids], device=self.model.device)
            arguments = {"past_key_values": self.cache, "use_cache": True}
            self.states = output_states(self.model, input_ids=ids, **arguments)[0]

    def repeated(self, rows: int) -> Any:
        """Return the cache for ``rows`` rows, to be filled further and thrown away."""
        cache: Any = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache

    def forward(self, batch: Batch, keep: torch.Tensor | None = None) -> States:
        """Return the states (B, T or len(keep), …) of rows that continue the prefix.

        ``keep`` are the column indices that are wanted.
        """
        self.fill()
        rows, width = batch.ids.shape
        past = torch.ones((rows, len(self.ids)), dtype=torch.bool, device=batch.ids.device)
        arguments: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": torch.cat([past, batch.real], dim=1).long(),
            "position_ids": torch.arange(width, device=batch.ids.device)[None] + len(self.ids),
            "use_cache": self.cache is not None,
        }
        if self.cache is not None:
            arguments["past_key_values"] = self.repeated(rows)
        return output_states(self.model, keep=keep, **arguments)

    def branched(self, batch: Batch, positions: torch.Tensor, branches: torch.Tensor) -> States:
        """Return the states (B, T, …) of rows whose tokens fork into branches.

        ``positions`` and ``branches`` are (B, T). A token of branch 0 is seen by all that follow
        it, one of another branch only by its own branch; padding (-1) by itself alone.
        """
        self.fill()
        rows, width = batch.ids.shape
        causal = torch.ones((width, width), dtype=torch.bool, device=batch.ids.device).tril()
        trunk = (branches == 0)[:, None, :]
        seen = causal & (trunk | (branches[:, :, None] == branches[:, None, :]))
        past = torch.ones((rows, width, len(self.ids)), dtype=torch.bool, device=seen.device)
        seen = torch.cat([past, seen], dim=2)[:, None]
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        arguments: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": mask.masked_fill(~seen, torch.finfo(mask.dtype).min),
            "position_ids": positions + len(self.ids),
            "use_cache": self.cache is not None,
        }
        if self.cache is not None:
            arguments["past_key_values"] = self.repeated(rows)
        return output_states(self.model, **arguments)
