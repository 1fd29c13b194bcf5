"""Every method down the whole road on the tiny model, and up again after a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from preference_job import DPO
from processes import finished, output_of
from tunemath.contract import FineTune
from tunemath.errors import ModelError
from tunemath.pipeline import Run, advance
from tunemath.pipeline.using import ask, merge
from tunemath.storage import hash_file

METHODS = {
    "dora": "{method: dora, rank: 4, alpha: 8}",
    "full": "{method: full}",
    "houlsby": "{method: adapter, style: houlsby, bottleneck: 16}",
    "pfeiffer": "{method: adapter, bottleneck: 16}",
    "parallel": "{method: adapter, style: parallel, bottleneck: 16}",
    "prefix": "{method: prefix, length: 8}",
    "projected": "{method: prefix, length: 8, projection: true}",
    "prompt": "{method: prompt, length: 8}",
    "last_layers": "{method: last_layers}",
    "layernorm": "{method: layernorm}",
    "linear_probe": "{method: linear_probe}",
}
BY_DEFAULT = {("pfeiffer", "sft"), ("full", "dpo"), ("prefix", "dpo"), ("prompt", "sft")}
CASES = [
    pytest.param(name, kind, marks=[] if (name, kind) in BY_DEFAULT else pytest.mark.slow)
    for name in METHODS
    for kind in ("sft", "dpo")
]
VIRTUAL = ("prefix", "projected", "prompt")
MERGED = ("dora", "full", "last_layers", "layernorm", "linear_probe")
OURS = ("houlsby", "pfeiffer", "parallel")
CHECKED = (
    "trainable-count",
    "step0-identity",
    "only-intended-tensors-moved",
    "adapter-merged-reloaded",
    "micro-batch-invariance",
    "step0-loss",
)


def overrides(contract: Path, name: str, kind: str) -> list[str]:
    folder = contract.parent
    more = [text.format(folder=folder) for text in DPO] if kind == "dpo" else []
    return [*more, f"name={name}-{kind}", f"space={METHODS[name]}"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_whole_road(shared_job, tmp_path, name, kind):
    run = Run(FineTune.load(shared_job, overrides(shared_job, name, kind)), tmp_path)
    evidence = advance(run)
    training, artefact = evidence["training"], evidence["artefact"]
    findings = {f["check"]: f for f in evidence["checklist"]["findings"]}
    for check in CHECKED:
        assert findings[check]["status"] == "PASS", findings[check]
    counts = training["trainable"]
    assert evidence["plan"]["parameters"]["trainable"] == counts["planned"] == counts["live"] > 0
    assert ("peft" in counts) == (name in (*VIRTUAL, "dora"))
    assert training["log"][-1]["loss"] < 0.9 * training["log"][0]["loss"]

    identity = training["identity"]
    if name in VIRTUAL:
        assert identity["kl"] > 1e-3
        assert f"{identity['kl']:.3g} nats" in findings["step0-identity"]["measured"]
    else:
        assert identity["max_logit_difference"] == 0.0
    if kind == "dpo":
        assert training["step0_loss"] == pytest.approx(math.log(2), abs=1e-6)

    assert ("not_merged" in artefact) == (name not in MERGED)
    spectrum = evidence["spectrum"]
    if name in MERGED and name != "layernorm":
        assert_spectrum(run, spectrum)
    else:
        assert (spectrum["modules"], bool(spectrum["skipped"])) == ([], True)
        assert spectrum["skipped"] in (run.folder.path / "report.html").read_text("utf-8")

    card = (run.update / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert run.contract.space.method in front["tags"]
    libraries = {"full": "transformers", "dora": "peft", **dict.fromkeys(VIRTUAL, "peft")}
    assert front["library_name"] == libraries.get(name, "tunemath")
    assert_example_runs(run, card, name)
    assert ask(run, "red 5000")["tuned"] is not None
    if name in MERGED:
        assert merge(run)["adapter_vs_reloaded_merged"]["max_logit_difference"] <= 1e-3
    else:
        with pytest.raises(
            ModelError, match=r"nothing to merge: an? .*; deploy .* beside the base"
        ):
            merge(run)


def assert_spectrum(run: Run, spectrum: dict[str, Any]) -> None:
    """Hold the singular values against those of merged weights minus the base's."""
    merge(run, run.folder.path / "again")
    after = load_file(run.folder.path / "again/model.safetensors")
    before = load_file(run.model.folder / "model.safetensors")
    changed = {
        name
        for name, weight in before.items()
        if weight.dim() == 2 and not torch.equal(weight, after[name])
    }
    assert {f"{m['name']}.weight" for m in spectrum["modules"]} == changed
    for module in spectrum["modules"]:
        delta = after[f"{module['name']}.weight"].double() - before[f"{module['name']}.weight"]
        values = np.linalg.svd(delta.numpy(), compute_uv=False)
        shown = module["singular_values"]
        np.testing.assert_allclose(shown, values[: len(shown)], rtol=1e-6, atol=1e-6)
        assert module["frobenius"] == pytest.approx(float(delta.norm()), rel=1e-9)


def assert_example_runs(run: Run, card: str, name: str) -> None:
    """The card's code, with the paths put in, loads a model that answers like the run's own."""
    code = card.split("```python\n")[1].split("```")[0]
    loading = code.split("\nmessages = ")[0]
    folder = "weights" if run.update.name == "weights" else "adapter"
    assert f'{folder} = "."' in loading
    loading = loading.replace('"./model"', repr(str(run.model.folder)))
    loading = loading.replace('"."', repr(str(run.update)))
    names: dict[str, Any] = {}
    exec(loading, names)
    ids = torch.tensor([[5, 9, 30, 7, 11]])
    with torch.no_grad():
        found = names["model"](input_ids=ids).logits
        if name in (*VIRTUAL, "dora"):
            base = AutoModelForCausalLM.from_pretrained(run.model.folder)
            expected = PeftModel.from_pretrained(base, run.update).eval()(input_ids=ids).logits
            torch.testing.assert_close(found, expected)
        else:
            base = AutoModelForCausalLM.from_pretrained(run.model.folder)
            assert (found - base(input_ids=ids).logits).abs().max() > 0.1


# --- checkpointed


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in BY_DEFAULT else pytest.mark.slow)
        for name in ("dora", "full", "houlsby", "pfeiffer", "prefix", "prompt")
        for kind in ("sft", "dpo")
    ],
)
def test_gradient_checkpointing_is_the_same_update(shared_job, tmp_path, name, kind):
    short = ["evaluation.retention=null", "evaluation.few_shot=0"]
    settings = [*overrides(shared_job, name, kind), *short]
    again = [*settings, "budget.gradient_checkpointing=true"]
    plain, checkpointed = (
        advance(Run(FineTune.load(shared_job, each), tmp_path / str(at)), "train")
        for at, each in enumerate((settings, again))
    )
    logs = plain["training"]["log"], checkpointed["training"]["log"]
    assert len(logs[0]) == len(logs[1]) > 2
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    memory = plain["plan"]["memory"], checkpointed["plan"]["memory"]
    assert memory[1]["peak_bytes"] < memory[0]["peak_bytes"]
    work = plain["plan"]["compute"], checkpointed["plan"]["compute"]
    assert work[1]["training_flops"] > work[0]["training_flops"]


# --- killed and resumed

DIES = """
import json, os, signal, sys
from dying import arrange
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance
contract, runs, overrides = json.loads(sys.argv[1])
arrange("sealed 1")
advance(Run(FineTune.load(contract, overrides), runs), "train")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dora", "full", "houlsby", "projected", "prompt"])
def test_a_killed_run_ends_with_the_same_weights(shared_job, tmp_path, name):
    kind = "dpo" if name in ("full", "prompt") else "sft"
    settings = overrides(shared_job, name, kind)
    alone = Run(FineTune.load(shared_job, settings), tmp_path / "alone")
    expected = advance(alone, "train")
    arguments = json.dumps([str(shared_job), str(tmp_path / "killed"), settings])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = finished([sys.executable, "-W", "ignore", "-c", DIES, arguments], env=environment)
    assert done.returncode == -signal.SIGKILL
    run = Run(FineTune.load(shared_job, settings), tmp_path / "killed")
    checkpoint = next((run.folder.path / "checkpoints").glob("checkpoint-*"))
    tensors = load_file(checkpoint / "trained.safetensors")
    trainable = expected["training"]["trainable"]["live"]
    assert sum(t.numel() for t in tensors.values()) == trainable  # and nothing frozen
    found = advance(run, "train")
    assert found["training"]["resumed_at"] == [3]
    assert found["training"]["log"] == expected["training"]["log"]
    for path in alone.update.iterdir():
        assert hash_file(run.update / path.name) == hash_file(path), path.name


def test_another_method_with_fresh_leaves_no_folder_of_the_one_before(tiny_job):
    runs = tiny_job.parent / "runs"
    short = ["budget.epochs=1", "evaluation.retention=null", "evaluation.few_shot=0"]
    advance(Run(FineTune.load(tiny_job, short), runs), "train")
    assert (runs / "tiny/adapter").is_dir()
    advance(
        Run(FineTune.load(tiny_job, [*short, "space={method: full}"]), runs, fresh=True), "train"
    )
    assert (runs / "tiny/weights/model.safetensors").is_file()
    assert not (runs / "tiny/adapter").exists()


def test_a_plan_of_every_method_needs_no_torch(shared_job, tmp_path):
    code = """
import json, sys
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance
contract, runs, spaces = json.loads(sys.argv[1])
for name, space in spaces.items():
    settings = [f"name={name}", f"space={space}"]
    plan = advance(Run(FineTune.load(contract, settings), runs), "plan")["plan"]
    rows = plan["parameters"]["by_target"]
    assert sum(row["parameters"] for row in rows) == plan["parameters"]["trainable"] > 0, name
assert "torch" not in sys.modules
"""
    arguments = json.dumps([str(shared_job), str(tmp_path), METHODS])
    output_of([sys.executable, "-W", "ignore", "-c", code, arguments])
