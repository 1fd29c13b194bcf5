"""`tunemath spectrum` of a run, an adapter, and a model beside its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunemath.cli import main


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["spectrum", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def tuned(tiny_model, tmp_path) -> Path:
    """The tiny model with the up projections moved along one direction."""
    folder = tmp_path / "tuned"
    shutil.copytree(tiny_model, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, weight in tensors.items():
        if "up_proj" in name:
            weight += torch.outer(torch.ones(weight.shape[0]), torch.ones(weight.shape[1]))
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_a_run_an_adapter_and_the_stage_have_the_same_values(call, sft_run, tiny_model):
    runs, folder = sft_run.folder.path.parent, sft_run.folder.path
    stage: dict[str, Any] = json.loads((folder / "spectrum.json").read_text("utf-8"))
    values = {row["name"]: row["singular_values"] for row in stage["modules"]}
    adapter = folder / "adapter"
    for arguments in (
        [folder.name, "--runs", runs],
        [folder],
        [adapter, "--base", tiny_model],
        [tiny_model, adapter],
        [adapter],
    ):
        code, out, _ = call(*arguments, "--json")
        found = json.loads(out)
        assert code == 0
        assert {row["name"] for row in found["modules"]} == values.keys()
        for row in found["modules"]:
            np.testing.assert_allclose(row["singular_values"], values[row["name"]], rtol=1e-6)
            assert (row["relative_norm"] is None) == (arguments == [adapter])


def test_the_tables_of_a_tuned_model_and_the_page(call, tiny_model, tuned, sft_run, tmp_path):
    page = tmp_path / "spectrum.html"
    against = ["--against", sft_run.folder.path]
    code, out, err = call(tiny_model, tuned, *against, "--top", 1, "--report", page)
    assert code == 0
    assert f"wrote {page}" in err
    for words in ("2 weights", "up_proj", "feed-forward", "The 1 that moved most", "Intruder"):
        assert words in out
    assert "Directions shared with the other update's first" in out
    text = page.read_text("utf-8")
    assert text.count("<svg") >= 2
    assert "The 1 that moved most" in text
    code, out, _ = call(tiny_model, tuned, "--json")
    for row in json.loads(out)["modules"]:
        rows, columns = row["shape"]
        assert row["singular_values"][0] == pytest.approx((rows * columns) ** 0.5, rel=1e-5)
        assert row["rank_for_99_percent"] == 1


def test_two_equal_models_have_no_spectrum(call, tiny_model):
    code, out, _ = call(tiny_model, tiny_model)
    assert code == 0
    assert "no weight of two dimensions changed" in " ".join(out.split())


def test_bad_input_says_what_to_do(call, tiny_model, sft_run, tmp_path):
    folder = sft_run.folder.path
    for arguments, words in (
        (["nowhere"], "no run at nowhere"),
        ([folder, "--base", tiny_model], "--base goes with one adapter only"),
        ([folder, "--fresh"], "--fresh goes with a contract only"),
        (["x.yaml", "--against", folder], "--against has no meaning with a contract"),
        ([tiny_model, tmp_path], "has no weights"),
        (["org/name/x", tiny_model], "neither a folder here nor a hub id"),
        ([folder, "--against", "nowhere"], "no run at nowhere"),
        ([folder, "--top", "0"], "--top"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err, err
        assert "Traceback" not in err
