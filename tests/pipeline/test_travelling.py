"""What is given away works on another machine: no path of this one is in it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance
from tunemath.pipeline.algebra import combine_models, extract_lora, resize_lora
from tunemath.pipeline.using import merge
from tunemath.report import summary_view
from tunemath.runner.resolve import weights_hash
from tunemath.space.weights.mixing import Mix
from tunemath.space.weights.provenance import read_provenance
from tunemath.space.weights.ranks import RankChoice

PARTS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def texts(folder: Path) -> str:
    files = [*folder.rglob("*.json"), *folder.rglob("*.md"), *folder.rglob("*.jinja")]
    assert files
    return "\n".join(path.read_text("utf-8") for path in files)


def ran(code: str, folder: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture
def moved(sft_run, tmp_path) -> Path:
    """The finished run's adapter in another place, its base beside it in no way."""
    shutil.copytree(sft_run.folder.path / "adapter", tmp_path / "given" / "adapter")
    return tmp_path / "given" / "adapter"


def test_an_adapter_names_base_and_targets_for_everybody(sft_run, moved):
    config = json.loads((moved / "adapter_config.json").read_text())
    assert config["target_modules"] == PARTS
    assert (config["base_model_name_or_path"], config["revision"]) == ("./model", None)
    record = read_provenance(moved)
    assert record.of("base")[0].name == "./model"
    assert record.of("base")[0].sha256 == weights_hash(sft_run.model.folder)
    assert str(sft_run.folder.path.parents[2]) not in texts(moved)


def test_peft_reads_it_elsewhere_as_it_reads_the_full_names(sft_run, moved, tmp_path):
    """PEFT's own configuration, as it was saved with a name a layer, is the oracle."""
    plain = tmp_path / "plain"
    shutil.copytree(moved, plain)
    config = json.loads((plain / "adapter_config.json").read_text())
    keys = load_file(plain / "adapter_model.safetensors")
    names = {k.removeprefix("base_model.model.").partition(".lora_")[0] for k in keys}
    assert len(names) == 14
    config |= {"target_modules": sorted(names), "base_model_name_or_path": "/anywhere"}
    (plain / "adapter_config.json").write_text(json.dumps(config))
    found = {}
    for folder in (plain, moved):
        base = AutoModelForCausalLM.from_pretrained(sft_run.model.folder)
        model = PeftModel.from_pretrained(base, folder).eval()
        with torch.no_grad():
            logits = model(torch.arange(3, 40)[None]).logits
        found[folder] = model.base_model.targeted_module_names, logits
    assert sorted(found[plain][0]) == sorted(found[moved][0]) == sorted(names)
    assert torch.equal(found[plain][1], found[moved][1])


def test_the_card_s_code_runs_in_the_folder_that_was_given(sft_run, moved):
    (code,) = re.findall(r"```python\n(.*?)```", (moved / "README.md").read_text(), re.DOTALL)
    (moved / "model").symlink_to(sft_run.model.folder)
    assert ran(code, moved) == "yes"


def test_the_printed_code_runs_in_any_folder(shared_job, sft_run, tmp_path, monkeypatch):
    monkeypatch.chdir(shared_job.parent)
    view = summary_view(sft_run.evidence(), Path("runs/tiny"), sft_run.model.folder, "r.html")
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(view)
    code = console.export_text().partition("Load it\n")[2]
    assert ran("\n".join(line.rstrip() for line in code.splitlines()), tmp_path) == "yes"


@pytest.mark.parametrize("method", ["full", "layernorm", "adapter", "prefix"])
def test_no_update_holds_a_path_of_this_machine(tiny_job, tmp_path, method):
    overrides = [f"space={{method: {method}}}", "budget.epochs=1"]
    run = Run(FineTune.load(tiny_job, overrides), tmp_path / "runs")
    advance(run, "train")
    assert str(tmp_path) not in texts(run.update)


def test_only_some_layers_are_named_by_their_numbers(tiny_job, tmp_path):
    targets = [f"model.layers.1.{part}" for part in ("self_attn.q_proj", "self_attn.v_proj")]
    overrides = [f"space.targets={json.dumps(targets)}", "budget.epochs=1"]
    run = Run(FineTune.load(tiny_job, overrides), tmp_path / "runs")
    assert advance(run, "train")["training"]["trainable"]["live"] == run.ledger.trainable
    config = json.loads((run.update / "adapter_config.json").read_text())
    assert (config["target_modules"], config["layers_to_transform"]) == (["q_proj", "v_proj"], [1])


def test_products_of_adapters_and_models_hold_no_path_either(sft_run, tmp_path):
    base = tmp_path / "one" / "model"
    shutil.copytree(sft_run.model.folder, base)
    adapter = tmp_path / "adapter"
    shutil.copytree(sft_run.folder.path / "adapter", adapter)
    merged, taken, cut, both = (tmp_path / n for n in ("two/model", "taken", "cut", "both"))
    merge(sft_run, merged)
    found = extract_lora(str(base), str(merged), taken, RankChoice("rank", 4))
    assert set(found["logits"]["beside"]) == {str(base), str(merged)}
    resize_lora(taken, cut, RankChoice("rank", 2), base=str(base))
    combine_models([str(taken), str(adapter)], both, Mix("linear", weights=(1.0, 1.0)))
    for product in (merged, taken, cut, both):
        assert str(tmp_path) not in texts(product)
        assert str(sft_run.model.folder) not in texts(product)
    for product in (taken, cut, both):
        config = json.loads((product / "adapter_config.json").read_text())
        assert config["target_modules"] == PARTS
        assert config["base_model_name_or_path"] == "./model"
    beside = read_provenance(taken).proof["logits"]["beside"]
    assert set(beside) == {"./model", "./two/model"}


def test_the_base_of_a_run_is_found_again_by_its_contract(sft_run, tmp_path):
    proof = resize_lora(sft_run.folder.path / "adapter", tmp_path / "cut", RankChoice("rank", 2))
    assert len(proof["logits"]["beside"]) == 2
