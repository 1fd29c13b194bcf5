"""Resizing beside torch.linalg.svd of the formed update, and PEFT that loads both adapters."""

import json
import math

import pytest
import torch
from lora_models import adapter, assert_nearest, deltas

from tunemath.errors import ModelError
from tunemath.space.weights.ranks import RankChoice
from tunemath.space.weights.resize import resize

SETTINGS = [
    {"target_modules": ["q_proj", "down_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {
        "target_modules": ["q_proj", "down_proj", "embed_tokens"],
        "rank_pattern": {"q_proj": 5},
        "alpha_pattern": {"layers.0.mlp.down_proj": 40},
        "modules_to_save": ["lm_head"],
    },
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_update_is_the_best_of_its_rank_and_the_rest_stays(tmp_path, settings):
    given = adapter(tmp_path / "given", **settings)
    (tmp_path / "out").mkdir()
    result = resize(given, tmp_path / "out", RankChoice("rank", 3))
    (before, rest), (after, same) = deltas(given), deltas(tmp_path / "out")
    assert len(result.cuts) == len(before) == len(after)
    for name, delta in before.items():
        assert_nearest(after[name], delta, 3)
        s = torch.linalg.svdvals(delta.double())
        cut = next(c for c in result.cuts if name.endswith(c.name))
        least = float((s[3:] ** 2).sum().sqrt() / (s**2).sum().sqrt())
        assert cut.relative_error == pytest.approx(least, rel=1e-5)
        assert cut.relative_error <= cut.bound
        assert cut.norm == pytest.approx(float(delta.norm()), rel=1e-5)
    assert rest.keys() == same.keys()
    for name, tensor in rest.items():
        torch.testing.assert_close(same[name], tensor, rtol=0, atol=0)


def test_the_scale_of_each_module_stays(tmp_path):
    given = adapter(tmp_path / "given", target_modules=["q_proj"], use_rslora=True)
    (tmp_path / "out").mkdir()
    resize(given, tmp_path / "out", RankChoice("rank", 2))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["use_rslora"]
    assert config["r"] == 2
    assert config["lora_alpha"] == pytest.approx(12 / math.sqrt(8) * math.sqrt(2))


def test_ranks_by_energy_and_by_a_budget(tmp_path):
    given = adapter(tmp_path / "given", target_modules=["q_proj", "down_proj"])
    for name in ("energy", "budget"):
        (tmp_path / name).mkdir()
    before, _ = deltas(given)
    energy = resize(given, tmp_path / "energy", RankChoice("energy", 0.7))
    for name, delta in before.items():
        s = torch.linalg.svdvals(delta.double()) ** 2
        cut = next(c for c in energy.cuts if name.endswith(c.name))
        assert cut.rank == int((s.cumsum(0) / s.sum() < 0.7).sum()) + 1
    budget = resize(given, tmp_path / "budget", RankChoice("parameters", 400))
    assert 360 < sum(c.rank * sum(c.shape) for c in budget.cuts) <= 400
    deltas(tmp_path / "budget")


def test_a_larger_rank_than_the_adapters_changes_nothing(tmp_path):
    given = adapter(tmp_path / "given", target_modules=["q_proj"])
    (tmp_path / "out").mkdir()
    result = resize(given, tmp_path / "out", RankChoice("rank", 64), dtype="bfloat16")
    assert all(cut.rank == 8 and cut.relative_error < 1e-12 for cut in result.cuts)
    assert all(0 < cut.rounding < 0.01 for cut in result.cuts)


def test_an_adapter_that_is_no_product_is_refused(tmp_path):
    given = adapter(tmp_path / "given", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        resize(given, tmp_path, RankChoice("rank", 2))
