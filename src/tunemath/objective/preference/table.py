"""The preference losses by name: TRL's own, so that a ``loss_type`` finds its formula."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tunemath.errors import ShapeError
from tunemath.objective.preference.anchored import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    nca_pair_loss,
    sppo_hard_loss,
)
from tunemath.objective.preference.batch import aot_loss, aot_unpaired_loss
from tunemath.objective.preference.inputs import unknown_name
from tunemath.objective.preference.paired import (
    discopop_loss,
    dpo_loss,
    exo_pair_loss,
    hinge_loss,
    ipo_loss,
    robust_loss,
    sigmoid_norm_loss,
)
from tunemath.objective.preference.reference_free import (
    alphapo_loss,
    chosen_nll,
    cpo_loss,
    odds_ratio_loss,
    simpo_loss,
    tpo_l_loss,
    tpo_loss,
)

__all__ = ["PAIR_LOSSES", "pair_loss"]

PAIR_LOSSES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "sigmoid": dpo_loss,
        "hinge": hinge_loss,
        "ipo": ipo_loss,
        "exo_pair": exo_pair_loss,
        "nca_pair": nca_pair_loss,
        "robust": robust_loss,
        "bco_pair": bco_pair_loss,
        "sppo_hard": sppo_hard_loss,
        "aot": aot_loss,
        "aot_unpaired": aot_unpaired_loss,
        "apo_zero": apo_zero_loss,
        "apo_down": apo_down_loss,
        "discopop": discopop_loss,
        "sft": chosen_nll,
        "sigmoid_norm": sigmoid_norm_loss,
        "cpo": cpo_loss,
        "simpo": simpo_loss,
        "alphapo": alphapo_loss,
        "orpo": odds_ratio_loss,
        "tpo": tpo_loss,
        "tpo-l": tpo_l_loss,
    }
)
"""The first fifteen are those of TRL's DPO trainer; the others are its CPO, ORPO and TPO."""


def pair_loss(name: str, *arrays: Any, **options: Any) -> Any:
    """Return the loss of each pair, chosen by its name in `PAIR_LOSSES`.

    ``arrays`` are those that the loss has no default for, in its own order; ``options`` are the
    rest, each by its name. Returns what the loss returns. An unknown name, an array too many or too
    few, and an option that has no meaning for this loss raise.

    >>> pair_loss("hinge", [-4.0], [-6.0], [-5.0], [-5.5], beta=1.0).tolist()
    [0.0]
    """
    if name not in PAIR_LOSSES:
        raise unknown_name("preference loss", name, PAIR_LOSSES)
    loss = PAIR_LOSSES[name]
    parameters = inspect.signature(loss).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    wanted = [p.name for p in parameters if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    known = [p.name for p in parameters if p.name not in wanted]
    if len(arrays) != len(wanted):
        raise ShapeError(
            f"{name} was given {len(arrays)} array(s); expected {len(wanted)}: {', '.join(wanted)}"
        )
    for option in options:
        if option not in known:
            has = "its options are " + ", ".join(known) if known else "it has no options"
            raise ValueError(f"{option} has no meaning for {name}; {has}")
    missing = [option for option in needed if option not in wanted and option not in options]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(missing)}")
    return loss(*arrays, **options)
