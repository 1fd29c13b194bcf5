"""How the comparisons are measured: a quiet machine, interleaved repetitions, memory in a process
of its own."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

PEERS = ("torch", "trl", "liger-kernel", "cut-cross-entropy", "transformers", "numpy")


@dataclass
class Contender:
    """One way to compute the case's figures."""

    name: str
    run: Callable[[], Any]
    """Does the whole work once, and returns what the gate compares."""
    setting: str = "default"


@dataclass
class Row:
    """What was measured of a contender."""

    name: str
    setting: str
    median_s: float
    min_s: float
    to_floor: float
    to_ours: float
    extra_mb: float | None = None
    first_call_s: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    repetitions: int = 0


def require_quiet(most: float = 30.0, patience: float = 300.0) -> None:
    """Wait until no other process uses more than ``most`` percent of a core, or give up."""
    end = time.monotonic() + patience
    while busy := _busiest(most):
        if time.monotonic() > end:
            raise SystemExit(f"{busy}; time on an idle machine, or pass --anyway")
        print(f"waiting: {busy}", file=sys.stderr)
        time.sleep(5)


def _busiest(most: float) -> str:
    """Return which other process uses more than ``most`` percent of a core; nothing if none."""
    mine = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    others = [p for p in psutil.process_iter() if p.pid not in mine]
    for process in others:
        with _gone():
            process.cpu_percent()
    time.sleep(2)
    for process in others:
        with _gone():
            share = process.cpu_percent()
            if share > most:
                return f"process {process.pid} ({process.name()}) uses {share:.0f} % of a core"
    return ""


class _gone:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, *_: Any) -> bool:
        return kind is not None and issubclass(kind, psutil.Error)


def interleaved(
    contenders: Sequence[Contender], repetitions: int, warm: set[str]
) -> dict[str, list[float]]:
    """Return seconds of every repetition; each round starts with another contender.

    Contenders that are not ``warm`` yet run once before.
    """
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for c in contenders:
        if c.name not in warm:
            c.run()
    for turn in range(repetitions):
        order = [*contenders[turn % len(contenders) :], *contenders[: turn % len(contenders)]]
        for c in order:
            gc.collect()
            start = time.perf_counter()
            c.run()
            seconds[c.name].append(time.perf_counter() - start)
    return seconds


def rows(contenders: Sequence[Contender], seconds: dict[str, list[float]]) -> list[Row]:
    """Return medians and minima, beside those of the floor and of the first contender."""
    floor = statistics.median(seconds["floor"])
    ours = statistics.median(seconds[contenders[0].name])
    return [
        Row(
            c.name,
            c.setting,
            statistics.median(seconds[c.name]),
            min(seconds[c.name]),
            statistics.median(seconds[c.name]) / floor,
            statistics.median(seconds[c.name]) / ours,
            repetitions=len(seconds[c.name]),
        )
        for c in contenders
    ]


def peak_extra(run: Callable[[], Any]) -> tuple[float, float]:
    """Return the peak of resident memory above the level before, in MB, and the seconds taken.

    The kernel's high-water mark is reset first (``/proc/self/clear_refs``), so this is for Linux.
    """
    gc.collect()
    _trim()
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    start = time.perf_counter()
    keep = run()
    seconds = time.perf_counter() - start
    extra = (_status("VmHWM") - before) / 1024
    del keep
    return extra, seconds


def peak_anonymous(run: Callable[[], Any]) -> float:
    """Return the peak of anonymous memory above the level before, in MB."""
    before, peak, done = _anonymous(), [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], _anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        run()
    finally:
        done.set()
        thread.join()
    return peak[0] - before


def _anonymous() -> float:
    return _status("RssAnon") / 1000


def _trim() -> None:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def in_its_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run ``script --one …`` and return the JSON object that its last line holds."""
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def table(title: str, measured: Sequence[Row]) -> str:
    """Return a Markdown table of a case; ratios are of medians."""
    errors = sorted({key for row in measured for key in row.errors})
    head = ["", "setting", "median s", "min s", "× floor", "× tunemath", "extra MB", "first call s"]
    head += [f"error, {key}" for key in errors]
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in measured:
        cells = [
            row.name, row.setting, f"{row.median_s:.3f}", f"{row.min_s:.3f}",
            f"{row.to_floor:.2f}", f"{row.to_ours:.2f}", _or_blank(row.extra_mb, ".0f"),
            _or_blank(row.first_call_s, ".1f"),
            *(_or_blank(row.errors.get(key), ".1e") for key in errors),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def record(measured: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in measured]
