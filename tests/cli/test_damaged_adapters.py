"""Adapters with values or settings that mean nothing: told by name, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunemath.cli import main

COMMANDS = ("merge", "resize", "spectrum")


@pytest.fixture
def adapter(sft_run, tmp_path) -> Path:
    """A copy of a run's adapter, outside of the run."""
    return Path(shutil.copytree(sft_run.update, tmp_path / "given"))


@pytest.fixture
def refused(tiny_model, adapter, tmp_path, capsys) -> Callable[[str], str]:
    """Run a command on the adapter; return what it says where it refuses and writes nothing."""

    def refused(command: str) -> str:
        out = tmp_path / "out"
        arguments = {
            "merge": ["merge", tiny_model, adapter, "--out", out],
            "resize": ["resize", adapter, out, "--rank", 2, "--base", tiny_model],
            "spectrum": ["spectrum", adapter],
        }[command]
        with pytest.raises(SystemExit) as end:
            main([str(each) for each in arguments])
        said = capsys.readouterr().err
        assert end.value.code == 2, said
        assert not out.exists()
        return said

    return refused


def change(adapter: Path, **settings: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", COMMANDS)
def test_values_that_are_not_finite(adapter, refused, command, value):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[:3] = value
    save_file(tensors, path)
    said = refused(command)
    assert f"adapter_model.safetensors: {name} has 3 values that are not finite" in said


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_alpha_beyond_all_use(adapter, refused, command, alpha):
    change(adapter, lora_alpha=alpha)
    assert "lora_alpha" in refused(command)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_pattern", "q_proj"),
        ("alpha_pattern", {"q_proj": "8"}),
        ("rank_pattern", [4]),
        ("exclude_modules", float("-inf")),
        ("megatron_config", {"a": float("nan")}),
        ("use_rslora", {}),
        ("r", "4"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_field_with_a_value_of_another_kind(adapter, refused, command, field, value):
    change(adapter, **{field: value})
    assert field in refused(command)


@pytest.mark.parametrize("command", COMMANDS[:2])
@pytest.mark.parametrize("targets", ["(((", "((.*)*)*x"])
def test_targets_that_are_no_expression_or_never_end(
    monkeypatch, adapter, refused, command, targets
):
    monkeypatch.setattr("tunemath.space.peft.expressions._PATIENCE", 0.3)
    change(adapter, target_modules=targets)
    assert "regular expression" in refused(command)


def test_the_adapter_as_it_was_is_taken(adapter, capsys):
    with pytest.raises(SystemExit) as end:
        main(["spectrum", str(adapter)])
    assert end.value.code in (0, None), capsys.readouterr().err
    assert all(
        bool(torch.isfinite(t).all())
        for t in load_file(adapter / "adapter_model.safetensors").values()
    )
