"""Combined adapters beside PEFT's add_weighted_adapter, and beside sums of formed updates."""

import pytest
import torch
from lora_models import adapter, assert_nearest, assert_same_update, deltas, model
from peft import PeftModel

from tunemath.errors import ContractError, ModelError
from tunemath.space.weights.mixing import Mix
from tunemath.space.weights.ranks import RankChoice
from tunemath.space.weights.stacking import combine_adapters

ONE = {"target_modules": ["q_proj", "down_proj"]}
TWO = {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 3}}


@pytest.fixture
def pair(tmp_path):
    adapter(tmp_path / "one", **ONE)
    adapter(tmp_path / "two", seed=2, **TWO)
    (tmp_path / "out").mkdir()
    return tmp_path


def test_a_sum_is_exact_whatever_each_adapter_targets(pair):
    mix = Mix("task", (0.7, -0.4), scale=1.5)
    found = combine_adapters([pair / "one", pair / "two"], pair / "out", mix)
    (one, _), (two, _), (both, _) = (deltas(pair / name) for name in ("one", "two", "out"))
    assert both.keys() == one.keys() | two.keys()
    for name, delta in both.items():
        expected = torch.zeros_like(delta)
        for weight, part in ((0.7, one), (-0.4, two)):
            expected = expected + 1.5 * weight * part.get(name, torch.zeros_like(delta))
        assert_same_update(delta, expected)
    ranks = {cut.name.rpartition(".")[2]: cut.rank for cut in found.cuts}
    assert ranks == {"q_proj": 16, "down_proj": 8, "v_proj": 3}
    assert found.relative_error == 0


@pytest.mark.parametrize("kind", ["cat", "ties_svd"])
def test_peft_combines_alike(tmp_path, kind):
    for seed, name in ((1, "one"), (2, "two")):
        adapter(tmp_path / name, seed=seed, **ONE)
    (tmp_path / "out").mkdir()
    peft = PeftModel.from_pretrained(model(), str(tmp_path / "one"), adapter_name="one")
    peft.load_adapter(str(tmp_path / "two"), adapter_name="two")
    if kind == "cat":
        mix, more = Mix("task", (0.3, 0.9)), {}
        weights = [0.3, 0.9]
    else:
        mix, more = Mix("ties", (1.0, 1.0), density=0.5), {"density": 0.5, "svd_rank": 16}
        weights = [1.0, 1.0]
    peft.add_weighted_adapter(["one", "two"], weights, "both", combination_type=kind, **more)
    combine_adapters([tmp_path / "one", tmp_path / "two"], tmp_path / "out", mix)
    ours, _ = deltas(tmp_path / "out")
    for name, module in peft.named_modules():
        if hasattr(module, "get_delta_weight"):
            expected = module.get_delta_weight("both").detach()
            torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-5)


def test_a_cut_sum_is_the_best_of_its_rank(pair):
    mix = Mix("linear", (1.0, 3.0))
    choice = RankChoice("rank", 4)
    found = combine_adapters([pair / "one", pair / "two"], pair / "out", mix, choice=choice)
    (one, _), (two, _), (both, _) = (deltas(pair / name) for name in ("one", "two", "out"))
    for cut in found.cuts:
        name = next(each for each in both if each.endswith(cut.name))
        zero = torch.zeros_like(both[name])
        mean = (one.get(name, zero) + 3 * two.get(name, zero)).double() / 4
        best = assert_nearest(both[name], mean, 4)
        assert cut.relative_error == pytest.approx(
            float((mean - best).norm() / mean.norm()), 1e-4, 1e-6
        )


def test_slerp_follows_the_angle_between_two_updates(tmp_path):
    for seed, name in ((1, "one"), (2, "two")):
        adapter(tmp_path / name, seed=seed, **ONE)
    (tmp_path / "out").mkdir()
    mix = Mix("slerp", (0.6, 0.4))
    combine_adapters([tmp_path / "one", tmp_path / "two"], tmp_path / "out", mix)
    (one, _), (two, _), (both, _) = (deltas(tmp_path / name) for name in ("one", "two", "out"))
    for name, delta in both.items():
        x, y = one[name].double(), two[name].double()
        angle = torch.acos((x * y).sum() / x.norm() / y.norm())
        expected = (torch.sin(0.6 * angle) * x + torch.sin(0.4 * angle) * y) / torch.sin(angle)
        assert_same_update(delta, expected)


def test_dare_at_density_one_is_the_sum(pair):
    mix = Mix("dare", (1.0, 2.0))
    combine_adapters([pair / "one", pair / "two"], pair / "out", mix)
    (one, _), (two, _), (both, _) = (deltas(pair / name) for name in ("one", "two", "out"))
    for name, delta in both.items():
        zero = torch.zeros_like(delta)
        expected = one.get(name, zero) + 2 * two.get(name, zero)
        assert_same_update(delta, expected)


def test_more_than_factors_and_other_shapes_are_refused(pair):
    adapter(pair / "head", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"head has .*lm_head.* beside its factors \(1 such\)"):
        combine_adapters([pair / "one", pair / "head"], pair / "out", Mix("linear", (1.0, 1.0)))
    choice, mix = RankChoice("parameters", 100), Mix("linear", (1.0, 1.0))
    with pytest.raises(ContractError, match="--parameters is for resize"):
        combine_adapters([pair / "one", pair / "two"], pair / "out", mix, choice=choice)
