"""The memory of each stage as the plan foretells it, beside every tensor that the stage made."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tiny_job import make_tiny_job, make_tiny_model
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "peaks.py"
WITHIN = 0.1


@pytest.fixture(scope="module")
def measure() -> Any:
    spec = importlib.util.spec_from_file_location("peaks", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.measure


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job on a model of 6 M parameters, so that small tensors do not count."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("mid")
    make_tiny_model(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=688, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return make_tiny_job(folder)


ANSWERING = [
    "evaluation.batch_size=32",
    "evaluation.max_new_tokens=64",
    "budget.micro_batch_size=1",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "highest"),
    [([], "movement"), (ANSWERING, "baselines"), (["space={method: full}"], "train")],
    ids=["training", "answering", "full"],
)
def test_every_stage_holds_what_was_foretold(measure, job, tmp_path, settings, highest):
    run = Run(FineTune.load(job, [*settings, "budget.epochs=1"]), tmp_path)
    foretold, counted = measure(run)
    for stage, peak in counted.items():
        assert foretold[stage] == pytest.approx(peak, rel=WITHIN), stage
    memory = run.evidence()["plan"]["memory"]
    assert memory["total_bytes"] == pytest.approx(max(counted.values()), rel=WITHIN)
    assert memory["highest"] == highest


def test_whether_a_run_fits_is_judged_by_its_highest_stage(job, tmp_path, monkeypatch):
    from tunemath.budget import this_device
    from tunemath.pipeline import planning

    contract = FineTune.load(job, ANSWERING)
    memory = advance(Run(contract, tmp_path / "a"), "plan")["plan"]["memory"]
    assert memory["peak_bytes"] < memory["total_bytes"] == memory["stages"]["baselines"]
    between = (memory["peak_bytes"] + memory["total_bytes"]) // 2
    small = this_device()._replace(memory=between)
    monkeypatch.setattr(planning, "this_device", lambda: small)
    memory = advance(Run(contract, tmp_path / "b"), "plan")["plan"]["memory"]
    assert not memory["fits"]
    assert memory["peak_bytes"] < between
