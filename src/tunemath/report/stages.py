"""What `tunemath baselines`, `train`, `artefact` and `evaluate` show when they are run alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunemath.report.text import (
    clean,
    count,
    decimal,
    device_text,
    duration,
    percent,
    scientific,
)

__all__ = ["arms_view", "artefact_view", "training_view"]

_SHOWN = 10
_FORMS = {
    "adapter_vs_reloaded": "saved and loaded again",
    "adapter_vs_merged": "merged into the base",
    "adapter_vs_reloaded_merged": "merged, saved and loaded again",
}


def arms_view(evidence: Mapping[str, Any]) -> RenderableType:
    """Return the score of every arm that has been evaluated, by set."""
    table = Table("arm", "set", "metric", "right", "of", "score", box=None, header_style="dim")
    arms: dict[str, Any] = {}
    for product in ("baselines", "evaluation"):
        arms |= (evidence.get(product) or {}).get("arms") or {}
    for arm, sets in arms.items():
        for name, result in sets.items():
            if result:
                table.add_row(
                    arm,
                    name,
                    result["metric"],
                    count(result["correct"]),
                    count(result["items"]),
                    percent(result["score"]),
                )
    return table


def training_view(training: Mapping[str, Any]) -> RenderableType:
    """Return the loss along training, evenly spaced steps, and what was seen."""
    log = training["log"]
    places = sorted({round(k * (len(log) - 1) / (_SHOWN - 1)) for k in range(_SHOWN)})
    margins = "margin" in log[0]
    table = Table("step", "loss", "rate", "gradient", box=None, header_style="dim")
    if margins:
        table.add_column("margin")
        table.add_column("accuracy")
    for entry in (log[place] for place in places):
        cells = [
            count(entry["step"]),
            decimal(entry["loss"]),
            f"{entry['learning_rate']:.2e}",
            decimal(entry["grad_norm"]),
        ]
        if margins:
            cells += [decimal(entry["margin"]), percent(entry["accuracy"])]
        table.add_row(*cells)
    seen = training["rows_seen"]
    return Group(
        table,
        Text(
            f"{count(training['steps'])} steps in {duration(training['seconds'])}; "
            f"{count(seen['certified'])} of {count(seen['expected'])} rows reached the model as "
            f"certified, {count(seen['uncertified'])} did not"
        ),
        Text(f"On {device_text(training)}"),
    )


def artefact_view(artefact: Mapping[str, Any]) -> RenderableType:
    """Return how far each form that may be deployed is from the trained model."""
    table = Table("form", "largest logit difference", "KL", box=None, header_style="dim")
    for key, words in _FORMS.items():
        if key in artefact:
            found = artefact[key]
            table.add_row(
                words, scientific(found["max_logit_difference"]), f"{scientific(found['kl'])} nats"
            )
    weights, lines = artefact.get("weights") or {}, []
    if "unchanged" in weights:
        same = count(weights["unchanged"] - weights["differing"])
        lines.append(
            f"{count(len(weights['by_tensor']))} tensors are changed, {same} of "
            f"{count(weights['unchanged'])} others are the base's"
        )
    if "not_merged" in artefact:
        lines.append(f"Not merged: {clean(artefact['not_merged'])}")
    lines.append(
        f"{count(artefact['positions'])} positions; a logit may differ by "
        f"{scientific(artefact['tolerance'])}"
    )
    return Group(table, *(Text(line) for line in lines))
