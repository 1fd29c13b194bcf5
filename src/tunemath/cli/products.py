"""`tunemath merge`, `unmerge` and `verify`: models made of a base and an update."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunemath.cli.options import AsJson, Runs, StageProgress, find_run
from tunemath.cli.output import print_json, say, show
from tunemath.errors import ContractError

__all__ = ["register"]

_RUNS = Path("runs")
_DTYPES = ("bfloat16", "float16", "float32")

AdapterFolder = Annotated[
    Path, typer.Argument(metavar="ADAPTER", help="The folder of a saved update.", exists=True)
]
BaseModel = Annotated[
    str, typer.Argument(metavar="BASE", help="A model's folder, or its id on the hub.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("merge")(_merge)
    app.command("unmerge")(_unmerge)
    app.command("verify")(_verify)


def _merge(
    name: Annotated[
        str, typer.Argument(metavar="RUN|BASE", help="A run; or, with ADAPTER, a base model.")
    ],
    adapter: Annotated[
        Path | None, typer.Argument(metavar="[ADAPTER]", help="The folder of a saved update.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; of a run, RUN/merged otherwise.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard-size", metavar="SIZE", help="Of a file: 5GB; as stored.")
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="FORMAT", help="Measure too: 4bit, nf4, q4_0, bfloat16, …"),
    ] = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Do not read it back, nor compare logits.")
    ] = False,
    items: Annotated[
        bool, typer.Option("--items", help="Of a run: answer its items too, and compare each.")
    ] = False,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
) -> None:
    """Write a base with an update merged into it, a tensor at a time, and prove what it is.

    The product is read back: its tensors are held against base and update, and its logits against
    the two side by side. The proof lies in its tunemath.json.

    Example: `tunemath merge dates-sft --out my-model`

    `tunemath merge path/to/base path/to/adapter --out merged --dtype bfloat16 --check 4bit`
    """
    from tunemath.budget import parse_size
    from tunemath.pipeline.products import base_at, merge_into
    from tunemath.pipeline.using import merge
    from tunemath.runner.merging import MergeOptions

    if dtype not in (*_DTYPES, None):
        raise ContractError(f"--dtype {dtype}: expected one of {', '.join(_DTYPES)}")
    if adapter is not None and items:
        raise ContractError("--items is of a run, which has items; give RUN alone")
    if adapter is not None and out is None:
        raise ContractError("--out is missing: where to write the merged model")
    try:
        size = None if shard is None else parse_size(shard)
    except ValueError as error:
        raise ContractError(f"--shard-size {error}") from None
    options = MergeOptions(dtype, size, tuple(check or ()), not no_probe)
    with StageProgress().shown() as progress:
        if adapter is None or out is None:
            run = find_run(name, runs)
            run.progress = progress
            proof = merge(run, out, options, items)
        else:
            proof = merge_into(base_at(name), adapter, out, options, progress=progress)
    if as_json:
        print_json(proof)
    else:
        _show(f"wrote {proof['folder']} ({_how(proof)})", proof)


def _unmerge(
    merged: Annotated[str, typer.Argument(metavar="MERGED", help="The merged model's folder.")],
    adapter: AdapterFolder,
    out: Annotated[Path, typer.Option("--out", help="Where to write.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base, to measure what rounding left.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Subtract what is not recorded as merged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Subtract an update from weights that it was merged into.

    Example: `tunemath unmerge merged path/to/adapter --out base-again --base path/to/base`
    """
    from tunemath.pipeline.products import base_at, unmerge_from

    with StageProgress().shown() as progress:
        proof = unmerge_from(
            base_at(merged), adapter, out, base_at(base) if base else None, force, progress
        )
    if as_json:
        print_json(proof)
        return
    say(f"wrote {proof['folder']}: ΔW of norm {proof['norm']:.4g} taken from ", end="")
    say(f"{proof['changed']} tensors")
    if left := proof.get("left"):
        say(
            f"‖unmerged − base‖ is {left['norm']:.3g}, {left['relative']:.2g} of ‖base‖; "
            f"{left['identical']} of {left['compared']} changed tensors are the base's to the bit"
        )


def _verify(
    base: BaseModel,
    adapter: AdapterFolder,
    product: Annotated[
        Path, typer.Argument(metavar="MERGED", help="The folder to judge.", exists=True)
    ],
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Do not compare logits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge whether a model that any tool merged is the base with the update in it, once.

    The exit code is 1 where a check fails, 3 where one that is required could not be judged.

    Example: `tunemath verify path/to/base path/to/adapter path/to/merged`
    """
    from tunemath.pipeline.products import base_at, verify

    with StageProgress().shown() as progress:
        verdict = verify(base_at(base), adapter, product, not no_probe, progress)
    if as_json:
        print_json(verdict)
    else:
        _show(f"{verdict['verdict']}: {product}", verdict)
    raise typer.Exit(verdict["exit_code"])


def _how(proof: dict[str, Any]) -> str:
    changed = proof.get("weights", {}).get("changed")
    tensors = f", {changed} tensors changed" if changed is not None else ""
    untied = "; head and embedding are apart now" if proof["untied"] else ""
    alike = "".join(
        f"; {each['same']} of {each['items']} {name} items answered alike"
        + _ties(each["apart"], proof.get("tolerance", 0.0))
        for name, each in proof.get("items", {}).items()
    )
    return f"{proof['dtype']}{tensors}, {proof['computed']}{untied}{alike}"


def _ties(apart: list[dict[str, Any]], tolerance: float) -> str:
    """Say how many of the answers that differ are nearer to a tie than rounding moves logits."""
    ties = sum(each["gap"] <= tolerance for each in apart)
    return f", {ties} more but for rounding" if ties else ""


def _show(title: str, proof: dict[str, Any]) -> None:
    from tunemath.report.terminal import checklist_view

    show(checklist_view(proof), title=title)
