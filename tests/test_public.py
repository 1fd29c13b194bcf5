"""The names, signatures and lightness that users may rely on."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest

import tunemath
from processes import output_of
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance


def test_the_public_names_are_pinned():
    assert tunemath.__all__ == [
        "Checklist",
        "FineTune",
        "Run",
        "Scorecard",
        "TunemathError",
        "__version__",
        "adapter_parameter_count",
        "advance",
        "dpo_loss",
        "kl_divergence",
        "linear_cross_entropy",
        "linear_entropy",
        "linear_kl",
        "linear_token_log_probs",
        "lora_delta",
        "lora_parameter_count",
        "low_rank",
        "masked_mean",
        "prefix_parameter_count",
    ]
    for name in tunemath.__all__:
        assert getattr(tunemath, name) is not None
    assert dir(tunemath) == sorted(tunemath.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tunemath' has no attribute 'nothing'"):
        tunemath.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("masked_mean", "(values, mask, weights=None)"),
        ("kl_divergence", "(p, q, *, log=False)"),
        ("lora_parameter_count", "(d_in, d_out, rank)"),
        ("lora_delta", "(A, B, scale=1.0)"),
        ("low_rank", "(matrix, rank, *, exact=None, passes=4, seed=0)"),
        ("adapter_parameter_count", "(d_model, bottleneck, bias=False)"),
        ("prefix_parameter_count", "(layers, prefix_length, kv_heads, head_dim)"),
        (
            "dpo_loss",
            "(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1, *, "
            "label_smoothing=0.0, divergence='reverse_kl', alpha=None)",
        ),
    ],
)
def test_the_exercises_signatures_are_pinned(name, parameters):
    signature = inspect.signature(getattr(tunemath, name))
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == parameters


def test_the_exercises_records():
    assert tunemath.Scorecard(task=0.80, retention=0.72, weights=(0.7, 0.3)).score == pytest.approx(
        0.776
    )
    assert [check.id for check in tunemath.Checklist().items[:4]] == [
        "answer-mask",
        "trainable-count",
        "baselines-same-items",
        "retention-measured",
    ]
    low = tunemath.low_rank([[3.0, 0.0], [0.0, 1.0]], 1)
    for field in ("left", "right", "approximation", "relative_error"):
        assert hasattr(low, field)


HEAVY = ("torch", "transformers", "peft", "accelerate", "scipy", "matplotlib", "pandas")


def modules_after(code: str, *arguments: str) -> set[str]:
    """Run code in a process of its own; return the heavy modules that it loaded."""
    report = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    out = output_of([sys.executable, "-c", code + report, *arguments])
    return set(json.loads(out.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    light = "import sys, tunemath\nassert 'numpy' not in sys.modules"
    assert modules_after(light) == set()


def test_the_test_above_can_fail():
    assert "scipy" in modules_after("import tunemath, scipy")
    assert "torch" in modules_after("import tunemath, tunemath.runner.prefix")


PLAN = "import sys\nfrom tunemath.cli import main\ntry:\n    main(sys.argv[1:])\n"
PLAN += "except SystemExit as end:\n    assert not end.code, end.code"


def test_plan_and_mask_load_nothing_heavy(tiny_job):
    runs = str(tiny_job.parent / "runs")
    assert modules_after(PLAN, "plan", str(tiny_job), "--runs", runs, "--json") == set()
    assert modules_after(PLAN, "mask", str(tiny_job), "--runs", runs, "--json") == set()
    assert (tiny_job.parent / "runs/tiny/mask.json").is_file()


def test_help_and_schema_load_nothing_heavy():
    for arguments in (["--help"], ["run", "--help"], ["schema"]):
        assert modules_after(PLAN, *arguments) == set()


def test_the_road_from_python(tiny_job: Path):
    """What the README shows: a contract, a run, its evidence."""
    contract = tunemath.FineTune.load(tiny_job, ["space.rank=2"])
    assert tunemath.FineTune is FineTune
    assert tunemath.Run is Run
    assert tunemath.advance is advance
    evidence = tunemath.advance(tunemath.Run(contract, tiny_job.parent / "runs"), "plan")
    # r (d_in + d_out) by hand: q 64→64, k and v 64→32, o 64→64, gate and up 64→128, down 128→64
    per_layer = 2 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    assert evidence["plan"]["parameters"]["trainable"] == 2 * per_layer
