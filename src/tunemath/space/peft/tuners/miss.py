"""MiSS: a small matrix whose rows are shared by the inputs."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, whole

__all__ = ["miss"]


def miss(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return MiSS's block (r, d_out): ``r d_out`` a layer, with ``mini`` ``r m``.

    With ``init_weights`` ``bat`` the block is (d_out / r, r, r), and r divides both widths; with
    ``mini`` it is (r, m), and m, ``mini_r``, divides d_out.

    Source: Kang and Yin 2024, arXiv 2409.15371.
    """
    r, form = whole(config, "r"), config["init_weights"]
    m = whole(config, "mini_r") if form == "mini" else 0
    groups = []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        if r > d_in:
            raise _refused(modules[0], f"r {r}", f"r to at most {d_in}")
        if form == "bat" and (d_in % r or d_out % r):
            raise _refused(modules[0], f"r {r} with bat", "r to a divisor of both")
        if form == "mini" and d_out % m:
            raise _refused(modules[0], f"mini_r {m}", f"mini_r to a divisor of {d_out}")
        shape = {"bat": (d_out // r, r, r), "mini": (r, m)}.get(form, (r, d_out))
        groups.append(Group(modules, (Part("miss_block", shape),), r * (m or d_out)))
    return Change(tuple(groups))


def _refused(module: Module, given: str, fix: str) -> ModelError:
    return ModelError(
        f"MISS has {given}, and {module.name} takes {module.d_in} and gives {module.d_out}; set "
        f"{fix}"
    )
