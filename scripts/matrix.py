"""The default tests under other instruction sets, numbers of threads, and on a busy machine.

What a processor computes depends on the kernels that its libraries choose: the order of a sum,
fused products, the width of a vector. The variables below make the libraries choose others, as far
as this processor has them. Each run is one line of a table; what the processor or the libraries
lack is reported as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
EXAMPLES = """examples:
  make test-matrix                                       everything: some two hours
  python scripts/matrix.py --only MKL_CBWR=AVX2          one setting, with 1 and with 2 threads
  python scripts/matrix.py --only busy                   while a loop holds each core
  python scripts/matrix.py --numeric --threads 1         the tests that compare numbers
  python scripts/matrix.py --sample 100 --seed 7         100 of them, others in each run
"""
_PROBE = """
import hashlib, json
import numpy as np, torch
a = np.random.default_rng(0).standard_normal((257, 513), dtype=np.float32)
t, square = torch.tensor(a), torch.tensor(a[:, :257])
results = {
    "float32 products": t @ t.T, "float64 products": t.double() @ t.double().T,
    "singular values": torch.linalg.svdvals(t), "bfloat16 products": (t.bfloat16() @ t.bfloat16().T).float(),
    "exponentials": torch.logsumexp(t, 1), "activations": torch.nn.functional.gelu(t),
    "NumPy's products": torch.tensor(a @ a.T),
}
print(json.dumps({
    "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
    "mkl": torch.backends.mkl.is_available(), "onednn": torch.backends.mkldnn.is_available(),
    "torch": torch.__version__,
    "results": {name: hashlib.sha256(r.numpy().tobytes()).hexdigest() for name, r in results.items()},
}))
"""  # noqa: E501


@dataclass(frozen=True)
class Variation:
    """What one run changes, and what that needs."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    library: str = ""
    """"mkl" or "onednn": without it the variable is nobody's."""
    instructions: str = ""
    """The capability that the processor must have, as torch names it."""
    busy: bool = False


def _set(text: str, library: str, instructions: str = "") -> Variation:
    name, _, value = text.partition("=")
    return Variation(text, {name: value}, library, instructions)


VARIATIONS = (
    Variation("default"),
    _set("MKL_CBWR=COMPATIBLE", "mkl"),
    _set("MKL_CBWR=AVX2", "mkl", "AVX2"),
    _set("MKL_CBWR=AVX512", "mkl", "AVX512"),
    _set("MKL_ENABLE_INSTRUCTIONS=AVX2", "mkl", "AVX2"),
    _set("ONEDNN_MAX_CPU_ISA=AVX2", "onednn", "AVX2"),
    Variation("busy", busy=True),
)
THREADS = (1, 2)
_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


@dataclass(frozen=True)
class Row:
    """What came of one run."""

    variation: str
    threads: int
    result: str
    seconds: float | None = None
    about: str = ""
    failed: bool = False

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.0f}"
        return f"| {self.variation} | {self.threads} | {self.result} | {seconds} | {self.about} |"


HEAD = "| variation | threads | result | seconds | what differs from the default here |\n|---|---|---|---|---|"  # noqa: E501


def environment(variation: Variation, threads: int) -> dict[str, str]:
    """Return the variables of a run: no setting of another, and the threads of every library."""
    others = {name for each in VARIATIONS for name in each.environment}
    own = {name: value for name, value in os.environ.items() if name not in others}
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **own, **dict.fromkeys(counts, str(threads)), **variation.environment,
        "TOKENIZERS_PARALLELISM": "false", "MKL_DYNAMIC": "FALSE", "OMP_DYNAMIC": "FALSE",
        "OMP_WAIT_POLICY": "PASSIVE",  # more threads than cores would wait for each other spinning
    }  # fmt: skip


def probe(variation: Variation, threads: int) -> dict:
    """Return what the libraries say of themselves under a variation, and digests of results."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROBE],
        env=environment(variation, threads), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"torch cannot be tried under {variation.name}: {done.stderr}")
    return json.loads(done.stdout)


def why_not(variation: Variation, has: Mapping) -> str:
    """Return why a variation can't be run on this machine; empty where it can."""
    if variation.library and not has[variation.library]:
        return f"this torch has no {variation.library}"
    known = {name: place for place, name in enumerate(_CAPABILITIES)}
    if variation.instructions and has["capability"] not in known:
        return (
            f"whether this processor ({has['capability']}) has {variation.instructions} is unknown"
        )
    if variation.instructions and known[has["capability"]] < known[variation.instructions]:
        return f"this processor has no {variation.instructions}"
    return ""


def differences(found: Mapping, plain: Mapping) -> str:
    """Say in which computations a variation gives other bits than the default with one thread."""
    names = [name for name, digest in found["results"].items() if plain["results"][name] != digest]
    return ", ".join(names) or "none of the seven computations tried"


@contextmanager
def loops(count: int) -> Iterator[list[subprocess.Popen]]:
    """Hold ``count`` cores; the loops end with this process, however it ends."""
    code = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
    command = [sys.executable, "-c", code, str(os.getpid())]
    running: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen(command))
        yield running
    finally:
        for each in running:
            each.kill()
        for each in running:
            each.wait()


def tests(variation: Variation, threads: int, chosen: Sequence[str], folder: Path) -> Row:
    """Run the tests under a variation; their output goes to the terminal."""
    report, ids = folder / "report.xml", folder / "chosen.txt"
    ids.write_text("".join(f"{line}\n" for line in chosen), "utf-8")
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto",
        "--maxprocesses", "4", "--dist", "loadfile", f"--junitxml={report}", f"@{ids}",
    ]  # fmt: skip
    start = time.monotonic()
    with loops(os.cpu_count() or 1 if variation.busy else 0):
        code = _ended(command, environment(variation, threads))
    seconds = time.monotonic() - start
    counts = _counts(report)
    failed = code != 0 or not counts
    result = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no report"
    return Row(variation.name, threads, result, seconds, failed=failed)


def _ended(command: Sequence[str], env: Mapping[str, str]) -> int:
    process = subprocess.Popen(command, cwd=ROOT, env=dict(env), start_new_session=True)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _counts(report: Path) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped, by pytest's JUnit report."""
    if not report.is_file():
        return {}
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


@cache
def numeric() -> list[str]:
    """Return the ids of the quick tests that compare numbers within a tolerance."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "numeric and not slow"]
    done = subprocess.run(
        [*command, "tests"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return [line for line in done.stdout.splitlines() if "::" in line]


def chosen_tests(options: argparse.Namespace, number: int) -> list[str]:
    """Return pytest's arguments that choose the tests of the run of this number."""
    if options.sample is None:
        return ["-m", "numeric and not slow" if options.numeric else "not slow"]
    ids = numeric()
    return random.Random(options.seed + number).sample(ids, min(options.sample, len(ids)))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [each.name for each in VARIATIONS]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument("--threads", type=int, action="append", help="the default is 1, then 2")
    parser.add_argument("--numeric", action="store_true", help="tests that compare numbers")
    parser.add_argument("--sample", type=int, metavar="N", help="N of the numeric tests a run")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 1 if any test failed."""
    options = arguments(given)
    plain = probe(VARIATIONS[0], 1)
    print(f"torch {plain['torch']}, {plain['capability']}, {os.cpu_count()} cores", flush=True)
    runs = [
        (each, threads)
        for each in VARIATIONS
        for threads in options.threads or THREADS
        if each.name in (options.only or [each.name]) and not (each.busy and threads > 1)
    ]
    if not runs:
        raise SystemExit("nothing to run: there is one busy run, with 1 thread")
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for number, (variation, threads) in enumerate(runs):
            if why := why_not(variation, plain):
                rows.append(Row(variation.name, threads, f"not run: {why}"))
                continue
            rows.append(
                _run(variation, threads, plain, chosen_tests(options, number), Path(folder))
            )
    print("", HEAD, *rows, sep="\n")
    ran = [row for row in rows if row.seconds is not None]
    return int(not ran or any(row.failed for row in ran))


def _run(
    variation: Variation, threads: int, plain: Mapping, chosen: Sequence[str], folder: Path
) -> Row:
    found = probe(variation, threads)
    if found["threads"] != threads:
        raise SystemExit(f"torch has {found['threads']} threads where {threads} were asked for")
    about = differences(found, plain)
    print(f"\n{variation.name}, threads of torch: {threads}, {found['capability']}: {about}",
          flush=True)  # fmt: skip
    with TemporaryDirectory(dir=folder) as own:
        row = tests(variation, threads, chosen, Path(own))
    row = replace(row, about=about)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
