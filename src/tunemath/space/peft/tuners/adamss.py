"""AdaMSS: a small update for each cluster of a layer's outputs."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, uncounted, whole

__all__ = ["adamss"]


def adamss(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return AdaMSS's updates of K clusters of outputs: ``K min(s, R) R + s d_out`` a layer.

    Let s be ``subspace_rank``, at most d_out; K ``num_subspaces``, at most d_out; and R the least
    of r, d_out and the width of the input (with a bias, one more). A cluster of n outputs has
    A (min(s, R), R) and B (n, s). Pruning (``use_asa``) begins at the whole count.

    Clusters come from K-means on the weights, and PEFT takes n for s where n < s: then fewer are
    trained, which a note says. Counts that only the weights tell are refused: of ranks that follow
    the weights (``use_dynamic_rank``), and of fewer than K s outputs.

    Source: Zheng et al. 2025, openreview.net/forum?id=8ZdWmpYxT0.
    """
    r, k = whole(config, "r"), whole(config, "num_subspaces")
    s = whole(config, "subspace_rank", least=0) or 1
    _check_settings(config)
    groups, held, least, crowded = [], 0, 0, False
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_out = modules[0].d_out
        d_in = modules[0].d_in + modules[0].bias
        subspace, clusters, most = min(r, d_out, d_in), min(k, d_out), min(s, d_out)
        rank = min(most, subspace)
        parts = (
            *(Part(f"adamss_A.{i}", (rank, subspace)) for i in range(clusters)),
            Part("adamss_B", (d_out, most)),  # a row an output, in PEFT split by cluster
        )
        groups.append(Group(modules, parts, clusters * rank * subspace + most * d_out))
        held += len(modules) * subspace * d_in
        least += len(modules) * (clusters * subspace + d_out)
        crowded |= clusters * most > d_out
    if s > 1 and (config["use_dynamic_rank"] or crowded):
        raise ModelError(
            f"ADAMSS with subspace_rank {s} chooses ranks by the weights, which a count does not "
            f"see: from {least:,} to {sum(len(g.modules) * g.trainable for g in groups):,} "
            "parameters are trained; turn use_dynamic_rank off, and make num_subspaces or "
            "subspace_rank smaller"
        )
    notes = [uncounted("the projections onto the subspaces", held)]
    if s > 1 and k > 1:
        notes.append(
            f"the count is of clusters of subspace_rank {s} outputs or more; PEFT clusters by the "
            f"weights, and where a cluster is smaller fewer are trained, at least {least:,}"
        )
    return Change(tuple(groups), notes=tuple(notes))


def _check_settings(config: AdapterConfig) -> None:
    """Refuse what PEFT refuses."""
    if config["init_weights"] not in ("orthogonal", None, False):
        raise ModelError(
            f"ADAMSS: init_weights is {config['init_weights']!r}; set it to orthogonal, or leave "
            "it out"
        )
    if config["use_asa"]:
        for name in ("mask_interval", "asa_target_subspaces"):
            whole(config, name)
        first, last = (whole(config, name, least=0) for name in ("init_warmup", "final_warmup"))
        exponent = config["asa_schedule_exponent"]
        if first >= last or not isinstance(exponent, int | float) or exponent <= 0:
            raise ModelError(
                f"ADAMSS with use_asa has init_warmup {first}, final_warmup {last} and "
                f"asa_schedule_exponent {exponent!r}; set init_warmup below final_warmup, and the "
                "exponent above 0"
            )
