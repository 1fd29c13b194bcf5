"""A run's products in the terminal: good at 80 columns, with colour and without.

Every view returns a rich renderable. Words and numbers come from `facts` and `results`, as in
the HTML; all text is shown literally, never as rich markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tunemath.report.code import example_code
from tunemath.report.facts import Row, mask_rows, movement_text, share_of, target_shape
from tunemath.report.memory import memory_tables, peak
from tunemath.report.results import (
    FindingFacts,
    differences,
    findings,
    headline,
    remarks,
    scores,
    stage_times,
    timing_sentence,
    winning_sentence,
)
from tunemath.report.text import (
    MISSING,
    clean,
    clip,
    count,
    decimal,
    dig,
    duration,
    flops,
    number,
    percent,
    points,
    scientific,
    size,
)

__all__ = [
    "checklist_view",
    "mask_view",
    "movement_view",
    "plan_view",
    "scorecard_view",
    "spectrum_view",
    "stopped_view",
    "summary_view",
    "unpassed_view",
]

_TONES = {"pass": "green", "fail": "bold red", "unsure": "yellow"}
_BARS = "▁▂▃▄▅▆▇█"


def plan_view(plan: Mapping[str, Any]) -> RenderableType:
    """Return parameters, memory, compute, schedule, predicted time and detectable effect."""
    targets = [
        (clean(t.get("name")), count(t.get("modules")), *_shape(t), count(t.get("parameters")))
        for t in dig(plan, "parameters", "by_target") or []
    ]
    heads = ("Target", "Modules", "In → out", "Rank", "Trainable parameters")
    return Group(
        _title("Plan"),
        _rows(_plan_rows(plan)),
        Text(),
        _table(heads, targets),
        *(
            Text(f"! {clean(finding)}", style="yellow")
            for finding in dig(plan, "parameters", "coverage", "findings") or []
        ),
        *(Text(f"! {clean(notice)}", style="yellow") for notice in plan.get("notices") or []),
        *(Text(f"Note: {clean(note)}") for note in dig(plan, "parameters", "notes") or []),
        Text(),
        *memory_tables(plan.get("memory") or {}),
    )


def _plan_rows(plan: Mapping[str, Any]) -> Iterator[Row]:
    model, schedule = plan.get("model") or {}, plan.get("schedule") or {}
    shape = f"{count(model.get('layers'))} layers, width {count(model.get('hidden'))}"
    yield "Model", f"{clean(model.get('id'))} ({clean(model.get('architecture'))}; {shape})"
    if model.get("note"):
        yield "Note", clean(model["note"])
    trainable, total = (dig(plan, "parameters", key) for key in ("trainable", "total"))
    yield "Trainable", share_of(trainable, total, "parameters")
    yield "Steps", f"{count(schedule.get('steps'))} of {count(schedule.get('rows_per_step'))} rows"
    yield "Tokens read", count(schedule.get("tokens_total"))
    yield "Peak learning rate", scientific(schedule.get("peak_learning_rate"))
    yield "Memory at the peak", peak(plan.get("memory") or {})
    yield "Saved update", size(dig(plan, "parameters", "saved_bytes"))
    yield "Training compute", flops(dig(plan, "compute", "training_flops"))
    yield "Evaluation compute", flops(dig(plan, "compute", "evaluation_flops"))
    for name in ("task", "retention"):
        smallest = dig(plan, "power", name, "smallest_difference")
        items = dig(plan, "power", name, "items")
        text = MISSING if items is None else "nothing"
        if number(smallest) is not None:
            text = points(smallest).lstrip("+")
        yield f"Detectable, {name}", text if items is None else f"{text} on {count(items)} items"
    yield from _position_rows(plan.get("positions") or {})
    yield "Predicted time", duration(dig(plan, "seconds", "total"))


def _position_rows(positions: Mapping[str, Any]) -> Iterator[Row]:
    """Yield how far rows and items reach, beside the positions that the model has."""
    lengths = positions.get("lengths") or {}
    if lengths:
        most = max(lengths.values(), key=lambda each: each.get("longest") or 0)
        limit = positions.get("limit")
        of = "" if limit is None else f" of the model's {count(limit)}"
        yield "Most positions", f"{count(most['longest'])}{of}: {clean(most.get('parts'))}"


def _shape(target: Mapping[str, Any]) -> tuple[str, str]:
    rank = target.get("rank")
    return target_shape(target), "–" if rank is None else count(rank)


def mask_view(mask: Mapping[str, Any]) -> RenderableType:
    """Return the certificate over every row, its violations, and the sample rows in colour."""
    parts: list[RenderableType] = [_title("Data mask"), _rows(mask_rows({"mask": mask}))]
    broken = {k: n for k, n in (mask.get("violations") or {}).items() if n}
    if broken:
        parts.append(
            _table(("Violation", "Rows"), [(clean(k), count(n)) for k, n in broken.items()])
        )
    for first in mask.get("first_violations") or []:
        line = f"{first.get('where')}: {first.get('kind')}: {first.get('detail')}"
        parts.append(Text(clean(line), style="red"))
    if mask.get("samples"):
        parts.append(_legend())
    parts += [_sample(sample) for sample in mask.get("samples") or []]
    return Group(*parts)


def _legend() -> Text:
    return Text.assemble(
        ("⟦trained on⟧", "bold underline green"),
        "  read only  ",
        ("<special>", "dim italic"),
        "  ↵ line end  ⇥ tab",
    )


def _sample(sample: Mapping[str, Any]) -> RenderableType:
    """Return a row's tokens: brackets say what is trained on where there is no colour."""
    text, inside = Text(overflow="fold"), False
    for token in sample.get("tokens") or []:
        supervised = bool(token.get("supervised"))
        if supervised != inside:
            text.append("⟦" if supervised else "⟧", style="green")
            inside = supervised
        shown = clean(token.get("text", "")).replace("\t", "⇥").replace("\n", "↵\n")
        style = (
            "bold underline green" if supervised else "dim italic" if token.get("special") else ""
        )
        text.append(shown, style=style)
    if inside:
        text.append("⟧", style="green")
    text.rstrip()
    name = Text(clean(sample.get("id", "")), style="bold")
    return Group(Text(), name, Padding(text, (0, 0, 0, 2)))


def checklist_view(checklist: Mapping[str, Any]) -> RenderableType:
    """Return every finding; those that did not pass with threshold, place and what to do."""
    found = findings({"checklist": checklist})
    if not found:
        return Group(_title("Checklist"), Text(MISSING, style="dim"))
    table = _frame("", "Check", "Measured")
    for f in found:
        name = Text(f.check, overflow="fold")
        if not f.required:
            name.append(" (advisory)", style="dim")
        status = Text(f"{f.mark} {f.word.removesuffix(' evidence')}", style=_TONES[f.tone])
        table.add_row(status, name, Text(f.measured, overflow="fold"))
    parts: list[RenderableType] = [_title("Checklist"), table]
    parts += [_unpassed(f) for f in found if f.tone != "pass"]
    return Group(*parts)


def unpassed_view(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return the findings of an early stage that did not pass, each with what to do.

    What was not run awaits a later stage, and is left out.
    """
    kept = [one for one in found if one.get("status") not in ("PASS", "NOT_RUN")]
    shown = [_unpassed(f) for f in findings({"checklist": {"findings": kept}})]
    return Group(*([Text(), *shown] if shown else []))


def stopped_view(found: Sequence[Mapping[str, Any]], verdict: str, after: str) -> RenderableType:
    """Return why a run stopped before it spent anything, and how it goes on."""
    return Group(
        unpassed_view(found),
        Text(
            f"\nStopped after {after}: the verdict is {verdict} whatever comes, so nothing was "
            "trained. Repair this and run the same command again; --continue goes on all the same.",
            style="bold",
        ),
    )


def _unpassed(f: FindingFacts) -> RenderableType:
    """Return a finding that did not pass: measured, threshold, where, what to do."""
    name = f.check + ("" if f.required else " (advisory)")
    rows = [("check", name), ("measured", f.measured), ("threshold", f.threshold)]
    rows = [row for row in [*rows, ("where", f.where), ("what to do", f.action)] if row[1]]
    title = Text.assemble((f"{f.mark} {f.word}: ", _TONES[f.tone]), f.claim)
    return Group(title, Padding(_rows(rows), (0, 0, 0, 2)))


def scorecard_view(
    scorecard: Mapping[str, Any] | None, baselines: Mapping[str, Any] | None = None
) -> RenderableType:
    """Return scores by arm, paired differences, winning weights and movement."""
    evidence = {"scorecard": scorecard, "baselines": baselines}
    table = _frame("Score [95 %]", "Task", "Retention", "Weighted", right=True)
    for row in scores(evidence):
        style = "bold" if row.arm == "tuned" else ""
        cells = [f"{s.score} {s.interval}".strip() for s in (row.task, row.retention)]
        table.add_row(*(Text(c, style=style) for c in (row.arm, *cells, row.weighted)))
    paired = [(d.set, d.pair, f"{d.difference} {d.interval}", d.p) for d in differences(evidence)]
    heads = ("Items", "Pair", "Difference [95 %]", "Exact McNemar")
    moved = [(f"KL(tuned ‖ base), {n}", movement_text(evidence, n)) for n in ("task", "retention")]
    return Group(
        _title("Scorecard"),
        table,
        Text(),
        _table(heads, paired) if paired else Text(f"Paired differences: {MISSING}"),
        Text("\n" + winning_sentence(evidence)),
        _rows(moved),
    )


def movement_view(movement: Mapping[str, Any]) -> RenderableType:
    """Return KL(tuned ‖ base) for task and retention, and how it falls along the answer."""
    parts: list[RenderableType] = [_title("Movement, KL(tuned ‖ base)")]
    for name in ("task", "retention"):
        part = movement.get(name) or {}
        rows: list[Row] = [(name.capitalize(), movement_text({"movement": movement}, name))]
        if part:
            where = f"{count(part.get('positions'))} positions in {count(part.get('rows'))} rows"
            rows.append(("measured at", where))
            prompt = dig(part, "prompt", "kl")
            if number(prompt) is not None:
                rows.append(("on prompts", f"{decimal(prompt)} nats per prompt token"))
            rows.append(("same first choice", percent(part.get("top1_agreement"))))
            by_position = [number(p.get("kl")) or 0.0 for p in part.get("by_position") or []]
            if by_position:
                top = f" (highest {decimal(max(by_position))} nats)"
                rows.append(("by position", _spark(by_position[:40]) + top))
        parts.append(_rows(rows))
    return Group(*parts)


def _spark(values: Sequence[float]) -> str:
    top = max(values) or 1.0
    return "".join(_BARS[min(7, max(0, int(8 * value / top)))] for value in values)


def spectrum_view(spectrum: Mapping[str, Any]) -> RenderableType:
    """Return effective rank, energy at each rank, and both by target; or why there are none."""
    if spectrum.get("skipped"):
        return Group(_title("Spectrum of ΔW"), Text(f"None: {clean(spectrum['skipped'])}."))
    summary = spectrum.get("summary") or {}
    energy = summary.get("energy") or []
    rows: list[Row] = [
        ("Modules", count(len(spectrum.get("modules") or []))),
        ("Effective rank, median", decimal(summary.get("median_effective_rank"), 2)),
        ("Rank for 90 % of energy, median", scientific(summary.get("rank_for_90_percent"))),
    ]
    shares = [(str(k), percent(share), _bar(share)) for k, share in enumerate(energy[:16], start=1)]
    targets = [
        (
            clean(t.get("target")),
            decimal(t.get("median_effective_rank"), 2),
            percent(t.get("relative_norm"), 2),
        )
        for t in summary.get("by_target") or []
    ]
    return Group(
        _title("Spectrum of ΔW"),
        _rows(rows),
        Text(),
        _table(("Rank", "Energy", ""), shares, right=(0, 1)),
        Text(),
        _table(("Target", "Effective rank, median", "‖ΔW‖ / ‖W‖"), targets),
    )


def _bar(share: Any, width: int = 30) -> str:
    return "━" * round(width * (number(share) or 0.0))


def summary_view(
    evidence: Mapping[str, Any],
    run_dir: str | Path | None = None,
    base: str | Path | None = None,
    report: str | Path | None = None,
) -> RenderableType:
    """Return the end of a run: verdict, scores, findings, times, answers, report, code."""
    card, checklist = evidence.get("scorecard"), evidence.get("checklist")
    notes = [Text.assemble((f"{k}: ", "bold"), text) for k, text in remarks(evidence)]
    return Group(
        _verdict(evidence),
        *notes,
        scorecard_view(card, evidence.get("baselines")),
        checklist_view(checklist or {}),
        _times(evidence),
        _answers(evidence),
        _title("Report"),
        Text(clean(report or MISSING), overflow="fold"),
        _title("Load it"),
        Text(example_code(evidence, run_dir, base), no_wrap=True, overflow="ignore"),
    )


def _verdict(evidence: Mapping[str, Any]) -> Panel:
    verdict = headline(evidence)
    tone = _TONES[verdict.tone]
    code = "none" if verdict.exit_code is None else verdict.exit_code
    body = Text.assemble(
        (verdict.word.upper(), f"bold {tone}"),
        f"\n{verdict.sentence}\n",
        (f"Exit code {code}: {verdict.meaning}.", "dim"),
    )
    return Panel(body, border_style=tone, box=box.HEAVY, padding=(0, 2))


def _times(evidence: Mapping[str, Any]) -> RenderableType:
    times = stage_times(evidence)
    rows = [
        (t.stage, "" if t.planned is None else duration(t.planned), duration(t.measured))
        for t in times
    ]
    known = [t.measured for t in times if t.measured is not None]
    planned = duration(dig(evidence, "plan", "seconds", "total"))
    rows.append(("total", planned, duration(sum(known)) if known else MISSING))
    table = _table(("Stage", "Planned", "Measured"), rows)
    return Group(_title("Seconds by stage"), table, Text(timing_sentence(evidence)))


def _answers(evidence: Mapping[str, Any]) -> RenderableType:
    answers = dig(evidence, "evaluation", "before_after") or []
    parts: list[RenderableType] = [_title("Before and after")]
    for position, answer in enumerate(answers, start=1):
        parts.append(Text(f"{position}. {_line(answer.get('prompt'))}", style="bold"))
        rows = [(arm, _line(answer.get(arm))) for arm in ("reference", "base", "tuned")]
        parts.append(Padding(_rows(rows), (0, 0, 0, 3)))
    if not answers:
        parts.append(Text(f"Answers of the tuned model: {MISSING}", style="dim"))
    return Group(*parts)


def _line(text: Any) -> str:
    return clip(text or "", 160).replace("\n", "↵").replace("\t", "⇥") or "(empty)"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _rows(rows: Iterable[Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", max_width=38, overflow="fold")
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(Text(label), Text(value))
    return grid


def _frame(*heads: str, right: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if right and i else "left", overflow="fold")
    return table


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] | None = None
) -> Table:
    table = _frame(*heads)
    for i in right if right is not None else range(1, len(heads)):
        table.columns[i].justify = "right"
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table
