"""What makes the tiny job a preference job."""

from __future__ import annotations

DPO = (
    "name=tiny-dpo",
    "objective.kind=dpo",
    "mask.train={folder}/pairs.jsonl",
    "evaluation.task={folder}/held.jsonl",
)
"""Overrides of the tiny job's contract; format them with ``folder``."""
