"""Preference optimisation: what is minimised over pairs of answers, or answers good and bad."""

from __future__ import annotations

from tunemath.objective.preference.anchored import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    nca_pair_loss,
    sppo_hard_loss,
)
from tunemath.objective.preference.batch import aot_loss, aot_unpaired_loss
from tunemath.objective.preference.margin import (
    dpo_margin,
    gradient_weight,
    implicit_reward,
    preference_accuracy,
)
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
from tunemath.objective.preference.scores import divergence_score, score_margin
from tunemath.objective.preference.table import PAIR_LOSSES, pair_loss
from tunemath.objective.preference.unpaired import (
    apo_zero_unpaired_loss,
    bco_loss,
    bco_shift,
    kto_loss,
    kto_reference_point,
)
from tunemath.objective.preference.weights import ld_log_prob, wpo_weights

__all__ = [
    "PAIR_LOSSES",
    "alphapo_loss",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "apo_zero_unpaired_loss",
    "bco_loss",
    "bco_pair_loss",
    "bco_shift",
    "chosen_nll",
    "cpo_loss",
    "discopop_loss",
    "divergence_score",
    "dpo_loss",
    "dpo_margin",
    "exo_pair_loss",
    "gradient_weight",
    "hinge_loss",
    "implicit_reward",
    "ipo_loss",
    "kto_loss",
    "kto_reference_point",
    "ld_log_prob",
    "nca_pair_loss",
    "odds_ratio_loss",
    "pair_loss",
    "preference_accuracy",
    "robust_loss",
    "score_margin",
    "sigmoid_norm_loss",
    "simpo_loss",
    "sppo_hard_loss",
    "tpo_l_loss",
    "tpo_loss",
    "wpo_weights",
]
