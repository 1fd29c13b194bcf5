"""PSOFT: a rotation of the weight's principal subspace."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, one_of, uncounted, whole

__all__ = ["psoft"]

_FLOATS = ("float32", "float16", "bfloat16")


def psoft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return PSOFT's rotation R and its two scales (r,): ``r (r - 1) / 2 + 2 r`` a layer.

    R is skew-symmetric, or without ``psoft_orth`` whole: ``r²``. Each scale, ``psoft_mag_a`` and
    ``psoft_mag_b``, can be left out. The principal subspace, A (r, d_in) and B (d_out, r), is
    frozen; PEFT holds it as buffers.

    Source: arXiv 2505.11235.
    """
    r = whole(config, "r")
    _require_floats(blueprint)
    one_of(config, "ab_svd_init", ("psoft_init", "pissa_init"))
    one_of(config, "psoft_svd", ("full", "lowrank"))
    scales = tuple(
        Part(f"psoft_R.{name}", (r,))
        for name, key in (("vector_b", "psoft_mag_b"), ("vector_a", "psoft_mag_a"))
        if config[key]
    )
    rotation = (r * (r - 1) // 2,) if config["psoft_orth"] else (r, r)
    parts = (Part("psoft_R.weight", rotation), *scales)
    trainable = r * (r - 1) // 2 if config["psoft_orth"] else r**2
    trainable += r * len(scales)
    targets = layers(blueprint, config, "linear")
    for module in targets:
        if r > min(module.d_in, module.d_out):
            raise ModelError(
                f"PSOFT has r {r}, and {module.name} takes {module.d_in} and gives {module.d_out}; "
                f"set r to at most {min(module.d_in, module.d_out)}"
            )
    groups = tuple(Group(modules, parts, trainable) for modules in grouped(targets).values())
    held = sum(r * (m.d_in + m.d_out) for m in targets)
    return Change(groups, notes=(uncounted("the principal subspaces A and B", held),))


def _require_floats(blueprint: Blueprint) -> None:
    """Refuse weights that PEFT does not decompose."""
    stored = blueprint.dtype
    if blueprint.quantisation.startswith("bitsandbytes"):
        stored = blueprint.quantisation
    if stored not in _FLOATS:
        raise ModelError(
            f"PSOFT decomposes weights of {', '.join(_FLOATS)}; those of this model are {stored}; "
            "load it as one of these"
        )
