"""Spectra of whole models and adapters, against torch.linalg.svdvals of the differences."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_tuner_factors import CASES, Small, cut_ranks, merged_differences, saved
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.weights.model_spectrum import adapter_spectrum, checkpoint_spectrum
from tunemath.space.weights.spectra import SpectrumSettings

VALUES_ONLY = SpectrumSettings(directions=0, intruders=0)


def checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_name(product: dict[str, Any]) -> dict[str, dict[str, Any]]:
    json.dumps(product, allow_nan=False)
    return {row["name"]: row for row in product["modules"]}


def hold(row: dict[str, Any], delta: Tensor) -> None:
    """Hold a row against the definitions, computed from the formed difference in float64."""
    values = torch.linalg.svdvals(delta.double()).numpy()
    known = len(row["singular_values"])
    whole = float((values**2).sum())
    np.testing.assert_allclose(
        row["singular_values"], values[:known], rtol=1e-6, atol=1e-7 * values[0]
    )
    assert row["frobenius"] == pytest.approx(whole**0.5, rel=1e-6)
    assert row["stable_rank"] == pytest.approx(whole / values[0] ** 2, rel=1e-6)
    p = values[values > 1e-7 * values[0]]
    p = p / p.sum()
    assert row["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    for k, (error, bound) in enumerate(zip(row["relative_error"], row["bound"], strict=True), 1):
        true = (float((values[k:] ** 2).sum()) / whole) ** 0.5
        assert error == pytest.approx(true, rel=1e-6, abs=1e-6)
        assert bound >= error
    shares = np.cumsum(values**2) / whole
    assert row["rank_for_90_percent"] == np.flatnonzero(shares >= 0.9 - 1e-9)[0] + 1


def test_every_weight_that_differs_between_two_checkpoints(tmp_path):
    base = {
        "model.embed_tokens.weight": normal(20, 8, seed=1),
        "model.layers.0.self_attn.q_proj.weight": normal(8, 8, seed=2),
        "model.layers.0.mlp.up_proj.weight": normal(24, 8, seed=3).bfloat16(),
        "model.layers.1.mlp.down_proj.weight": normal(8, 24, seed=4),
        "model.layers.1.mlp.experts.gate_up_proj": normal(3, 8, 6, seed=5),
        "model.layers.1.conv.weight": normal(4, 2, 3, seed=6),
        "model.layers.1.norm.weight": torch.ones(8),
        "model.layers.1.same.weight": normal(4, 4, seed=7),
        "model.layers.1.gone.weight": normal(4, 4, seed=8),
    }
    tuned = {name: t + 0.1 * normal(*t.shape, seed=9) for name, t in base.items()}
    tuned["model.layers.1.same.weight"] = base["model.layers.1.same.weight"].clone()
    tuned["model.layers.1.mlp.experts.gate_up_proj"][1] = base[
        "model.layers.1.mlp.experts.gate_up_proj"
    ][1]
    tuned["model.embed_tokens.weight"] = torch.cat((tuned["model.embed_tokens.weight"],) * 2)
    del tuned["model.layers.1.gone.weight"]
    folders = (checkpoint(tmp_path / "base", base), checkpoint(tmp_path / "tuned", tuned))
    ticks: list[tuple[int, int]] = []
    found = checkpoint_spectrum(
        *folders, VALUES_ONLY, tick=lambda done, total: ticks.append((done, total))
    )
    rows = by_name(found)
    expected = {}
    for name, before in base.items():
        if name.endswith(("norm.weight", "same.weight", "gone.weight")):
            continue
        delta = tuned[name][: len(before)].double() - before.double()
        module = name.removesuffix(".weight")
        if "experts" in name:
            expected |= {f"{module}[{place}]": delta[place] for place in (0, 2)}
        else:
            expected[module] = delta.flatten(1)
    assert rows.keys() == expected.keys()
    for name, delta in expected.items():
        hold(rows[name], delta)
        assert rows[name]["exact"]
    assert {row["block"] for row in rows.values()} == {
        "embedding", "attention", "feed-forward", "experts", "other",
    }  # fmt: skip
    inventory = found["inventory"]
    assert (inventory["unchanged"], inventory["only_base"]) == (2, ["model.layers.1.gone.weight"])
    (vector,) = inventory["vectors"]
    moved = tuned["model.layers.1.norm.weight"].double() - 1
    assert vector["frobenius"] == pytest.approx(float(moved.norm()))
    (resized,) = inventory["resized"]
    assert (resized["base"], resized["tuned"]) == ([20, 8], [40, 8])
    assert ticks[-1] == (8, 8)


def test_groups_add_up_to_the_model(tmp_path):
    names = [f"model.layers.{layer}.{m}" for layer in (0, 1) for m in ("attn.q", "mlp.up")]
    base = {f"{name}.weight": normal(6, 5, seed=place) for place, name in enumerate(names)}
    tuned = {
        name: t + (place + 1) * torch.eye(6, 5) for place, (name, t) in enumerate(base.items())
    }
    summary = checkpoint_spectrum(
        checkpoint(tmp_path / "base", base), checkpoint(tmp_path / "tuned", tuned), VALUES_ONLY
    )["summary"]
    # ‖ΔW‖² is 5·(1, 4, 9, 16) for the four weights.
    shares = {row["block"]: row["share"] for row in summary["by_block"]}
    assert shares == {
        "attention": pytest.approx(10 / 30),
        "feed-forward": pytest.approx(20 / 30),
    }
    assert [row["share"] for row in summary["by_layer"]] == [
        pytest.approx(5 / 30),
        pytest.approx(25 / 30),
    ]
    whole = sum(float(t.double().square().sum()) for t in base.values())
    assert summary["overall_relative_norm"] == pytest.approx((150 / whole) ** 0.5)
    assert summary["median_effective_rank"] == pytest.approx(5)
    assert (summary["rank_for_90_percent"], summary["stable_rank"]) == (5, pytest.approx(5))


def test_a_large_update_has_certified_bounds(tmp_path):
    u, v = (torch.linalg.qr(normal(side, 1040).double())[0] for side in (1100, 1040))
    values = torch.arange(1, 1041, dtype=torch.float64) ** -0.8
    base = normal(1100, 1040)
    tuned = {"layers.0.mlp.up.weight": base + ((u * values) @ v.T).float()}
    folders = (
        checkpoint(tmp_path / "base", {"layers.0.mlp.up.weight": base}),
        checkpoint(tmp_path / "tuned", tuned),
    )
    (row,) = checkpoint_spectrum(*folders, SpectrumSettings(top=12, intruders=0))["modules"]
    exact = torch.linalg.svdvals(tuned["layers.0.mlp.up.weight"].double() - base.double()).numpy()
    assert not row["exact"]
    assert len(row["singular_values"]) == 12
    np.testing.assert_allclose(row["singular_values"], exact[:12], rtol=1e-2)
    for k, (error, bound) in enumerate(zip(row["relative_error"], row["bound"], strict=True), 1):
        true = float(((exact[k:] ** 2).sum() / (exact**2).sum()) ** 0.5)
        assert true <= bound + 1e-12
        assert error == pytest.approx(true, rel=1e-3)
    p = exact / exact.sum()
    low, high = row["effective_rank_bounds"]
    assert low <= np.exp(-(p * np.log(p)).sum()) <= high
    assert row["effective_rank"] is None


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_has_the_spectrum_of_what_peft_merges(case, tmp_path):
    torch.manual_seed(0)
    model = Small()
    base = checkpoint(tmp_path / "base", dict(model.state_dict()))
    folder = saved(tmp_path / "adapter", copy.deepcopy(model), *CASES[case])
    if case == "adalora, cut":
        cut_ranks(folder)
    rows = by_name(adapter_spectrum(folder, base, VALUES_ONLY))
    expected = merged_differences(model, folder)
    assert rows.keys() == expected.keys()
    for name, delta in expected.items():
        hold(rows[name], delta)
        norm = float(model.get_parameter(f"{name}.weight").detach().double().norm())
        assert rows[name]["relative_norm"] == pytest.approx(rows[name]["frobenius"] / norm)


def test_an_adapter_without_its_base_has_its_values_and_no_comparison(tmp_path):
    torch.manual_seed(0)
    base = checkpoint(tmp_path / "base", dict(Small().state_dict()))
    folder = saved(tmp_path / "adapter", Small(), *CASES["lora"])
    alone = adapter_spectrum(folder, None, SpectrumSettings(), folder)
    both = by_name(adapter_spectrum(folder, base, SpectrumSettings()))
    for name, row in by_name(alone).items():
        assert row["singular_values"] == both[name]["singular_values"]
        assert row["relative_norm"] is None
        assert "base" not in row
        assert "intruders" not in row
        assert row["other"]["left"]["overlap"] == pytest.approx(1)
        assert max(row["other"]["right"]["angles"]) < 1e-6
    assert alone["summary"]["overall_relative_norm"] is None


def lora(folder: Path, a: Tensor, b: Tensor) -> Path:
    """Write an adapter of one module, ΔW = B A."""
    folder.mkdir()
    key = "base_model.model.model.layers.0.mlp.up.lora_"
    factors = {f"{key}A.weight": a.contiguous(), f"{key}B.weight": b.contiguous()}
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": len(a), "lora_alpha": len(a), "target_modules": ["up"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_angles_and_intruders_by_hand(tmp_path):
    # W = diag(8 … 1). ΔW = 20 e_2 e_1ᵀ: its left direction is the base's second, its right the
    # first. Tuned, the first left direction is nearly e_2, which the base has.
    eye, name = torch.eye(8), "model.layers.0.mlp.up.weight"
    base = checkpoint(tmp_path / "base", {name: torch.diag(torch.arange(8.0, 0.0, -1.0))})
    known = lora(tmp_path / "known", 20 * eye[:1], eye[:, 1:2])
    settings = SpectrumSettings(directions=1, intruders=1)
    (row,) = adapter_spectrum(known, base, settings)["modules"]
    assert row["base"]["left"]["angles"] == [pytest.approx(90)]
    assert row["base"]["right"]["angles"] == [pytest.approx(0, abs=1e-3)]
    assert row["base"]["right"]["overlap"] == pytest.approx(1)
    assert row["base"]["left"]["chance"] == 1 / 8
    assert row["intruders"] == {"of": 1, "lower": 0, "upper": 0}
    # Along (1, …, 1)/√8 the new first direction has a cosine of about 1/√8 = 0.35 with each.
    new = lora(tmp_path / "new", 200 * eye[:1], torch.ones(8, 1) / 8**0.5)
    (row,) = adapter_spectrum(new, base, settings, known)["modules"]
    assert row["intruders"] == {"of": 1, "lower": 1, "upper": 1}
    angle = np.degrees(np.arccos(8**-0.5))
    assert row["other"]["left"]["angles"] == [pytest.approx(angle)]
    assert row["other"]["right"]["angles"] == [pytest.approx(0, abs=1e-6)]


def test_weights_that_were_trained_whole_are_compared_with_the_base(tmp_path):
    torch.manual_seed(0)
    model = Small()
    base = checkpoint(tmp_path / "base", dict(model.state_dict()))
    settings = {"target_modules": ["first"], "modules_to_save": ["last"], "r": 2}
    folder = saved(tmp_path / "adapter", copy.deepcopy(model), "LORA", settings)
    found = adapter_spectrum(folder, base, VALUES_ONLY)
    rows, expected = by_name(found), merged_differences(model, folder)
    assert rows.keys() == {"first", "last"}
    hold(rows["last"], expected["last"])
    assert [row["name"] for row in found["inventory"]["vectors"]] == ["last.bias"]
    alone = adapter_spectrum(folder, None, VALUES_ONLY)
    assert alone["inventory"]["only_tuned"] == ["last.bias", "last.weight"]


def test_nothing_that_changed_is_said(tmp_path):
    folders = [checkpoint(tmp_path / name, {"w": normal(3, 3)}) for name in "ab"]
    found = checkpoint_spectrum(folders[0], folders[1], SpectrumSettings())
    assert found["skipped"] == "no weight of two dimensions changed"
    assert (found["modules"], found["inventory"]["unchanged"]) == ([], 1)


def test_what_cannot_be_compared_is_refused_with_its_reason(tmp_path):
    one = {"target_modules": ["first"]}
    for kind, more, reason in (
        ("LORA", {"use_dora": True}, "DoRA scales"),
        ("IA3", {"feedforward_modules": []}, "IA3 adapter, whose files do not hold"),
    ):
        folder = saved(tmp_path / kind, Small(), kind, {**one, **more})
        with pytest.raises(ModelError, match=rf"{reason}.*; merge it and give two models"):
            adapter_spectrum(folder, None, VALUES_ONLY)
    vera = saved(tmp_path / "vera", Small(), "VERA", {**one, "r": 2})
    with pytest.raises(ModelError, match=r"shape of first is not in the adapter.*--base"):
        adapter_spectrum(vera, None, VALUES_ONLY)
    adapter = saved(tmp_path / "lora", Small(), "LORA", {**one, "r": 2})
    alien = checkpoint(tmp_path / "alien", {"other.weight": normal(3, 3)})
    with pytest.raises(ModelError, match=r"changes first, which .*alien does not have"):
        adapter_spectrum(adapter, alien, VALUES_ONLY)
    narrow = checkpoint(tmp_path / "narrow", {"first.weight": normal(20, 11)})
    with pytest.raises(ModelError, match=r"first.weight is \[20, 12\] in the adapter and \[20, 11"):
        adapter_spectrum(adapter, narrow, VALUES_ONLY)
    packed = checkpoint(tmp_path / "packed", {"first.weight": torch.ones(20, 12).byte()})
    with pytest.raises(ModelError, match="are no weights yet"):
        adapter_spectrum(adapter, packed, VALUES_ONLY)
