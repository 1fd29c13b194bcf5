"""A ledger as JSON, and as a table in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunemath.space import Coverage, Ledger

__all__ = ["ledger_product", "ledger_view", "table"]


def ledger_product(ledger: Ledger, coverage: Coverage, **also: Any) -> dict[str, Any]:
    """Return a ledger and its coverage as JSON values; ``also`` are further keys."""
    blueprint = ledger.blueprint
    return {
        "model_type": blueprint.model_type,
        "architecture": blueprint.architecture,
        "dtype": blueprint.dtype,
        **also,
        "base": ledger.base,
        "total": ledger.total,
        "trainable": ledger.trainable,
        "percent": ledger.percent,
        "unmatched_targets": list(ledger.unmatched),
        "findings": list(coverage.findings),
        "beside": list(coverage.beside),
        "notes": list(ledger.notes),
        "blocks": [vars(row) for row in coverage.blocks],
        "stacks": [{**vars(row), "reached": list(row.reached)} for row in coverage.stacks],
        "by_module": ledger.by_module(),
    }


def ledger_view(product: dict[str, Any]) -> RenderableType:
    """Return the totals, the modules (layers that are alike in one row) and the coverage."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(product), style="bold"), Text()]
    heads = ("Module", "Shape", "Modules", "Parameters", "Trainable")
    parts.append(table(heads, _alike(product["by_module"]), texts=2))
    blocks = [
        (row["block"], f"{row['reached']:,} of {row['modules']:,}", _share(row))
        for row in product["blocks"]
    ]
    if any(row["reached"] for row in product["blocks"]):
        parts += [Text(), table(("Block", "Modules reached", "Of their weights"), blocks, texts=1)]
    stacks = [
        (row["stack"], f"{len(row['reached'])} of {row['layers']}") for row in product["stacks"]
    ]
    if any(row["reached"] for row in product["stacks"]):
        parts += [Text(), table(("Stack", "Layers reached"), stacks, texts=1)]
    parts += [Text(f"\nReaches {place}") for place in product["beside"]]
    parts += [Text(f"\n! {finding}", style="yellow") for finding in product["findings"]]
    parts += [Text(f"\nNote: {note}") for note in product["notes"]]
    return Group(*parts)


def _headline(product: dict[str, Any]) -> str:
    what = product.get("method") or product.get("peft_type") or ""
    return (
        f"{product['architecture'] or product['model_type'] or 'model'}, {what}: "
        f"{product['trainable']:,} of {product['total']:,} parameters are trained "
        f"({product['percent']:.4g} %)"
    )


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['weights_reached'] / row['weights']:.3g} %" if row["weights"] else ""


def _alike(rows: Iterable[dict[str, Any]]) -> Iterator[Sequence[str]]:
    """Yield a row for all modules that differ only in their layer's number, by stack."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", row["name"])
        key = (pattern, row["kind"], tuple(row["shape"]))
        sums = groups.setdefault(key, [0, 0, 0])
        for at, number in enumerate((1, row["parameters"], row["trainable"])):
            sums[at] += number
    before = ""
    for (pattern, _, shape), sums in groups.items():
        stack, star, name = pattern.partition(".*.")
        if star and stack != before:
            yield (f"{stack}.*", "", "", "", "")
        before = stack if star else ""
        shown = f"  {name}" if star else pattern
        yield (shown, " × ".join(map(str, shape)), *(f"{n:,}" for n in sums))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> RenderableType:
    """Return a table whose first ``texts`` columns are words, the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, head in enumerate(heads):
        table.add_column(head, justify="left" if at < texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
