"""`tunemath memory`: what a training step holds, and what to change so that it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunemath.cli.options import AsJson, Method, MethodSettings, ModelPath
from tunemath.cli.output import print_json, show
from tunemath.errors import ContractError

if TYPE_CHECKING:
    from tunemath.pipeline.memory import Scenario

__all__ = ["register"]

_DOES_NOT_FIT = 1
_OBJECTIVES = ("sft", "dpo")
_REFERENCES = ("switched off", "copy", "cached")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("memory")(_memory)


def _memory(
    model: ModelPath,
    method: Method = "lora",
    settings: MethodSettings = None,
    length: Annotated[
        int,
        typer.Option("--length", "-T", min=1, max=10_000_000, help="Tokens of the longest row."),
    ] = 1024,
    supervised: Annotated[
        int | None,
        typer.Option(min=1, max=10_000_000, help="Supervised tokens of a row; all when not given."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Examples in an optimizer step.")
    ] = 8,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Examples in memory at once; else the batch."),
    ] = None,
    objective: Annotated[str, typer.Option(help="sft, or dpo: two rows an example.")] = "sft",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by the device if not given.")
    ] = None,
    quantise: Annotated[
        str | None, typer.Option(help="The base's linear layers: nf4, nf4-double or int8.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adamw_8bit, adafactor, …")] = "adamw",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again in backward.")
    ] = False,
    attention: Annotated[str, typer.Option(help="fused, or eager: all T × T scores.")] = "fused",
    masked: Annotated[
        bool, typer.Option("--masked", help="Attention has a mask, as other trainers give it.")
    ] = False,
    logits: Annotated[
        str, typer.Option(help="tiles, or all: of every position, as most trainers hold them.")
    ] = "tiles",
    reference: Annotated[
        str | None, typer.Option(help="DPO's: 'switched off', copy or cached.")
    ] = None,
    zero: Annotated[
        int, typer.Option(min=0, max=3, help="What devices share, as ZeRO's stage.")
    ] = 0,
    devices: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many devices share it.")
    ] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; this machine's.")] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="SIZE", help="A device's memory: 24GiB, 80GB.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the activations instead of a closed form.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Foretell the memory of a training step, term by term, without loading the model.

    With `--fit`, also the largest batch, length and rank that fit, and the cheapest change that
    makes it fit; the exit code is 1 where it does not fit.

    Example: `tunemath memory path/to/model --method lora --set rank=16 --length 2048 --fit 24GiB`

    `tunemath memory config.json --method full --objective dpo --optimizer adamw_8bit --json`
    """
    from tunemath.budget import (
        DTYPES,
        OPTIMIZERS,
        QUANTISATIONS,
        parse_size,
        this_device,
    )  # fmt: skip
    from tunemath.cli.count import blueprint_at
    from tunemath.pipeline.costs import Precision
    from tunemath.pipeline.memory import Scenario, memory_product
    from tunemath.report.memory import memory_view
    from tunemath.space import parse_space

    for option, value, known in (
        ("--objective", objective, _OBJECTIVES),
        ("--dtype", dtype, (*DTYPES, None)),
        ("--quantise", quantise, (*QUANTISATIONS, None)),
        ("--optimizer", optimizer, OPTIMIZERS),
        ("--attention", attention, ("fused", "eager")),
        ("--logits", logits, ("tiles", "all")),
        ("--reference", reference, (*_REFERENCES, None)),
        ("--device", device, ("cpu", "cuda", None)),
    ):
        if value not in known:
            names = ", ".join(str(one) for one in known if one is not None)
            raise ContractError(f"{option} {value}: expected one of {names}")
    if reference is not None and objective != "dpo":
        raise ContractError(f"--reference {reference} has no meaning for --objective {objective}")
    micro_batch = batch if micro_batch is None else micro_batch
    if batch % micro_batch:
        raise ContractError(f"--micro-batch {micro_batch} does not divide --batch {batch}")
    if (supervised or 1) > length:
        raise ContractError(f"--supervised {supervised} is more than --length {length}")
    try:
        limit = None if fit is None else parse_size(fit)
    except ValueError as error:
        raise ContractError(f"--fit {error}") from None
    space = parse_space(method, settings or ())
    kind = cast(Any, device or this_device().kind)
    scenario = Scenario(
        blueprint=blueprint_at(model, None),
        space=space,
        tokens=length,
        supervised=supervised or length,
        batch=batch,
        micro_batch=micro_batch,
        objective=cast(Any, objective),
        precision=Precision(
            dtype or ("float32" if kind == "cpu" else "bfloat16"), cast(Any, quantise)
        ),
        optimizer=optimizer,
        checkpointing=checkpointing,
        attention=cast(Any, attention),
        masked=masked,
        reference=cast(Any, reference),
        logits=cast(Any, logits),
        zero=cast(Any, zero),
        devices=devices,
        device=kind,
        trace=trace,
    )
    product = {**_about(scenario), **memory_product(scenario, limit)}
    if as_json:
        print_json(product)
    else:
        show(memory_view(product))
    if product.get("fits") is False:
        raise typer.Exit(_DOES_NOT_FIT)


def _about(scenario: Scenario) -> dict[str, Any]:
    from tunemath.pipeline.costs import saved_bytes

    ledger = scenario.ledger
    return {
        "model_type": scenario.blueprint.model_type,
        "architecture": scenario.blueprint.architecture,
        "method": scenario.space.method,
        "trainable": ledger.trainable,
        "total": ledger.total,
        "dtype": scenario.precision.dtype,
        "quantisation": scenario.precision.quantisation,
        "optimizer": scenario.optimizer,
        "step_flops": scenario.flops,
        "saved_bytes": saved_bytes(ledger),
        "notes": list(ledger.notes),
    }
