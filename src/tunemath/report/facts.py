"""What a report says, as rows of words, once: terminal, HTML and model card only lay it out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from tunemath.report.text import (
    MISSING,
    clean,
    count,
    decimal,
    dig,
    flops,
    interval,
    number,
    percent,
    points,
    scientific,
    short_path,
    size,
)

__all__ = [
    "CHOICES",
    "ChoiceFacts",
    "Row",
    "choice_facts",
    "loss_unit",
    "mask_rows",
    "movement_text",
    "share_of",
    "written",
]

Row = tuple[str, str]

CHOICES: dict[str, tuple[str, str]] = {
    "space": ("Update space", "What may change"),
    "objective": ("Objective", "What is minimised"),
    "mask": ("Data mask", "Which tokens count"),
    "budget": ("Optimizer budget", "What it costs"),
    "evaluation": ("Evaluation contract", "What would change our mind"),
}

_PATH_KEYS = frozenset({"train", "task", "retention"})


@dataclass(frozen=True)
class ChoiceFacts:
    """One of the five choices: what was written, and the numbers that it implies."""

    key: str
    number: int
    title: str
    question: str
    written: list[Row]
    implies: list[Row]


def choice_facts(evidence: Mapping[str, Any]) -> list[ChoiceFacts]:
    """Return the five choices in order, each with what was written and what it implies."""
    rows = {
        "space": _space,
        "objective": _objective,
        "mask": mask_rows,
        "budget": _budget,
        "evaluation": _evaluation,
    }
    return [
        ChoiceFacts(key, i, title, question, written(evidence, key), list(rows[key](evidence)))
        for i, (key, (title, question)) in enumerate(CHOICES.items(), start=1)
    ]


def written(evidence: Mapping[str, Any], choice: str) -> list[Row]:
    """Return the contract's own keys and values of one choice."""
    section = dig(evidence, "contract", choice)
    if not isinstance(section, Mapping):
        return []
    return [
        (clean(key), _value(key, value))
        for key, value in section.items()
        if not (key == "beta" and value is None)
    ]


def _value(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(name)} {_value(name, inner)}" for name, inner in value.items())
    if isinstance(value, str | PurePath):
        return short_path(value) if key in _PATH_KEYS else clean(value)
    if isinstance(value, Sequence):
        return ", ".join(clean(item) for item in value)
    return scientific(value) if isinstance(value, float) else clean(value)


def share_of(part: Any, whole: Any, unit: str) -> str:
    """Return a part of a whole in units and percent."""
    if number(part) is None:
        return MISSING
    share = f" ({percent(part / whole, 2)})" if number(whole) else ""
    return f"{count(part)} of {count(whole)} {unit}{share}"


def _space(evidence: Mapping[str, Any]) -> Iterator[Row]:
    total = dig(evidence, "plan", "parameters", "total")
    planned = dig(evidence, "plan", "parameters", "trainable")
    yield "Trainable, from the shapes", share_of(planned, total, "parameters")
    peft = dig(evidence, "training", "trainable", "peft")
    live = dig(evidence, "training", "trainable", "live") if peft is None else peft
    word = "the same" if live == planned else "not what the shapes imply"
    yield (
        "Trainable, counted in the live model"
        if peft is None and number(live) is not None
        else "Trainable, PEFT's count of the live model",
        MISSING if number(live) is None else f"{count(live)} parameters: {word}",
    )
    targets = dig(evidence, "plan", "parameters", "by_target") or []
    modules = sum(t.get("modules") or 0 for t in targets)
    if targets:
        yield "Trained modules", f"{count(modules)}, of {len(targets)} kinds"
    if dig(evidence, "contract", "space", "method") in (None, "lora", "dora"):
        yield "Scale s in ΔW = s·BA", _scale(dig(evidence, "contract", "space"))
    skipped = dig(evidence, "spectrum", "skipped")
    if skipped:
        yield "Spectrum of ΔW", clean(skipped)
        return
    summary = dig(evidence, "spectrum", "summary") or {}
    rank = dig(evidence, "contract", "space", "rank")
    of_rank = f" of {rank}" if rank else ""
    effective = summary.get("median_effective_rank")
    yield (
        "Effective rank, median over modules",
        MISSING if number(effective) is None else decimal(effective, 2) + of_rank,
    )
    ninety = summary.get("rank_for_90_percent")
    yield (
        "Rank that holds 90 % of the energy, median",
        MISSING if number(ninety) is None else f"{ninety:g}{of_rank}",
    )


def target_shape(target: Mapping[str, Any]) -> str:
    """Return what a layer maps to what, or the shape of what isn't linear.

    >>> target_shape({"d_in": 576, "d_out": 192}), target_shape({"shape": [49152, 576]})
    ('576 → 192', '49,152 × 576')
    """
    if target.get("d_in") is None and target.get("shape"):
        return " × ".join(count(size) for size in target["shape"])
    return f"{count(target.get('d_in'))} → {count(target.get('d_out'))}"


def _scale(space: Any) -> str:
    alpha, rank = number(dig(space, "alpha")), number(dig(space, "rank"))
    if alpha is None or not rank:
        return MISSING
    if dig(space, "rslora"):
        return f"α/√r = {alpha:g}/√{rank:g} = {alpha / math.sqrt(rank):.4g}"
    return f"α/r = {alpha:g}/{rank:g} = {alpha / rank:.4g}"


def loss_unit(evidence: Mapping[str, Any]) -> str:
    """Return the unit of the training loss, which depends on the objective."""
    return "nats per pair" if _kind(evidence) == "dpo" else "nats per answer token"


def _kind(evidence: Mapping[str, Any]) -> Any:
    return dig(evidence, "contract", "objective", "kind") or dig(evidence, "training", "objective")


def _objective(evidence: Mapping[str, Any]) -> Iterator[Row]:
    dpo = _kind(evidence) == "dpo"
    unit = loss_unit(evidence)
    if dpo:
        yield "Minimised", "mean over pairs of −log σ(β · margin); adapter off is the reference"
        first = dig(evidence, "training", "step0_loss")
        text = MISSING if number(first) is None else f"{decimal(first, 6)} {unit}"
        yield "Loss before the first step", f"{text} (ln 2 = {math.log(2):.6f})"
    else:
        yield "Minimised", "mean cross-entropy over the answer tokens of a batch"
    log = dig(evidence, "training", "log") or []
    for name, rows in (("first", log[:5]), ("last", log[-5:])):
        values = [v for v in (number(row.get("loss")) for row in rows) if v is not None]
        text = f"{decimal(sum(values) / len(values))} {unit}" if values else MISSING
        yield f"Loss, mean of the {name} {len(values) or ''} steps".replace("  ", " "), text
    if dpo and log:
        last = log[-1]
        yield "Margin at the last step", f"{decimal(last.get('margin'))} nats"
        yield "Pairs ranked rightly at the last step", percent(last.get("accuracy"))
    split = dig(evidence, "training", "micro_batch") or {}
    yield "Loss changed by the micro-batch split", _relative(split.get("loss_difference"))
    identity = dig(evidence, "training", "identity", "max_logit_difference")
    yield "Largest logit moved before training", scientific(identity)
    if dig(evidence, "training", "identity", "moves_by_nature"):
        kl = dig(evidence, "training", "identity", "kl")
        yield "KL(tuned ‖ base) before training", f"{decimal(kl)} nats"


def _relative(value: Any) -> str:
    return MISSING if number(value) is None else f"{scientific(value)} of its value"


def mask_rows(evidence: Mapping[str, Any]) -> Iterator[Row]:
    """Return what the certificate over every training row says."""
    mask = dig(evidence, "mask") or {}
    yield "Rows", f"{count(mask.get('rows'))}; {count(mask.get('dropped'))} dropped as too long"
    yield "Trained on", share_of(mask.get("supervised"), mask.get("tokens"), "tokens")
    yield "Answer tokens in a row, median", count(mask.get("median_supervised"))
    yield "Longest row", _with_unit(count(mask.get("longest_row")), "tokens")
    end = mask.get("terminator") or {}
    yield (
        f"End of turn {clean(end.get('text', ''))} trained on".replace("  ", " "),
        MISSING if not end else f"{count(end.get('supervised'))} of {count(end.get('expected'))}",
    )
    violations = mask.get("violations")
    yield "Violations of the certificate", count(sum(violations.values()) if violations else None)
    overlap = mask.get("overlap") or {}
    for name in ("task", "retention"):
        text = count(dig(overlap, name, "exact"))
        if others := dig(overlap, name, "other_system"):
            text += f"; {count(len(others))} under another system message, with another answer"
        yield f"Rows shared with the {name} items", text
    for key, label, sign in (
        ("copies", "Copies of earlier rows", " = "),
        ("contradictory", "Same question, other answers", " ≠ "),
    ):
        if again := dig(mask, "repeated", key):
            first = "; ".join(sign.join(pair) for pair in dig(mask, "repeated", f"first_{key}"))
            yield label, f"{count(again)} rows: {clean(first)}"


def _with_unit(text: str, unit: str) -> str:
    return text if text == MISSING else f"{text} {unit}"


def _budget(evidence: Mapping[str, Any]) -> Iterator[Row]:
    plan = dig(evidence, "plan") or {}
    schedule = plan.get("schedule") or {}
    done, planned = dig(evidence, "training", "steps"), schedule.get("steps")
    yield (
        "Optimizer steps",
        f"{count(planned)} planned, {count(done)} done"
        if number(done) is not None
        else f"{count(planned)} planned; training {MISSING}",
    )
    yield "Warm-up", _with_unit(count(schedule.get("warmup_steps")), "steps")
    yield "Rows in a step", count(schedule.get("rows_per_step"))
    yield "Tokens read in training", count(schedule.get("tokens_total"))
    yield "Peak learning rate", scientific(schedule.get("peak_learning_rate"))
    yield "Memory at the peak, predicted", size(dig(plan, "memory", "total_bytes"))
    yield "Training compute", flops(dig(plan, "compute", "training_flops"))
    yield "Evaluation compute", flops(dig(plan, "compute", "evaluation_flops"))
    resumed = dig(evidence, "training", "resumed_at") or []
    if resumed:
        yield "Resumed after step", ", ".join(count(step) for step in resumed)


def _evaluation(evidence: Mapping[str, Any]) -> Iterator[Row]:
    power = dig(evidence, "plan", "power") or {}
    for name in ("task", "retention"):
        items = dig(power, name, "items")
        yield f"{name.capitalize()} items", "none" if items is None else count(items)
        smallest = dig(power, name, "smallest_difference")
        if items is not None:
            least = "nothing" if smallest is None else points(smallest).lstrip("+")
            yield (
                f"Smallest detectable {name} difference",
                least + _odds(power),
            )
    yield "Examples in the prompt-only baseline", count(dig(evidence, "baselines", "few_shot"))
    margin = dig(evidence, "scorecard", "retention_margin")
    if margin is None:
        margin = dig(evidence, "contract", "evaluation", "retention_margin")
    yield "Retention that may be lost", points(margin).lstrip("+")
    for name in ("task", "retention"):
        yield f"KL(tuned ‖ base) on {name} answers", movement_text(evidence, name)
        agreement = dig(evidence, "movement", name, "top1_agreement")
        if number(agreement) is not None:
            yield f"Same first-choice token, {name}", percent(agreement)


def _odds(power: Mapping[str, Any]) -> str:
    alpha, chance = number(power.get("alpha")), number(power.get("power"))
    return "" if alpha is None or chance is None else f" (α {alpha:g}, power {chance:g})"


def movement_text(evidence: Mapping[str, Any], name: str) -> str:
    """Return KL(tuned ‖ base) on the task or retention answers, with its interval and unit."""
    part = dig(evidence, "movement", name) or dig(evidence, "scorecard", "movement", name) or {}
    if number(part.get("kl")) is None:
        return MISSING
    ends = interval(part.get("low"), part.get("high"))
    return f"{decimal(part['kl'])} {ends} nats per answer token"
