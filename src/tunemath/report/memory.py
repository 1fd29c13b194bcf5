"""A step's memory as tables in the terminal: its terms, and what to change so that it fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tunemath.report.ledger import table
from tunemath.report.text import clean, count, flops, size

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["memory_tables", "memory_view", "peak"]

_LOWER = {
    "baselines": "Answering takes more than training: lower evaluation.batch_size or few_shot",
    "evaluate": "Answering takes more than training: lower evaluation.batch_size",
}
_LARGEST = {"micro_batch": "examples at once", "tokens": "tokens a row", "rank": "rank"}


def memory_view(product: Mapping[str, Any]) -> RenderableType:
    """Return the memory of `tunemath memory`."""
    from rich.console import Group
    from rich.text import Text

    kind = clean(product.get("architecture") or product.get("model_type") or "model")
    about = (
        f"{kind}, {clean(product.get('method'))}: {count(product.get('rows'))} rows of "
        f"{count(product.get('tokens'))} tokens at once, {count(product.get('supervised'))} of "
        f"each supervised, on {clean(product.get('device'))}"
    )
    saved = size(product.get("saved_bytes"))
    also = (
        f"{count(product.get('trainable'))} parameters are trained, {saved} on disk; "
        f"{flops(product.get('step_flops'))} a step"
    )
    notes = [Text(f"\nNote: {clean(note)}") for note in product.get("notes") or []]
    return Group(Text(about, style="bold"), Text(also), Text(), *memory_tables(product), *notes)


def peak(memory: Mapping[str, Any]) -> str:
    """Return the most that is held at once, when that is, and whether it fits."""
    stage = clean(memory.get("highest") or "train")
    when = f"the {clean(memory.get('moment'))}" if stage == "train" else stage
    words = f"{size(memory.get('total_bytes'))}, in {when}"
    if memory.get("limit_bytes") is None:
        return words
    verb = "fits" if memory.get("fits") else "does not fit"
    return f"{words}; {verb} in {size(memory['limit_bytes'])}"


def memory_tables(product: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the terms, whether they fit, and what to change."""
    from rich.text import Text

    rows = [
        (clean(t.get("name")), size(t.get("bytes")), size(t.get("at_peak")), _error(t))
        for t in product.get("terms") or []
    ]
    highest = f"highest in the {clean(product.get('moment'))}"
    error = f"± {size(product.get('error_bytes'))}"
    rows.append((highest, "", size(product.get("peak_bytes")), error))
    yield table(("Memory", "Size", "At the peak", "Error"), rows, texts=1)
    stages = product.get("stages") or {}
    if stages:
        most = ", ".join(f"{clean(stage)} {size(n)}" for stage, n in stages.items())
        yield Text(f"\nThe most in each stage: {most}")
    highest = product.get("highest")
    if highest not in (None, "train"):
        yield Text(
            _LOWER.get(str(highest), f"The most is held in {clean(highest)}"), style="yellow"
        )
    limit = product.get("limit_bytes")
    if limit is None:
        return
    fits = bool(product.get("fits"))
    most = ", ".join(
        f"{_LARGEST[key]} {count(value) if value else 'none'}"
        for key, value in (product.get("largest") or {}).items()
    )
    words = "fits" if fits else "does not fit"
    tone = "green" if fits else "bold red"
    largest = f" The largest that fits, one at a time: {most}" if most else ""
    yield Text(f"\nIt {words} in {size(limit)}.{largest}", style=tone)
    if not fits and highest in (None, "train"):
        found = product.get("cheapest") or []
        yield Text("\nThe cheapest way to fit: " + _together(found), style="bold")
    changes = [
        (clean(c.get("change")), size(c.get("peak_bytes")), "yes" if c.get("fits") else "no",
         clean(c.get("cost")), clean(c.get("set")))
        for c in product.get("changes") or []
    ]  # fmt: skip
    if changes:
        yield Text()
        yield table(("One change", "Peak", "Fits", "What it costs", "How"), changes, texts=5)


def _together(changes: list[Mapping[str, Any]]) -> str:
    if not changes:
        return "none was found; take a smaller model or a larger device"
    return "; then ".join(f"{clean(c.get('change'))} ({clean(c.get('set'))})" for c in changes)


def _error(term: Mapping[str, Any]) -> str:
    return "exact" if term.get("exact") else f"± {100 * float(term.get('error') or 0):.0f} %"
