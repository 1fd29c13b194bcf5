"""What float32 and bfloat16 cost each objective: its relative error against float64.

    python benchmarks/accuracy.py                                  the table
    python benchmarks/accuracy.py --json FILE
    python benchmarks/accuracy.py --markdown docs/objective/accuracy.md

Inputs are drawn in float64 and rounded to float32 or bfloat16; the reference is the function in
float64 on the rounded inputs. So it is the function's error, not the rounding of what it is given.
The fused functions are held against the pure ones on float64 logits.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from tunemath import objective as o
from tunemath.objective import fused as f
from tunemath.objective import preference as p

TEMPLATE = Path(__file__).resolve().parent.parent / "docs" / "templates" / "accuracy.md.txt"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS, VOCAB = 24, 49_152


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    inputs: Callable[[], SimpleNamespace]
    call: Callable[[Any], Any]
    reference: Callable[[Any], Any] | None = None


def tensors(**arrays: Any) -> SimpleNamespace:
    return SimpleNamespace(**{name: torch.as_tensor(array) for name, array in arrays.items()})


def drawn_logits(rng: np.random.Generator, rows: int, vocab: int) -> tuple[Any, Any]:
    """Logits of N(0, 3²) with a target whose NLL has an exponential's quantiles, of mean 2."""
    z, y = 3 * rng.standard_normal((rows, vocab)), rng.integers(vocab, size=rows)
    at = np.arange(rows)
    z[at, y] = -np.inf
    nll = -2 * np.log((at + 0.5) / rows)
    # p / (1 − p) times the others' sum.
    z[at, y] = np.log(np.exp(z).sum(1)) - nll - np.log(-np.expm1(-nll))
    return z, y


@cache
def logits() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    z, y = drawn_logits(rng, ROWS, VOCAB)
    return tensors(z=z, y=y, base=z + 0.3 * rng.standard_normal(z.shape))


@cache
def close() -> SimpleNamespace:
    x, rng = logits(), np.random.default_rng(1)
    return tensors(z=x.z, base=x.z + 3e-4 * torch.as_tensor(rng.standard_normal(x.z.shape)))


@cache
def distributions() -> SimpleNamespace:
    x = logits()
    return tensors(a=torch.log_softmax(x.z, -1), b=torch.log_softmax(x.base, -1))


@cache
def tokens() -> SimpleNamespace:
    """Log-probabilities of answers of 10 to 300 tokens, some 2 nats each."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(10, 301, 256)
    mask = np.arange(300) < lengths[:, None]
    a = -rng.exponential(2.0, mask.shape)
    b = a + 0.1 * rng.standard_normal(mask.shape)
    share = np.minimum(lengths, lengths[::-1])
    total = (-a * mask).sum(1)
    return tensors(a=a, b=np.minimum(b, -1e-6), mask=mask, share=share, nats=total / lengths,
                   total=total, n_bytes=4 * lengths, s=-2 * rng.random(mask.shape))  # fmt: skip


@cache
def pairs() -> SimpleNamespace:
    """Log-probabilities of pairs of answers of 10 to 300 tokens, of policy and reference."""
    rng = np.random.default_rng(3)
    n_c, n_r = rng.integers(10, 301, (2, 2000))
    rc, rr = (-n * (1.0 + 0.3 * rng.random(2000)) for n in (n_c, n_r))
    pc, pr = (r + 0.3 * np.sqrt(n) * rng.standard_normal(2000) for r, n in ((rc, n_c), (rr, n_r)))
    good = rng.random(2000) < 0.5
    return tensors(
        pc=pc, pr=pr, rc=rc, rr=rr, n_c=n_c, n_r=n_r, good=good, u=pc - rc, m=pc - rc - pr + rr
    )


@cache
def states() -> SimpleNamespace:
    """Hidden states of width 64 and a head of 8,192 tokens, some 3 nats a target."""
    rng = np.random.default_rng(4)
    h, w = rng.standard_normal((256, 64)), 0.62 * rng.standard_normal((8192, 64))
    # The Gumbel maximum is a sample of the softmax.
    y = (h @ w.T + rng.gumbel(size=(256, 8192))).argmax(1)
    return tensors(h=h, w=w, y=y, base=h + 0.05 * rng.standard_normal(h.shape))


def four(loss: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    return lambda x: loss(x.pc, x.pr, x.rc, x.rr, **options)


def lengths(x: Any) -> dict[str, Any]:
    return {"chosen_length": x.n_c, "rejected_length": x.n_r}


SMOOTHED = {"label_smoothing": 0.1, "z_loss": 1e-4}

CASES = (
    Case("adjusted_logits", logits, lambda x: o.adjusted_logits(x.z, soft_cap=30.0)),
    Case("log_normaliser", logits, lambda x: o.log_normaliser(x.z)),
    Case("token_log_probs", logits, lambda x: o.token_log_probs(x.z, x.y)),
    Case("entropy", logits, lambda x: o.entropy(x.z)),
    Case("log_sum_square_probs", logits, lambda x: o.log_sum_square_probs(x.z)),
    Case("sequence_log_prob", tokens, lambda x: o.sequence_log_prob(x.a, x.mask)),
    Case("mean_log_prob", tokens, lambda x: o.mean_log_prob(x.a, x.mask)),
    Case("perplexity", tokens, lambda x: o.perplexity(x.nats)),
    Case("bits_per_byte", tokens, lambda x: o.bits_per_byte(x.total, x.n_bytes)),
    Case("cross_entropy", logits, lambda x: o.cross_entropy(x.z, x.y, **SMOOTHED)),
    Case("dft_loss", logits, lambda x: o.dft_loss(x.z, x.y)),
    Case("masked_sum", tokens, lambda x: o.masked_sum(x.a, x.mask)[0]),
    Case("masked_mean", tokens, lambda x: o.masked_mean(x.a, x.mask)),
    Case("sequence_sum", tokens, lambda x: o.sequence_sum(x.a, x.mask)[0]),
    Case("pooled_mean", tokens, lambda x: o.pooled_mean((v, 100) for v in x.total)),
    Case("kl_divergence", distributions, lambda x: o.kl_divergence(x.a, x.b, log=True)),
    Case("kl_from_logits", logits, lambda x: o.kl_from_logits(x.z, x.base)),
    Case("kl_from_logits, KL ≈ 4e-8", close, lambda x: o.kl_from_logits(x.z, x.base)),
    Case("skewed_kl", distributions, lambda x: o.skewed_kl(x.a, x.b, 0.1, log=True)),
    Case("js_divergence", distributions, lambda x: o.js_divergence(x.a, x.b, log=True)),
    Case("alpha_divergence", distributions, lambda x: o.alpha_divergence(x.a, x.b, 0.5, log=True)),
    Case("renyi_divergence", distributions, lambda x: o.renyi_divergence(x.a, x.b, 2, log=True)),
    Case("total_variation", distributions, lambda x: o.total_variation(x.a, x.b, log=True)),
    Case("kl_k1", tokens, lambda x: o.kl_k1(x.a, x.b)),
    Case("kl_k2", tokens, lambda x: o.kl_k2(x.a, x.b)),
    Case("kl_k3", tokens, lambda x: o.kl_k3(x.a, x.b)),
    Case("distillation_loss", logits, lambda x: o.distillation_loss(x.z, x.base, temperature=2.0)),
    Case("dpo_margin", pairs, four(p.dpo_margin)),
    Case("implicit_reward", pairs, lambda x: p.implicit_reward(x.pc, x.rc)),
    Case("preference_accuracy", pairs, lambda x: p.preference_accuracy(x.m)),
    Case("gradient_weight", pairs, lambda x: p.gradient_weight(x.m)),
    Case("divergence_score", pairs, lambda x: p.divergence_score(x.u, "js_divergence")),
    Case("score_margin", pairs, lambda x: p.score_margin(x.pc, x.pr, x.rc, x.rr, **lengths(x))),
    Case("dpo_loss", pairs, four(p.dpo_loss)),
    Case("robust_loss", pairs, four(p.robust_loss)),
    Case("hinge_loss", pairs, four(p.hinge_loss)),
    Case("ipo_loss", pairs, four(p.ipo_loss)),
    Case("exo_pair_loss", pairs, four(p.exo_pair_loss)),
    Case("discopop_loss", pairs, four(p.discopop_loss)),
    Case("sigmoid_norm_loss", pairs, lambda x: four(p.sigmoid_norm_loss, beta=5, **lengths(x))(x)),
    Case("nca_pair_loss", pairs, four(p.nca_pair_loss)),
    Case("bco_pair_loss", pairs, four(p.bco_pair_loss)),
    Case("sppo_hard_loss", pairs, four(p.sppo_hard_loss)),
    Case("apo_zero_loss", pairs, four(p.apo_zero_loss)),
    Case("apo_down_loss", pairs, four(p.apo_down_loss)),
    Case("aot_loss", pairs, four(p.aot_loss)),
    Case("aot_unpaired_loss", pairs, four(p.aot_unpaired_loss)),
    Case("wpo_weights", tokens, lambda x: p.wpo_weights(x.a, x.s, x.mask)),
    Case("ld_log_prob", tokens, lambda x: p.ld_log_prob(x.a, x.mask, x.share, 0.5)),
    Case("chosen_nll", pairs, lambda x: p.chosen_nll(x.pc)),
    Case("cpo_loss", pairs, lambda x: p.cpo_loss(x.pc, x.pr)),
    Case("tpo_loss", pairs, lambda x: p.tpo_loss(x.pc, x.pr)),
    Case("simpo_loss", pairs, lambda x: p.simpo_loss(x.pc, x.pr, x.n_c, x.n_r)),
    Case("alphapo_loss", pairs, lambda x: p.alphapo_loss(x.pc, x.pr, x.n_c, x.n_r)),
    Case("tpo_l_loss", pairs, lambda x: p.tpo_l_loss(x.pc, x.pr, x.n_c, x.n_r)),
    Case("odds_ratio_loss", pairs, lambda x: p.odds_ratio_loss(x.pc, x.pr, x.n_c, x.n_r)),
    Case("kto_reference_point", pairs, lambda x: p.kto_reference_point(x.rr, x.pr)),
    Case("kto_loss", pairs, lambda x: p.kto_loss(x.pc, x.rc, x.good, 0.5)),
    Case("apo_zero_unpaired_loss", pairs, lambda x: p.apo_zero_unpaired_loss(x.pc, x.rc, x.good)),
    Case("bco_shift", pairs, lambda x: p.bco_shift(x.pc, x.rc, x.good)),
    Case("bco_loss", pairs, lambda x: p.bco_loss(x.pc, x.rc, x.good, 0.5)),
    Case("linear_cross_entropy", states, lambda x: f.linear_cross_entropy(x.h, x.w, x.y)[0],
         lambda x: o.cross_entropy(x.h @ x.w.T, x.y).sum()),
    Case("linear_token_log_probs", states, lambda x: f.linear_token_log_probs(x.h, x.w, x.y),
         lambda x: o.token_log_probs(x.h @ x.w.T, x.y)),
    Case("linear_entropy", states, lambda x: f.linear_entropy(x.h, x.w),
         lambda x: o.entropy(x.h @ x.w.T)),
    Case("linear_kl", states, lambda x: f.linear_kl(x.h, x.base, x.w),
         lambda x: o.kl_from_logits(x.h @ x.w.T, x.base @ x.w.T)),
)  # fmt: skip


def rounded(x: SimpleNamespace, dtype: torch.dtype) -> SimpleNamespace:
    return SimpleNamespace(
        **{name: t.to(dtype) if t.is_floating_point() else t for name, t in vars(x).items()}
    )


def errors(case: Case, dtype: torch.dtype) -> list[float]:
    """Return the relative error of every value that the case gives."""
    given = rounded(case.inputs(), dtype)
    got = torch.as_tensor(case.call(given)).double().reshape(-1)
    # Rounded log-probabilities no longer sum to one as float64 ones do.
    with patch("tunemath.objective.divergence._tolerance", lambda *_: math.inf):
        exact = (case.reference or case.call)(rounded(given, torch.float64))
    wanted = torch.as_tensor(exact).reshape(-1)
    off = (got - wanted).abs()
    return torch.where(off == 0, 0.0, off / wanted.abs()).tolist()


def measure(case: Case) -> dict[str, dict[str, float]]:
    found = {name: errors(case, dtype) for name, dtype in DTYPES.items()}
    return {
        name: {"median": statistics.median(off), "worst": max(off)} for name, off in found.items()
    }


def table(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| function | float32, median | worst | bfloat16, median | worst |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, by_dtype in measured.items():
        function, _, note = name.partition(", ")
        cells = [f"`{function}`" + (f", {note}" if note else "")]
        cells += [shown(one[kind]) for one in by_dtype.values() for kind in ("median", "worst")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def main() -> int:
    parser = argparse.ArgumentParser(description="The objectives' relative errors.")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--markdown", type=Path, help="the page of the docs")
    options = parser.parse_args()
    measured = {case.name: measure(case) for case in CASES}
    print(table(measured))
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        page = TEMPLATE.read_text(encoding="utf-8").format(table=table(measured))
        options.markdown.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
