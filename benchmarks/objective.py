"""The fused objectives beside their peers: C1 to C5, as ratios in one run.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/objective.py                     every comparison, some 40 minutes
    python benchmarks/objective.py C1 C3-512           some of them
    python benchmarks/objective.py --json benchmarks/results/objective.json \\
        --markdown docs/objective/benchmarks.md        and the docs' page

Every comparison first holds each contender's loss and gradient against float64, then times all of
them in turn (each round starts with another), with the bare matrix products of the rows that count
as the floor. Extra memory is the peak of resident memory above the level before the call, each
contender in a process of its own; so is the first call, compilation included. Peers run at their
defaults and at their best: rows compacted by the caller, several chunk sizes.

C1  loss and gradient of SFT, frozen head          C4  the same, head stored in bfloat16
C2  the same, trained head                         C5  KL(tuned ‖ base), one head and two
C3  log-probabilities with gradient, frozen head

C4-avx2 is C4 with a smaller head in a process that is told to leave AVX-512 alone, as on the many
CPUs that have no bfloat16 product of their own. C2-large-held is C2-large in a process that keeps
what it frees: a head's gradient of 545 MB is new in every step, and a virtual machine that gives
freed memory back to its host has to ask for it again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from heads import (
    Batch,
    Shape,
    Two,
    batch,
    frozen,
    kl_contenders,
    log_prob_contenders,
    mean_losses,
    products,
    two_models,
    with_gradient,
)
from measure import (
    Contender,
    Row,
    in_its_own_process,
    interleaved,
    machine,
    peak_extra,
    record,
    require_quiet,
    rows,
    table,
)

TEMPLATE = Path(__file__).resolve().parent.parent / "docs" / "templates" / "benchmarks.md.txt"

# How far a float32 result may lie from float64, relative; bfloat16 has 8 bits.
BOUND = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
KL_SIZES = {"1e-2": 0.14, "1e-4": 1.4e-2, "1e-6": 1.4e-3, "1e-8": 1.4e-4}


@dataclass
class Case:
    """One table: contenders over one shape, the first being ours, one of them the floor."""

    key: str
    title: str
    contenders: list[Contender]
    reference: Callable[[], tuple[torch.Tensor, ...]] | None
    bound: float = 1e-4
    memory: tuple[str, ...] | None = None
    """Whose extra memory and first call are measured; None means all."""


def losses64(b: Batch, trained: bool, upstream: torch.Tensor | None = None) -> Any:
    """Loss and gradients in float64, some rows at a time."""
    some = b.mask.nonzero()[:, 0]
    W = b.W.double()
    weight = torch.full((len(some),), 1 / len(some)) if upstream is None else -upstream
    total, dh = 0.0, torch.zeros(b.h.shape, dtype=torch.float64)
    dW = torch.zeros_like(W) if trained else None
    for part in some.split(128):
        w = weight[torch.searchsorted(some, part)].double()
        h, y = b.h[part].double(), b.y[part]
        z = h @ W.T
        log_z = z.logsumexp(1)
        total += float(((log_z - z.gather(1, y[:, None])[:, 0]) * w).sum())
        z.sub_(log_z[:, None]).exp_()
        z[torch.arange(len(part)), y] -= 1.0
        z.mul_(w[:, None])
        dh[part] = z @ W
        if dW is not None:
            dW += z.T @ h
    return torch.tensor(total), dh, dW


def errors(got: tuple[Any, ...], wanted: tuple[Any, ...]) -> dict[str, float]:
    names = ("loss", "d hidden", "d head")
    return {
        name: float((g.double() - w).norm() / w.norm())
        for name, g, w in zip(names, got, wanted, strict=False)
        if w is not None and g is not None
    }


def sft_case(
    key: str,
    shape: Shape,
    trained: bool,
    only: tuple[str, ...] | None = None,
    memory: tuple[str, ...] | None = None,
) -> Case:
    b = batch(shape)
    kind = "trained" if trained else "frozen"
    contenders = [
        Contender(
            name, products(b, trained) if name == "floor" else with_gradient(f, b, trained), s
        )
        for name, (s, f) in mean_losses(b).items()
        if only is None or name in only
    ]
    title = (
        f"{key}: SFT, {kind} head, N {shape.N:,}, D {shape.D:,}, V {shape.V:,}, "
        f"{shape.share:.0%} supervised, {str(shape.dtype).removeprefix('torch.')}"
    )
    gated = lambda: losses64(b, trained)  # noqa: E731
    return Case(key, title, contenders, gated, BOUND[shape.dtype], memory)


def log_prob_case(key: str, shape: Shape, leave: tuple[str, ...] = ()) -> Case:
    b = batch(shape)
    n = int(b.mask.sum())
    upstream = torch.rand(n, generator=torch.Generator().manual_seed(5)) + 0.5
    contenders = [
        Contender(name, with_gradient(f, b, False), s)
        for name, (s, f) in log_prob_contenders(b, upstream).items()
        if name not in leave
    ]
    contenders.append(Contender("floor", products(b, False), f"{n} rows"))
    title = (
        f"{key}: log-probabilities with gradient, frozen head, {n} of {shape.N:,} rows, "
        f"D {shape.D:,}, V {shape.V:,}, float32"
    )
    return Case(key, title, contenders, lambda: losses64(b, False, upstream), memory=())


def bfloat16_case(key: str, shape: Shape, native: bool = True) -> Case:
    """Our bfloat16 products, or float32 ones without instructions for them, beside the peers'.

    Without them a product of bfloat16 arrays is some 70 times slower than a float32 one, so that
    only the contenders that make float32 of it are timed.
    """
    case = sft_case(key, shape, False, only=HALF if native else HALF[:2])
    b = batch(shape)
    part = b.W[: 1 << 14].float()
    full = Batch(b.h.float(), part, b.y, b.mask)
    half = mean_losses(b)
    for name in ("TRL", "torch chunked, float32"):
        setting, loss = half[name]
        case.contenders.append(Contender(name, with_gradient(loss, b, False), setting))
    if native:
        case.contenders.append(Contender("floor", products(b, False), "bfloat16 products"))
    case.contenders.append(
        Contender("float32 floor" if native else "floor",
                  times(products(full, False), len(b.W) / len(part)), "float32 products")
    )  # fmt: skip
    return case


def times(run: Callable[[], Any], factor: float) -> Callable[[], Any]:
    """Repeat work so that it is that of the whole, to within a repetition."""

    def repeated() -> None:
        for _ in range(round(factor)):
            run()

    return repeated


def kl64(t: Two, part: int = 64) -> tuple[torch.Tensor, ...]:
    """KL in float64 without cancellation: d is formed from the difference of the states."""
    W, base_W = t.W.double(), (t.W if t.base_W is None else t.base_W).double()
    values = []
    for h, base in zip(t.tuned.double().split(part), t.base.double().split(part), strict=True):
        z = h @ W.T
        d = (base - h) @ base_W.T
        if t.base_W is not None:
            d += h @ (base_W - W).T
        p = z.softmax(-1)
        u = d - (p * d).sum(-1, keepdim=True)
        values.append(torch.log1p((p * (torch.expm1(u) - u)).sum(-1)))
    return (torch.cat(values),)


def kl_case(key: str, shape: Shape, heads: bool) -> Case:
    t = two_models(shape, KL_SIZES["1e-2"], heads=heads)
    contenders = [
        Contender(name, frozen(lambda run=run: (run().mean(),)), s)
        for name, (s, run) in kl_contenders(t).items()
    ]
    z = torch.empty(shape.N, shape.V)

    def floor() -> None:
        torch.mm(t.tuned, t.W.t(), out=z)
        torch.mm(t.base, (t.W if t.base_W is None else t.base_W).t(), out=z)

    contenders.append(Contender("floor", floor, "two products"))
    which = "two heads" if heads else "one head"
    title = (
        f"{key}: KL(tuned ‖ base), {which}, N {shape.N:,}, D {shape.D:,}, V {shape.V:,}, float32"
    )
    return Case(key, title, contenders, lambda: (kl64(t)[0].mean(),), bound=1e-2)


def kl_accuracy(shape: Shape) -> str:
    """Return a table of the median relative error a token, by the size of the movement."""
    lines = [
        f"## C5: relative error of KL a token, median (worst), N {shape.N}, V {shape.V:,}",
        "",
        "| mean KL | heads | tunemath | F.kl_div of log-softmaxes | TRL |",
        "|---|---|---|---|---|",
    ]
    for heads in (False, True):
        for size in KL_SIZES.values():
            t = two_models(shape, size, heads=heads)
            (exact,) = kl64(t)
            cells = []
            for name in ("tunemath", "F.kl_div", "TRL"):
                value = frozen(kl_contenders(t)[name][1])().double()
                error = (value - exact).abs() / exact
                negative = f", {int((value < 0).sum())} negative" if bool((value < 0).any()) else ""
                cells.append(f"{float(error.median()):.1e} ({float(error.max()):.1e}){negative}")
            which = "two" if heads else "one"
            lines.append(f"| {float(exact.mean()):.1e} | {which} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


SMALL, LARGE = 49_152, 151_936
OURS, BEST, CUT = "tunemath", "torch chunked, 512 rows", "cut-cross-entropy"
COMPACT = (OURS, BEST, CUT, "naive compacted", "floor")
LEADING = (OURS, "torch chunked", BEST, "TRL", "naive", CUT, "floor")
HALF = (OURS, "torch chunked", "torch chunked, 256 rows", BEST, "naive", CUT)


def share_case(percent: int) -> Case:
    """Peers that multiply every row take as long at any share, so only the others are timed."""
    shape = Shape(2048, 896, SMALL, percent / 100)
    return sft_case(f"C1-{percent}", shape, False, COMPACT, memory=())


CASES: dict[str, Callable[[], Case]] = {
    "C1": lambda: sft_case("C1", Shape(2048, 896, SMALL, 0.3), False),
    "C1-1024": lambda: sft_case("C1-1024", Shape(1024, 896, SMALL, 0.3), False, memory=()),
    "C2": lambda: sft_case("C2", Shape(2048, 896, SMALL, 0.3), True, memory=(OURS, CUT)),
    "C3-512": lambda: log_prob_case("C3-512", Shape(1280, 896, SMALL, 0.4)),
    "C4": lambda: bfloat16_case("C4", Shape(512, 2048, 128_256, 1.0, torch.bfloat16)),
    "C4-avx2": lambda: bfloat16_case(
        "C4-avx2", Shape(512, 2048, 128_256, 1.0, torch.bfloat16), native=False
    ),
    "C5": lambda: kl_case("C5", Shape(2048, 896, LARGE, 1.0), heads=False),
    "C1-large": lambda: sft_case(
        "C1-large", Shape(2048, 896, LARGE, 0.3), False, LEADING, (OURS, CUT)
    ),
    "C2-large": lambda: sft_case(
        "C2-large", Shape(2048, 896, LARGE, 0.3), True, COMPACT, (OURS, CUT)
    ),
    "C2-large-held": lambda: sft_case(
        "C2-large-held", Shape(2048, 896, LARGE, 0.3), True, COMPACT, ()
    ),
    "C3-2048": lambda: log_prob_case(
        "C3-2048", Shape(5120, 896, SMALL, 0.4), leave=("TRL", "torch none")
    ),
    "C5-two": lambda: kl_case("C5-two", Shape(2048, 896, LARGE, 1.0), heads=True),
    "C1-large-1024": lambda: sft_case(
        "C1-large-1024", Shape(1024, 896, LARGE, 0.3), False, LEADING, ()
    ),
    **{f"C1-{p}": (lambda p=p: share_case(p)) for p in (10, 60, 100)},
}


# Settings that libraries read once, when they are loaded: such a case has a process of its own.
SETTINGS = {
    "C4-avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    # The process keeps what it frees, as the floor keeps what it writes to.
    "C2-large-held": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 35)},
}


def gate(case: Case) -> dict[str, dict[str, float]]:
    """Hold every contender against float64; a contender that is wrong is not timed."""
    if case.reference is None:
        return {}
    wanted = case.reference()
    found = {}
    for c in list(case.contenders):
        if "floor" in c.name:
            continue
        found[c.name] = errors(c.run(), wanted)  # the first call, compilation included
        worst = max(found[c.name].values())
        if not worst <= case.bound:
            print(f"{c.name}: off by {worst:.1e} relative, above {case.bound:g}: left out")
            case.contenders.remove(c)
    return found


def measure(case: Case, repetitions: int, memory: bool) -> list[Row]:
    found = gate(case)
    seconds = interleaved(case.contenders, repetitions, warm=set(found))
    measured = rows(case.contenders, seconds)
    for row in measured:
        row.errors = found.get(row.name, {})
        wanted = case.memory is None or row.name in case.memory
        if memory and wanted and "floor" not in row.name:
            one = in_its_own_process(__file__, "--one", case.key, row.name)
            row.extra_mb, row.first_call_s = one["extra_mb"], one["first_call_s"]
    return measured


def one(key: str, name: str) -> None:
    """Print the extra memory and first call of one contender, which this process is for."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        case = CASES[key]()
        (c,) = [c for c in case.contenders if c.name == name]
        F.linear(torch.randn(64, 64), torch.randn(64, 64))
        first = _seconds(c.run)
        extra, _ = peak_extra(c.run)
    print(json.dumps({"extra_mb": extra, "first_call_s": first}))


def _seconds(run: Callable[[], Any]) -> float:
    import time

    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; default: all")
    parser.add_argument("--reps", type=int, default=7, help="timed repetitions (7)")
    parser.add_argument(
        "--json", type=Path, help="write the figures here; cases that it has already are kept"
    )
    parser.add_argument("--markdown", type=Path, help="write the docs' page of all of them")
    parser.add_argument("--no-memory", action="store_true", help="leave memory and first call out")
    parser.add_argument("--anyway", action="store_true", help="time on a machine that is not idle")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    unknown = [key for key in arguments.cases if key not in CASES]
    if unknown:
        parser.error(f"no case {' '.join(unknown)}; expected some of {', '.join(CASES)}")
    chosen = arguments.cases or list(CASES)
    figures = known_figures(arguments.json)
    print(json.dumps(figures["machine"]))
    for key in chosen:
        if not arguments.anyway:
            require_quiet()
        measured = with_settings(key, arguments) or measure_case(
            key, arguments.reps, not arguments.no_memory
        )
        print("\n" + "\n\n".join(tables(measured)), flush=True)
        figures["cases"][key] = measured
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
        if arguments.markdown:
            arguments.markdown.write_text(page(figures))


def known_figures(file: Path | None) -> dict[str, Any]:
    """Return the figures of a file if they are this machine's, so that a case can be repeated."""
    told = machine()
    if file is not None and file.is_file():
        figures = json.loads(file.read_text())
        if figures["machine"] == told:
            return figures
    return {"machine": told, "cases": {}}


def with_settings(key: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Measure a case in a process with its settings; None where it has none or they hold here."""
    settings = SETTINGS.get(key, {})
    if all(os.environ.get(name) == value for name, value in settings.items()):
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, __file__, key, "--json", str(file)]
        command += ["--reps", str(arguments.reps)]
        command += ["--anyway"] * arguments.anyway + ["--no-memory"] * arguments.no_memory
        subprocess.run(command, env={**os.environ, **settings}, check=True, stdout=subprocess.PIPE)
        measured = json.loads(file.read_text())["cases"][key]
    told = " ".join(f"{name}={value}" for name, value in settings.items())
    return {**measured, "title": f"{measured['title']}, {told}"}


def measure_case(key: str, repetitions: int, memory: bool) -> dict[str, Any]:
    case = CASES[key]()
    found: dict[str, Any] = {"title": case.title}
    found["rows"] = record(measure(case, repetitions, memory))
    if key == "C5":
        found["accuracy"] = kl_accuracy(Shape(256, 896, SMALL, 1.0))
    return found


def tables(measured: dict[str, Any]) -> list[str]:
    """Return a case's tables in Markdown."""
    parts = [table(measured["title"], [Row(**row) for row in measured["rows"]])]
    return [*parts, measured["accuracy"]] if "accuracy" in measured else parts


def page(figures: dict[str, Any]) -> str:
    """Return the docs' page: what is compared and how, the machine, the tables."""
    told, cases = figures["machine"], figures["cases"]
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    return TEMPLATE.read_text().format(
        machine=f"{told['processor']}, {told['cores']} cores, {told['capability']}, "
        f"Python {told['python']}; {versions}.",
        tables="\n\n".join(part for key in CASES if key in cases for part in tables(cases[key])),
    )


if __name__ == "__main__":
    sys.exit(main())
