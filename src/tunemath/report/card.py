"""A model card: the README.md of the tuned model's repository; what was checked, what not."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunemath.report.code import example_code
from tunemath.report.facts import choice_facts, movement_text
from tunemath.report.results import (
    differences,
    findings,
    headline,
    remarks,
    scores,
    winning_sentence,
)
from tunemath.report.text import MISSING, clean, clip, dig
from tunemath.space.peft.portable import base_reference
from tunemath.space.record import UNFREEZING

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FOLDER = re.compile(r"\./[\w. /-]+")
_CARRIED = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_LIBRARIES = {"full": "transformers", **dict.fromkeys(("lora", "dora", "prefix", "prompt"), "peft")}
_LIMITS = (
    "The scores hold for the held-out items named above, drawn as the training rows were; other "
    "inputs were not measured.",
    "Retention was measured on one set of items only; abilities that it does not ask about may "
    "have changed.",
    "Intervals cover the choice of items, not the seed: the run was trained once.",
    "Safety, bias and truthfulness were not measured.",
)


def model_card(evidence: Mapping[str, Any], base_model: str | None = None) -> str:
    """Return a model card in Markdown with YAML front matter.

    No licence is stated: the update's licence is for its author to choose within the base's.

    Args:
        evidence: the products of a run by name; what is absent is said to be not measured.
        base_model: the hub id of the base; taken from the contract where that is a hub id.
    """
    hub = base_model or _hub_id(dig(evidence, "contract", "model", "id"))
    name = clean(dig(evidence, "contract", "name") or "unnamed run")
    sections = [
        f"# {_text(name)}",
        _verdict(evidence),
        *(f"*{_text(label)}: {_text(text)}.*" for label, text in remarks(evidence)),
        "## Five choices",
        *_choices(evidence),
        "## Results",
        _results(evidence),
        "## How to load it",
        _where(evidence, hub),
        _fence(example_code(evidence, base=hub or _base(evidence), update="."), "python"),
        "## What was checked",
        _checked(evidence),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(evidence)),
        "## Before and after",
        _answers(evidence),
    ]
    text = _front_matter(evidence, hub) + "\n\n".join(s for s in sections if s) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _where(evidence: Mapping[str, Any], hub: str | None) -> str:
    """Say from where the code runs as it stands."""
    update = _folder(evidence)
    beside = "" if hub else f", with the base model as `{_base(evidence)}` in it"
    return (
        f"Run this in the folder of this file{beside}; or put the folder's path or hub id for "
        f"`{update}`" + ("." if hub else ", and the base's for `base`.")
    )


def _base(evidence: Mapping[str, Any]) -> str:
    name, _ = base_reference(str(dig(evidence, "contract", "model", "id") or ""))
    return name if _FOLDER.fullmatch(name) else "path/to/base"


def _folder(evidence: Mapping[str, Any]) -> str:
    return "weights" if dig(evidence, "contract", "space", "method") in UNFREEZING else "adapter"


def _hub_id(model: Any) -> str | None:
    """Return the hub id of a model, or None where it is a folder."""
    model = _CARRIED.get(str(model), str(model))
    return model if _HUB_ID.fullmatch(model) and not Path(model).exists() else None


def _front_matter(evidence: Mapping[str, Any], hub: str | None) -> str:
    import yaml

    kind = dig(evidence, "contract", "objective", "kind")
    method = dig(evidence, "contract", "space", "method")
    values: dict[str, Any] = {"base_model": hub} if hub else {}
    values |= {
        "library_name": _LIBRARIES.get(str(method or "lora"), "tunemath"),
        "pipeline_tag": "text-generation",
        "tags": [str(tag) for tag in ("tunemath", method, kind) if tag],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n\n"


def _verdict(evidence: Mapping[str, Any]) -> str:
    verdict = headline(evidence)
    code = "none" if verdict.exit_code is None else str(verdict.exit_code)
    return (
        f"**{_text(verdict.word)}.** {_text(verdict.sentence)}\n\n"
        f"Exit code {code}: {_text(verdict.meaning)}."
    )


def _choices(evidence: Mapping[str, Any]) -> Iterable[str]:
    for choice in choice_facts(evidence):
        yield f"### {choice.number}. {choice.title}: {choice.question.lower()}"
        rows = [(f"`{_code(key)}`", value) for key, value in choice.written]
        rows += [(_text(key), value) for key, value in choice.implies]
        yield _table(("", "Value"), [(key, _text(value)) for key, value in rows])


def _results(evidence: Mapping[str, Any]) -> str:
    arms = [
        (
            row.label,
            f"{row.task.score} {row.task.interval}",
            f"{row.retention.score} {row.retention.interval}",
            row.weighted,
        )
        for row in scores(evidence)
    ]
    paired = [
        (d.set, _text(d.pair), f"{d.difference} {d.interval}", d.p, d.items)
        for d in differences(evidence)
    ]
    heads = ("Items", "Pair", "Difference [95 %]", "Exact McNemar", "Items that changed")
    parts = [
        _table(("Arm", "Task [95 %]", "Retention [95 %]", "Weighted score"), arms),
        _table(heads, paired) if paired else f"Paired differences: {MISSING}.",
        winning_sentence(evidence),
        "\n".join(
            f"- KL(tuned ‖ base) on {name} answers: {movement_text(evidence, name)}"
            for name in ("task", "retention")
        ),
    ]
    return "\n\n".join(parts)


def _checked(evidence: Mapping[str, Any]) -> str:
    found = findings(evidence)
    if not found:
        return f"The checklist: {MISSING}."
    rows = [
        (
            f"{f.mark} {_text(f.word)}",
            _text(f.claim) + ("" if f.required else " (advisory)"),
            _text(f.measured),
            _text(f.threshold),
        )
        for f in found
    ]
    return _table(("Status", "Claim", "Measured", "Threshold"), rows)


def _limits(evidence: Mapping[str, Any]) -> Iterable[str]:
    yield from _LIMITS
    if dig(evidence, "plan", "model", "note"):
        yield _text(f"About the base: {dig(evidence, 'plan', 'model', 'note')}.")
    for f in findings(evidence):
        if f.tone != "pass":
            yield _text(f"{f.word}: {f.claim} Measured: {f.measured}.")


def _answers(evidence: Mapping[str, Any]) -> str:
    rows = [
        tuple(
            _text(clip(row.get(key, ""), 120)) for key in ("prompt", "reference", "base", "tuned")
        )
        for row in dig(evidence, "evaluation", "before_after") or []
    ]
    if not rows:
        return f"Answers of the tuned model: {MISSING}."
    return _table(("Prompt", "Reference", "Base", "Tuned"), rows)


def _text(text: str) -> str:
    r"""Return text that Markdown and HTML show literally, on one line.

    >>> _text("<b>*2* | [x](y)")
    '&lt;b&gt;\\*2\\* \\| \\[x\\](y)'
    """
    line = " ".join(clean(text).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def _code(text: str) -> str:
    return re.sub(r"[`|\s]", " ", clean(text))


def _fence(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
