"""Spectra of an update as tables in the terminal, and as a page with figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunemath.report.text import clean, count, decimal, number, percent, scientific, short_path

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["spectra_page", "spectra_view"]

_SIDES = ("left", "right")
_MOVED = ("‖ΔW‖/‖W‖",)  # shown where the base is there


@dataclass(frozen=True)
class _Table:
    """A table of words: its first ``texts`` columns are text, the others numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int


def spectra_view(product: Mapping[str, Any], shown: int) -> RenderableType:
    """Return the update by block, kind of weight and layer, and the ``shown`` that moved most."""
    from rich.console import Group
    from rich.text import Text

    from tunemath.report.ledger import table

    parts: list[RenderableType] = [Text(_headline(product), style="bold")]
    for each in _tables(product, shown):
        parts += [Text(f"\n{each.title}", style="bold"), table(each.heads, each.rows, each.texts)]
    parts += [Text(f"\n{line}") for line in _lines(product)]
    return Group(*parts)


def spectra_page(product: Mapping[str, Any], shown: int) -> str:
    """Return the same as one HTML document with figures, which makes no request."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from tunemath.report.figures import energy_figure, layer_figure

    environment = Environment(
        loader=PackageLoader("tunemath.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = (energy_figure(product), layer_figure(product), layer_figure(product, "effective_rank"))
    page = environment.get_template("spectra.html.j2").render(
        title=f"Spectrum of {short_path(product['tuned'])}",
        headline=_headline(product),
        figures=[(figure, Markup(figure.svg)) for figure in drawn if figure is not None],
        tables=list(_tables(product, shown)),
        lines=list(_lines(product)),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _headline(product: Mapping[str, Any]) -> str:
    tuned = short_path(product["tuned"])
    base = short_path(product["base"]) if product["base"] else "a base that is not given"
    if product.get("skipped"):
        return f"{tuned} beside {base}: {clean(product['skipped'])}"
    summary = product["summary"]
    moved = summary["overall_relative_norm"]
    size = "" if moved is None else f", ‖ΔW‖ / ‖W‖ {percent(moved, 2)}"
    return f"{tuned} beside {base}: {count(summary['modules'])} weights{size}"


def _tables(product: Mapping[str, Any], shown: int) -> Iterator[_Table]:
    summary = product["summary"]
    if not summary:
        return
    based = summary["overall_relative_norm"] is not None
    heads = ("Weights", "Share", *_MOVED[:based], "Eff. rank", "Stable", "90 %", "99 %")
    for title, key, name in (
        ("By block", "by_block", "block"),
        ("By kind of weight", "by_target", "target"),
        ("By layer", "by_layer", "layer"),
    ):
        rows = [(_name(row, name, summary[key]), *_group(row, based)) for row in summary[key]]
        if rows:
            yield _Table(title, (name.capitalize(), *heads), rows, 1)
    for which, title in (("base", "the base's"), ("other", "the other update's")):
        rows = [
            (row["block"], *_overlap(row[f"{which}_overlap"]))
            for row in summary["by_block"]
            if row[f"{which}_overlap"]
        ]
        if summary[f"{which}_overlap"]:
            sides = ("Left", "by chance", "Right", "by chance")
            yield _Table(f"Directions shared with {title} first", ("Block", *sides), rows, 1)
    yield _most_moved(product["modules"], shown, based)


def _name(row: Mapping[str, Any], key: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what a group is called; of two kinds of one name also the block."""
    same = sum(row[key] == other[key] for other in rows)
    return clean(row[key]) if same == 1 else f"{clean(row[key])} ({row['block']})"


def _group(row: Mapping[str, Any], based: bool) -> Sequence[str]:
    return (
        count(row["modules"]),
        percent(row["share"]),
        *(percent(row["overall_relative_norm"], 2),)[:based],
        _between(row["median_effective_rank_bounds"]),
        decimal(row["stable_rank"], 1),
        _rank(row["rank_for_90_percent"]),
        _rank(row["rank_for_99_percent"]),
    )


def _most_moved(modules: Iterable[Mapping[str, Any]], shown: int, based: bool) -> _Table:
    def moved(row: Mapping[str, Any]) -> float:
        return row["relative_norm"] or 0.0 if based else row["frobenius"]

    first = sorted(modules, key=moved, reverse=True)[:shown]
    rows = [
        (
            clean(row["name"]),
            *(percent(row["relative_norm"], 2),)[:based],
            scientific(row["frobenius"]),
            scientific(row["singular_values"][0]),
            _between(row["effective_rank_bounds"]),
            _rank(row["rank_for_90_percent"]),
        )
        for row in first
    ]
    heads = ("Weight", *_MOVED[:based], "‖ΔW‖", "σ₁", "Eff. rank", "90 %")
    return _Table(f"The {count(len(first))} that moved most", heads, rows, 1)


def _between(bounds: Sequence[float]) -> str:
    low, high = (decimal(bound, 1) for bound in bounds)
    return low if low == high else f"{low}–{high}"


def _rank(rank: float | None) -> str:
    return "> known" if rank is None else f"{rank:g}"


def _overlap(found: Mapping[str, float]) -> Sequence[str]:
    keys = [f"{side}{of}" for side in _SIDES for of in ("", "_chance")]
    return [percent(found[key]) for key in keys]


def _lines(product: Mapping[str, Any]) -> Iterator[str]:
    """Yield what else is to be said of an update, a sentence each."""
    summary, inventory = product["summary"], product["inventory"]
    if summary:
        exact = sum(row["exact"] for row in product["modules"])
        if exact < summary["modules"]:
            yield (
                f"{count(exact)} of {count(summary['modules'])} weights are decomposed in full; of "
                f"the others {count(product['settings']['top'])} singular values are known, and "
                "the relative error at each rank to "
                f"{scientific(number(summary['largest_slack']))} at most."
            )
        if summary["intruders"]:
            yield _intruders(summary["intruders"], product["settings"]["epsilon"])
    if inventory["vectors"]:
        most = max(inventory["vectors"], key=lambda row: row["relative_norm"] or 0.0)
        yield (
            f"Norms and biases that differ: {count(len(inventory['vectors']))}, the most "
            f"{clean(most['name'])}, by {percent(most['relative_norm'], 2)} of its norm."
        )
    for row in inventory["resized"]:
        shapes = " and ".join("×".join(map(str, row[key])) for key in ("base", "tuned"))
        yield f"{clean(row['name'])} is {shapes}; the rows that both have are compared."
    for key, words in (
        ("only_base", "Only the base has"),
        ("only_tuned", "Only the tuned has"),
        ("not_compared", "Packed, so their values are not compared:"),
    ):
        names = inventory[key]
        if names:
            more = f" and {count(len(names) - 3)} more" if len(names) > 3 else ""
            yield f"{words} {', '.join(map(clean, names[:3]))}{more}."


def _intruders(found: Mapping[str, int], epsilon: float) -> str:
    low, high = found["lower"], found["upper"]
    many = count(low) if low == high else f"{count(low)} to {count(high)}"
    return (
        f"Intruder dimensions: {many} of the tuned weights' {count(found['of'])} first directions "
        f"have a cosine under {epsilon:g} with every direction of the base."
    )
