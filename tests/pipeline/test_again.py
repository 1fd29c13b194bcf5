"""Running again: what is repeated, what is refused, what is kept."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from processes import started
from tunemath.contract import FineTune
from tunemath.errors import RunError
from tunemath.pipeline import Run, advance

CHAIN = (
    "plan",
    "mask",
    "baselines",
    "train",
    "artefact",
    "evaluate",
    "movement",
    "spectrum",
    "check",
    "report",
)
ADAPTER = "adapter/adapter_model.safetensors"


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Each file's time of change and SHA-256; the lock is no product, the contract is rewritten."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {".lock", "contract.yaml"}
    }


def again(contract: Path, runs: Path, *overrides: str, fresh: bool = False) -> list[str]:
    """Run the same command once more; return the stages that were not skipped."""
    ran: list[str] = []
    advance(
        Run(FineTune.load(contract, overrides), runs, fresh=fresh),
        started=lambda stage, skipped: None if skipped else ran.append(stage),
    )
    return ran


@pytest.mark.parametrize("kind", ["sft_run", "dpo_run"])
def test_nothing_is_repeated(request, kind, shared_job, copied):
    run = request.getfixturevalue(kind)
    runs = copied(run)
    folder = runs / run.folder.path.name
    before = snapshot(folder)
    told: list[tuple[str, bool]] = []
    evidence = advance(
        Run(run.contract, runs), started=lambda stage, skipped: told.append((stage, skipped))
    )
    assert told == [(stage, True) for stage in CHAIN]
    assert snapshot(folder) == before
    assert evidence["checklist"] == run.evidence()["checklist"]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("evaluation.weights={task: 0.5, retention: 0.5}", ["check", "report"]),
        ("evaluation.retention_margin=0.2", ["check", "report"]),
        ("budget.save_every=1", ["report"]),
        ("evaluation.bootstraps=300", ["movement", "check", "report"]),
    ],
)
def test_only_what_depends_on_a_change_is_repeated(sft_run, shared_job, copied, override, stages):
    runs = copied(sft_run)
    adapter = (runs / "tiny" / ADAPTER).stat().st_mtime_ns
    assert again(shared_job, runs, override) == stages
    assert (runs / "tiny" / ADAPTER).stat().st_mtime_ns == adapter
    assert again(shared_job, runs, override) == []


def test_another_contract_does_not_train_over_the_weights(sft_run, shared_job, copied):
    runs = copied(sft_run)
    before = snapshot(runs / "tiny")
    with pytest.raises(RunError, match=r"space\.rank 4 → 8\b.*--fresh.*--set name=") as caught:
        again(shared_job, runs, "space.rank=8")
    assert "alpha" not in str(caught.value)
    assert snapshot(runs / "tiny") == before
    assert FineTune.load(runs / "tiny/contract.yaml").space.rank == 4


def test_fresh_trains_anew(sft_run, shared_job, copied):
    runs = copied(sft_run)
    before = snapshot(runs / "tiny")
    again(shared_job, runs, "space.rank=8", fresh=True)
    after = snapshot(runs / "tiny")
    assert after[ADAPTER] != before[ADAPTER]
    assert (after["items/base.task.jsonl"]) == before["items/base.task.jsonl"]
    assert FineTune.load(runs / "tiny/contract.yaml").space.rank == 8
    assert again(shared_job, runs, "space.rank=8") == []


def test_another_name_keeps_both(sft_run, shared_job, copied):
    runs = copied(sft_run)
    before = snapshot(runs / "tiny")
    assert again(shared_job, runs, "space.rank=8", "name=wider") == list(CHAIN)
    assert snapshot(runs / "tiny") == before
    assert (runs / "wider" / ADAPTER).is_file()


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", [ADAPTER, "adapter/adapter_config.json", "training.json", "probe.safetensors"]
)
def test_trained_weights_that_were_tampered_with_are_refused(sft_run, shared_job, copied, name):
    runs = copied(sft_run)
    flip_last_byte(runs / "tiny" / name)
    with pytest.raises(RunError, match=rf"{name} missing or changed since"):
        again(shared_job, runs)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("plan.json", ["plan"]),
        ("mask.json", ["mask"]),
        ("items/base.task.jsonl", ["baselines"]),
        ("artefact.json", ["artefact"]),
        ("items/tuned.retention.jsonl", ["evaluate"]),
        ("movement.json", ["movement"]),
        ("spectrum.json", ["spectrum"]),
        ("checklist.json", ["check"]),
        ("report.html", ["report"]),
    ],
)
def test_a_deleted_product_is_made_again(sft_run, shared_job, copied, name, stages):
    runs = copied(sft_run)
    before = snapshot(runs / "tiny")[name][1]
    (runs / "tiny" / name).unlink()
    ran = again(shared_job, runs)
    assert ran[: len(stages)] == stages
    assert "train" not in ran
    if name not in {"plan.json", "report.html"}:  # these hold measured seconds
        assert snapshot(runs / "tiny")[name][1] == before


def test_an_edited_product_is_made_again(sft_run, shared_job, copied):
    runs = copied(sft_run)
    path = runs / "tiny/items/base.task.jsonl"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"score": 0', b'"score": 1'))
    assert path.read_bytes() != before
    assert again(shared_job, runs)[0] == "baselines"
    assert path.read_bytes() == before


def test_a_broken_manifest_says_what_to_do(sft_run, shared_job, copied):
    runs = copied(sft_run)
    (runs / "tiny/manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json can't be read.*--fresh"):
        again(shared_job, runs)


def test_fresh_goes_on_where_nothing_can_be_told_of_what_is_there(sft_run, shared_job, copied):
    runs = copied(sft_run)
    (runs / "tiny/manifest.json").write_text('{"stages": 3}')
    run = Run(FineTune.load(shared_job), runs, fresh=True)
    advance(run, "mask")
    assert set(run.folder.manifest()["stages"]) == {"mask"}


def test_changed_training_data_counts_as_another_contract(tiny_job):
    runs = tiny_job.parent / "runs"
    short = ["budget.epochs=1", "evaluation.retention=null", "evaluation.few_shot=0"]
    advance(Run(FineTune.load(tiny_job, short), runs), "train")
    train = tiny_job.parent / "train.jsonl"
    train.write_text("\n".join(train.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(RunError, match="training data has other content"):
        advance(Run(FineTune.load(tiny_job, short), runs), "train")


HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_on_one_run_is_refused_and_a_dead_one_is_not(tiny_job):
    runs = tiny_job.parent / "runs"
    (runs / "tiny").mkdir(parents=True)
    with started([sys.executable, "-c", HOLDER, runs / "tiny/.lock"]) as holder:
        assert holder.line() == "held\n"
        with pytest.raises(RunError, match=r"another process is working on .*tiny"):
            advance(Run(FineTune.load(tiny_job), runs), "baselines")
        assert not (runs / "tiny/contract.yaml").exists()
    evidence = advance(Run(FineTune.load(tiny_job), runs), "plan")
    assert evidence["plan"]["parameters"]["trainable"] > 0
