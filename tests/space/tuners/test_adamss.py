from __future__ import annotations

import re
import sys
from types import ModuleType

import numpy as np
import pytest
from peft import AdamssConfig
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint, live_counts

from tunemath.errors import ModelError
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
QUERIES = ["q_proj", "query", "down_proj", "intermediate.dense"]
NO_CONV1D = ("gpt2",)

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "r": 7, "num_subspaces": 3}, NO_CONV1D),
    "many-subspaces": ({**ALL, "num_subspaces": 40, "init_weights": None}, NO_CONV1D),
    "dynamic": ({**ALL, "use_dynamic_rank": True, "use_asa": True}, NO_CONV1D),
    "no-subspace-rank": ({**ALL, "subspace_rank": 0}, NO_CONV1D),
    "one-subspace": ({**ALL, "subspace_rank": 3, "num_subspaces": 1}, NO_CONV1D),
    "wider-than-r": ({**ALL, "subspace_rank": 3, "num_subspaces": 1, "r": 2}, NO_CONV1D),
    "wider-than-outputs": ({**ALL, "subspace_rank": 90, "num_subspaces": 1}, NO_CONV1D),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "no-subspaces": ({**ALL, "num_subspaces": 0}, FAMILIES),
    "unknown-start": ({**ALL, "init_weights": "zeros"}, FAMILIES),
    "no-steps": ({**ALL, "use_asa": True, "mask_interval": 0}, FAMILIES),
    "no-ramp": ({**ALL, "use_asa": True, "final_warmup": 50}, FAMILIES),
}


def turns(n: int, k: int) -> np.ndarray:
    return np.arange(n) % k


def singles(n: int, k: int) -> np.ndarray:
    return np.minimum(np.arange(n), k - 1)


@pytest.fixture
def clusters(request, monkeypatch):
    """PEFT with this clustering for scikit-learn's K-means."""

    class KMeans:
        def __init__(self, n_clusters, **settings):
            if n_clusters < 1:
                raise ValueError("n_clusters")
            self.n_clusters = n_clusters

        def fit_predict(self, rows):
            if not rows.shape[1]:
                raise ValueError("no features")
            return request.param(len(rows), self.n_clusters)

    package, module = ModuleType("sklearn"), ModuleType("sklearn.cluster")
    module.KMeans = KMeans
    monkeypatch.setitem(sys.modules, "sklearn", package)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", module)
    return request.param


@pytest.mark.parametrize("clusters", [turns, singles], indirect=True)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model_however_outputs_cluster(family, case, clusters):
    values, refused = CASES[case]
    assert agree(family, "ADAMSS", values) == (family not in refused)


@pytest.mark.parametrize("clusters", [turns], indirect=True)
@pytest.mark.parametrize(("s", "k"), [(2, 3), (4, 3), (4, 8), (5, 2)])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_clusters_that_are_large_enough_have_the_whole_rank(family, s, k, clusters):
    values = {"subspace_rank": s, "num_subspaces": k, "r": 3, "target_modules": QUERIES}
    assert agree(family, "ADAMSS", values)
    change = peft_change(blueprint(family), AdapterConfig("ADAMSS", **values))
    assert f"clusters of subspace_rank {s} outputs or more" in change.notes[1]


@pytest.mark.parametrize("clusters", [singles], indirect=True)
def test_a_smaller_cluster_has_less_and_no_less_than_is_said(clusters):
    values = {**ALL, "subspace_rank": 2, "num_subspaces": 3}
    change = peft_change(blueprint("llama"), AdapterConfig("ADAMSS", **values))
    least = int(change.notes[1].rpartition(" ")[2].replace(",", ""))
    live, _ = live_counts("llama", AdamssConfig(task_type="CAUSAL_LM", **values))
    assert least <= live < Ledger(blueprint("llama"), change).trainable


@pytest.mark.parametrize("clusters", [turns, singles], indirect=True)
@pytest.mark.parametrize(
    "settings",
    [
        {"subspace_rank": 2, "num_subspaces": 3, "use_dynamic_rank": True},
        {"subspace_rank": 4, "num_subspaces": 9},  # of 16 or 32 outputs
    ],
)
def test_counts_that_the_weights_decide_are_refused_with_their_range(clusters, settings):
    values = {**ALL, **settings}
    with pytest.raises(ModelError, match=r"from ([\d,]+) to ([\d,]+) parameters") as refusal:
        peft_change(blueprint("llama"), AdapterConfig("ADAMSS", **values))
    least, most = re.findall(r"[\d,]{4,}", str(refusal.value))
    live, _ = live_counts("llama", AdamssConfig(task_type="CAUSAL_LM", **values))
    assert int(least.replace(",", "")) <= live <= int(most.replace(",", ""))


def test_the_projections_are_named_as_left_out_of_the_total():
    change = peft_change(blueprint("bert"), AdapterConfig("ADAMSS", r=20))
    # Two layers of query and value, with a bias each.
    assert f"{4 * 20 * (32 + 1):,} frozen numbers" in change.notes[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_weights": "zeros"}, "init_weights is 'zeros'; set it to orthogonal"),
        (
            {"use_asa": True, "final_warmup": 9},
            "final_warmup 9 .*; set init_warmup below",
        ),
    ],
)
def test_settings_must_be_known(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("ADAMSS", **values))
