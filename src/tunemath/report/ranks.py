"""Which rank an update needed, as advice in words, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunemath.report.curves import rank_figures
from tunemath.report.text import (
    clean,
    count,
    decimal,
    dig,
    p_value,
    percent,
    percent_interval,
    points,
    points_interval,
    scientific,
)

__all__ = ["rank_advice", "rank_page", "rank_table", "rank_view"]

_MARKS = {"PASS": "✓", "FAIL": "✗", "INSUFFICIENT_EVIDENCE": "?", None: ""}
_TONES = {"✓": "green", "✗": "red", "?": "yellow", "": ""}


def rank_advice(rank: Mapping[str, Any]) -> list[str]:
    """Return what the curves say and what to do about it, a paragraph each."""
    curve = rank["curves"][0]
    if curve["needed"] is None:
        return [
            "The update moves no answer by more than a millionth of a nat, so there is no rank "
            "that it needs. Was it trained, and is this its base?"
        ]
    said = [_verdict(rank, curve), *_undecided(rank, curve), _next(rank, curve)]
    said += [_of_block(rank, each) for each in rank["curves"][1:]]
    if rank["together"]:
        said.append(_by_block(rank))
    if rank["update"]["uncut"]:
        said.append(_uncut(rank["update"]["uncut"]))
    return said


def _verdict(rank: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    whole = curve["points"][-1]["rank"]
    if curve["needed"] < whole:
        row = _row(curve, curve["needed"])
        said = f"Rank {count(row['rank'])} of {count(whole)} would have been enough"
        return f"{said}: {_figures(rank, row)}."
    below = curve["points"][-2]
    if curve["undecided"]:
        return (
            f"No rank below the whole, {count(whole)}, is shown to be enough by these items. At "
            f"rank {count(below['rank'])}: {_figures(rank, below)}."
        )
    return (
        f"The whole rank, {count(whole)}, is needed. Rank {count(below['rank'])} is too little: "
        f"{_figures(rank, below)}."
    )


def _row(curve: Mapping[str, Any], rank: int) -> Mapping[str, Any]:
    return next(row for row in curve["points"] if row["rank"] == rank)


def _figures(rank: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Say a point's score beside the whole's, its KL, the share of the movement, the energy."""
    found, parts = row["sets"][next(iter(rank["sets"]))], []
    if row["score"]:
        less = row["score"]["less_whole"]
        whole = row["score"]["correct"] - less["wins"] + less["losses"]
        parts.append(
            f"{count(row['score']['correct'])} of {count(row['score']['items'])} right against "
            f"{count(whole)} for the whole update ({count(less['wins'])} gained and "
            f"{count(less['losses'])} lost, {points(less['difference'])} "
            f"{points_interval(less['low'], less['high'])}, {p_value(less['p'])})"
        )
    parts.append(
        f"KL(tuned ‖ cut) {scientific(found['kl_tuned_cut']['kl'])} nats a token, "
        f"{_lost(found['lost'])} of KL(tuned ‖ base)"
    )
    parts.append(f"{percent(row['energy'], 0)} of the energy held")
    return "; ".join(parts)


def _undecided(rank: Mapping[str, Any], curve: Mapping[str, Any]) -> Iterator[str]:
    """Name the smaller ranks whose intervals contain a limit, and what would tell."""
    if not curve["undecided"]:
        return
    row = _row(curve, max(curve["undecided"]))
    ranks = ", ".join(count(each) for each in curve["undecided"])
    first = next(iter(rank["sets"]))
    items = count(rank["sets"][first]["items"])
    which = f"rank {ranks} suffices" if len(curve["undecided"]) == 1 else f"ranks {ranks} suffice"
    text = f"Whether {which} can't be told on these {items} items: at rank {count(row['rank'])} "
    if row["score"]:
        less = row["score"]["less_whole"]
        text += (
            f"the score differs by {points(less['difference'])} "
            f"{points_interval(less['low'], less['high'])}, of which "
            f"{100 * rank['margin']:g} points may be lost, and "
        )
    lost = row["sets"][first]["lost"]
    yield text + (
        f"{_lost(lost)} of the movement is lost, of which {percent(rank['share'])} may be. "
        "More items would tell."
    )


def _next(rank: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    """Say what to do with the rank that is needed."""
    needed, whole = curve["needed"], rank["update"]["rank"]
    again = 1 << max(0, needed - 1).bit_length()
    caution = "a model trained at that rank is another one, so measure it too"
    if needed == whole:
        if curve["undecided"]:
            return "Ask more items (--items, or a larger set) before you change the rank."
        if not rank["adapter"]:
            return "No LoRA of a smaller rank that was measured could stand for this update."
        return (
            f"Its rank is used up, so it may have been too small: next time try {2 * whole} too, "
            "and compare the scores."
        )
    if not rank["adapter"]:
        return (
            f"A LoRA of rank {count(max(1, needed))} could stand for this update. Next time train "
            f"one: `method: lora`, `rank: {again}` ({caution})."
        )
    path = clean(rank["update"]["path"])
    cut = f"`tunemath resize {path} OUT --rank {max(1, needed)}` writes it at that rank"
    return f"Next time train with rank {again} ({caution}); {cut}."


def _of_block(rank: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    """Say which rank of a block alone is enough, all others whole."""
    block, needed = clean(curve["block"]), curve["needed"]
    row = _row(curve, needed)
    if needed == 0:
        said = f"The {block} need not have been trained, all else whole"
    elif needed < rank["update"]["rank"]:
        said = f"Rank {count(needed)} of the {block} would have been enough, all else whole"
    else:
        row = curve["points"][-2]
        return (
            f"No rank of the {block} below the whole is shown to be enough. At rank "
            f"{count(row['rank'])}, all else whole: {_figures(rank, row)}."
        )
    return f"{said}: {_figures(rank, row)}."


def _by_block(rank: Mapping[str, Any]) -> str:
    together = rank["together"]
    needs = ", ".join(f"{clean(block)} {count(r)}" for block, r in together["ranks"].items())
    verdict = {
        "PASS": "are enough",
        "FAIL": "are too little; raise them",
        "INSUFFICIENT_EVIDENCE": "can't be told from too little on these items",
    }[together["status"]]
    text = f"These ranks together ({needs}) {verdict}: {_figures(rank, together)}."
    pattern = _rank_pattern(rank)
    if pattern and together["status"] == "PASS" and len(set(together["ranks"].values())) > 1:
        text += f" In PEFT: `rank_pattern={pattern}`."
    return text


def _rank_pattern(rank: Mapping[str, Any]) -> str:
    """Return the blocks' ranks by the names of their modules; empty where a name is in two."""
    ranks: dict[str, int] = {}
    for block, needed in rank["together"]["ranks"].items():
        for target in rank["update"]["blocks"][block]["targets"]:
            if target in ranks or needed == 0:
                return ""
            ranks[clean(target)] = needed
    return "{" + ", ".join(f'"{name}": {value}' for name, value in ranks.items()) + "}"


def _uncut(names: Sequence[str]) -> str:
    return (
        f"{count(len(names))} changed tensors that are no matrices, such as {clean(names[0])}, "
        "stay as they were tuned at every rank, 0 included."
    )


def rank_table(
    rank: Mapping[str, Any], curve: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heads and rows of one curve: what each rank holds, keeps and loses."""
    first, whole = next(iter(rank["sets"])), curve["points"][-1]["rank"]
    scored = any(row["score"] for row in curve["points"])
    heads = ("", "Rank", "Energy", "Lost [95 %]", "KL(tuned ‖ cut)", "KL(cut ‖ base)")
    heads += ("Score", "Less the whole [95 %]") if scored else ()
    rows = []
    for row in curve["points"]:
        found = row["sets"][first]
        cells = (
            _MARKS[row["status"]],
            count(row["rank"]) + (" (whole)" if row["rank"] == whole else ""),
            percent(row["energy"]),
            _lost(found["lost"]),
            decimal(found["kl_tuned_cut"]["kl"], 4),
            decimal(found["kl_cut_base"]["kl"], 4),
        )
        if row["score"]:
            less = row["score"]["less_whole"]
            differs = f"{points(less['difference']).removesuffix(' points')} "
            cells += (
                percent(row["score"]["score"]),
                differs + points_interval(less["low"], less["high"]),
            )
        elif scored:
            cells += ("–", "–")
        rows.append(cells)
    return heads, rows


def _lost(lost: Mapping[str, float] | None) -> str:
    """Say the share of the movement that is lost, with its interval."""
    if lost is None:
        return "nothing moved"
    return f"{percent(lost['estimate'])} {percent_interval(lost['low'], lost['high'])}"


def rank_view(rank: Mapping[str, Any]) -> RenderableType:
    """Return the advice and a table a curve."""
    parts: list[RenderableType] = [Text("\nRank that was needed", style="bold")]
    parts += [Padding(Text(clean(line)), (0, 0, 1, 0)) for line in rank["advice"]]
    parts.append(Text(_measured(rank), style="dim"))
    for curve in rank["curves"]:
        parts.append(Text(f"\n{_title(rank, curve)}", style="bold"))
        heads, rows = rank_table(rank, curve)
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for head in heads:
            table.add_column(Text(head), justify="right" if head not in {"", "Rank"} else "left")
        for mark, *cells in rows:
            table.add_row(Text(mark, style=_TONES[mark]), *map(Text, cells))
        parts.append(table)
    return Group(*parts)


def _title(rank: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    if curve["block"] is None:
        return "Whole model: every matrix cut"
    held = percent(rank["update"]["blocks"][curve["block"]]["energy"], 0)
    return f"{clean(curve['block']).capitalize()} cut alone ({held} of ‖ΔW‖²)"


def _measured(rank: Mapping[str, Any]) -> str:
    """Say what was asked of which update, and how it was cut."""
    sets = ", ".join(
        f"{count(found['items'])} {clean(name)} items ({count(found['positions'])} answer tokens)"
        for name, found in rank["sets"].items()
    )
    update = rank["update"]
    first = next(iter(rank["sets"]))
    moved = rank["moved"][first]
    text = (
        f"{clean(rank['source'])}: {sets}. {count(update['matrices'])} matrices, from "
        f"{clean(update['source'])}. KL(tuned ‖ base) {decimal(moved['kl'])} "
        f"[{decimal(moved['low'])}, {decimal(moved['high'])}] nats per answer token of {first}."
    )
    same = rank.get("as_evaluated")
    if same:
        text += (
            f" The whole update, written into the weights, gives {count(same['same'])} of "
            f"{count(same['of'])} answers of the run's evaluation."
        )
    return text


def rank_page(rank: Mapping[str, Any]) -> str:
    """Return advice, figures and tables as one HTML page that makes no request."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tunemath.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("rank.html.j2").render(
        name=clean(dig(rank, "update", "path")),
        advice=[clean(line) for line in rank["advice"]],
        measured=_measured(rank),
        figures=[(figure, Markup(figure.svg)) for figure in rank_figures(rank)],
        tables=[(_title(rank, curve), *rank_table(rank, curve)) for curve in rank["curves"]],
    )
    return text.encode("utf-8", "replace").decode("utf-8")
