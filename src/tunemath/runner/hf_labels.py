"""The one place that knows transformers' label convention: -100 where a token is not a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["IGNORED", "collate", "shift_targets", "supervised_rows"]

IGNORED = -100


def collate(
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int
) -> dict[str, torch.Tensor]:
    """Right-pad rows of (ids, supervised) into input_ids, attention_mask and labels, each (B, T).

    Labels follow the mask alone, never the token's value: a pad id that is also the
    end-of-turn id stays supervised where the mask says so.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, (tokens, supervised) in enumerate(rows):
        length = len(tokens)
        ids[index, :length] = torch.tensor(tokens)
        attention[index, :length] = 1
        chosen = torch.tensor(supervised)
        labels[index, :length][chosen] = ids[index, :length][chosen]
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def shift_targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each position t < T-1, the token it predicts and whether that token counts."""
    following = labels[:, 1:]
    return following.clamp(min=0), following != IGNORED


def supervised_rows(
    inputs: dict[str, torch.Tensor],
) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Read back (ids, supervised) of each row of a collated batch, as it reaches the model.

    A label on a padding position, or one that is not its own token, makes the row unlike any
    certified one: it is returned with the padded tail, so that its hash cannot match.
    """
    rows = []
    for ids, real, labels in zip(
        inputs["input_ids"].tolist(),
        inputs["attention_mask"].tolist(),
        inputs["labels"].tolist(),
        strict=True,
    ):
        length = sum(real)
        honest = real == [1] * length + [0] * (len(real) - length)
        honest &= all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        honest &= all(label == IGNORED for label in labels[length:])
        keep = length if honest else len(ids)
        rows.append((tuple(ids[:keep]), tuple(label != IGNORED for label in labels[:keep])))
    return rows
