"""`tunemath extract`, `resize` and `combine`: updates taken out of models, cut and combined."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from tunemath.cli.options import AsJson, StageProgress
from tunemath.cli.output import print_json, say
from tunemath.errors import ContractError

if TYPE_CHECKING:
    from tunemath.space.weights.ranks import RankChoice

__all__ = ["register"]

_UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000, "B": 1_000_000_000}
_COUNT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)([KMGB]?)", re.IGNORECASE | re.ASCII)
_DTYPES = ("float32", "bfloat16", "float16")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must be new.")]
Rank = Annotated[
    int | None, typer.Option("--rank", min=1, max=1_000_000, help="One rank for every matrix.")
]
Energy = Annotated[
    float | None, typer.Option("--energy", help="The share of each matrix's ‖ΔW‖² to keep: 0.95.")
]
Error = Annotated[
    float | None, typer.Option("--error", help="The relative error of each matrix: 0.1.")
]
Parameters = Annotated[
    str | None,
    typer.Option("--parameters", metavar="COUNT", help="For all factors together: 5M."),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help=f"{', '.join(_DTYPES)}.")]
NoProbe = Annotated[
    bool, typer.Option("--no-probe", help="Do not read it back, nor compare logits.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("extract")(_extract)
    app.command("resize")(_resize)
    app.command("combine")(_combine)


def _extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that was tuned.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model after that.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    parameters: Parameters = None,
    rest: Annotated[
        str, typer.Option("--rest", help="What else is saved whole: none, small or all.")
    ] = "small",
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Factor embeddings and head too.")
    ] = False,
    dtype: Dtype = None,
    no_probe: NoProbe = False,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA adapter with what changed between two models, the best of its rank.

    Changed norms and biases are saved whole with it; --rest all saves embeddings and head too. It
    is read back, and its logits are compared with those of both models.

    Example: `tunemath extract smollm2-135m path/to/tuned adapter --rank 16`

    `tunemath extract path/to/base path/to/tuned adapter --parameters 5M --dtype bfloat16`
    """
    from tunemath.pipeline.algebra import ExtractOptions, extract_lora

    if rest not in ("none", "small", "all"):
        raise ContractError(f"--rest {rest}: expected none, small or all")
    choice = _need(_choice(rank, energy, error, parameters))
    options = ExtractOptions(
        cast(Literal["none", "small", "all"], rest), embeddings, _dtype(dtype) or "float32"
    )
    with StageProgress().shown() as progress:
        proof = extract_lora(base, tuned, out, choice, options, progress, not no_probe)
    if as_json:
        print_json(proof)
    else:
        _show_factors(proof)
        _show_rest(proof)
        _show_logits(proof)


def _resize(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A LoRA adapter's folder.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    parameters: Parameters = None,
    dtype: Dtype = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The model to compare logits on.")
    ] = None,
    no_probe: NoProbe = False,
    as_json: AsJson = False,
) -> None:
    """Cut a LoRA adapter to other ranks, exactly, from its factors alone.

    It is read back, and its logits are compared with the adapter's on the base that this names.

    Example: `tunemath resize runs/dates-sft/adapter small --energy 0.95`
    """
    from tunemath.pipeline.algebra import resize_lora

    choice = _need(_choice(rank, energy, error, parameters))
    with StageProgress().shown() as progress:
        proof = resize_lora(adapter, out, choice, _dtype(dtype), progress, base, not no_probe)
    if as_json:
        print_json(proof)
    else:
        _show_factors(proof)
        _show_logits(proof)


def _combine(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[:WEIGHT]...", help="Models, or adapters; the weight is 1."),
    ],
    out: Out,
    method: Annotated[
        str, typer.Option("--method", "-m", help="linear, task, slerp, ties, dare or dare-ties.")
    ] = "linear",
    base: Annotated[
        str | None, typer.Option("--base", help="What the models were tuned from.")
    ] = None,
    density: Annotated[
        float, typer.Option("--density", help="Of ties and dare: the share that stays.")
    ] = 1.0,
    scale: Annotated[
        float, typer.Option("--scale", help="On the sum of task vectors, λ in the papers.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of what dare drops.")
    ] = 0,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    dtype: Dtype = None,
    no_probe: NoProbe = False,
    as_json: AsJson = False,
) -> None:
    """Make one model of several, or one adapter of several adapters.

    A model's weight stands after a colon; in task, a negative one subtracts what the model learned.
    Combined adapters have the sum of the ranks; --rank, --energy or --error cuts them. The product
    is read back, and its logits are compared with each one's.

    Example: `tunemath combine one:0.5 two:0.5 both --base smollm2-135m --method ties --density 0.2`

    `tunemath combine adapter-one adapter-two:-0.5 both --method task --rank 16`
    """
    from tunemath.pipeline.algebra import CombineOptions, combine_models
    from tunemath.space.weights.mixing import Method, Mix

    pairs = [_weighted(model) for model in models]
    weights = tuple(weight for _, weight in pairs)
    mix = Mix(cast(Method, method), weights, density, scale, seed)
    options = CombineOptions(base, _choice(rank, energy, error, None), _dtype(dtype))
    with StageProgress().shown() as progress:
        names = [name for name, _ in pairs]
        proof = combine_models(names, out, mix, options, progress, not no_probe)
    if as_json:
        print_json(proof)
        return
    if "modules" in proof:
        _show_factors(proof)
    else:
        say(f"wrote {proof['folder']}")
        if "survived" in proof:
            say(
                f"change from the base: norm {proof['norm']:.4g}; "
                f"{_percent(proof['survived'])} of it survived rounding"
            )
    _show_logits(proof)


def _choice(
    rank: int | None, energy: float | None, error: float | None, parameters: str | None
) -> RankChoice | None:
    from tunemath.space.weights.ranks import RankChoice

    count = None if parameters is None else _count(parameters)
    given = {"rank": rank, "energy": energy, "error": error, "parameters": count}
    given = {by: value for by, value in given.items() if value is not None}
    if len(given) > 1:
        raise ContractError(f"--{' and --'.join(given)} choose the ranks both; give one of them")
    for by, value in given.items():
        return RankChoice(cast(Any, by), value)
    return None


def _need(choice: RankChoice | None) -> RankChoice:
    if choice is None:
        raise ContractError("no rank is given; give --rank, --energy, --error or --parameters")
    return choice


def _count(text: str) -> int:
    found = _COUNT.fullmatch(text.strip())
    if found is None:
        raise ContractError(f"--parameters {text:.80}: expected a count such as 5M or 400K")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def _dtype(name: str | None) -> str | None:
    if name not in (*_DTYPES, None):
        raise ContractError(f"--dtype {name}: expected one of {', '.join(_DTYPES)}")
    return name


def _weighted(text: str) -> tuple[str, float]:
    """Return a model's name and its weight, which stands after the last colon."""
    name, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise ContractError(
            f"{text:.80}: {weight!r:.40} is no weight; expected a number after the colon, as in "
            "one:0.5"
        ) from None


def _show_factors(proof: dict[str, Any]) -> None:
    cuts = proof["modules"]
    ranks = [cut["rank"] for cut in cuts]
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    worst = max(cuts, key=lambda cut: cut["relative_error"])
    say(
        f"wrote {proof['folder']}: {len(cuts)} matrices, rank {span}, "
        f"{proof['parameters']:,} parameters\n"
        f"relative error {proof['relative_error']:.4g} over all; at most "
        f"{worst['relative_error']:.4g} (bound {worst['bound']:.4g}), {worst['name']}\n"
        f"{_percent(proof['survived'])} of that survived rounding to its dtype, "
        f"which is off by {_percent(proof['rounding'])}"
    )


def _show_rest(proof: dict[str, Any]) -> None:
    saved = [each for each in proof["rest"] if each["held"]]
    lost = sorted((e for e in proof["rest"] if not e["held"]), key=lambda each: -each["norm"])
    if saved:
        say(f"saved whole: {len(saved)} other changed tensors, as {saved[0]['name']}")
    if lost:
        names = ", ".join(each["name"] for each in lost[:3]) + (" …" if len(lost) > 3 else "")
        say(
            f"not held: {names}, {_percent(proof['not_held'])} of the squared change; "
            "--rest all saves what can be saved whole"
        )
    for note in proof["notes"]:
        say(f"note: {note}")


def _show_logits(proof: dict[str, Any]) -> None:
    found = proof.get("logits")
    if found is None:
        return
    if "unmeasured" in found:
        say(f"logits not compared: {found['unmeasured']}")
        return
    apart = ", ".join(f"{each['kl']:.3g} from {name}" for name, each in found["beside"].items())
    say(f"KL {apart}: nats a position, {found['positions']} positions of {found['prompts']}")
    if "adapter_vs_added" in found:
        most = found["adapter_vs_added"]["max_logit_difference"]
        say(f"read back by PEFT, its logits are those of base + update within {most:.2g}")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
