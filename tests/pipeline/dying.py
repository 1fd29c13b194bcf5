"""Runs that are killed at a chosen point: a process that forks one and reports how it died.

Each line of standard input is a JSON list ``[contract, runs, overrides, point]``; each answer is
the signal that ended the fork, or 0. The libraries are imported once. Nothing here trains before
the fork, so that the fork's autograd is its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tunemath import storage
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance, measuring
from tunemath.pipeline.folder import RunFolder
from tunemath.runner import artefact, checkpoints
from tunemath.runner import training as _training  # noqa: F401
from tunemath.space.weights.provenance import Provenance

FRESH = "--fresh"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner: Any, name: str, matches: Callable[..., bool], count: int = 1) -> None:
    """Die instead of the ``count``-th matching call of ``owner.name``."""
    original, seen = getattr(owner, name), [0]

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen[0] += matches(*args, **kwargs)
        if seen[0] == count:
            die()
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def after_call(owner: Any, name: str, matches: Callable[..., bool], count: int = 1) -> None:
    """Die right after the ``count``-th matching call of ``owner.name``."""
    original, seen = getattr(owner, name), [0]

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen[0] += matches(*args, **kwargs)
        if seen[0] == count:
            die()
        return result

    setattr(owner, name, watched)


def arrange(point: str) -> None:
    """Set the trap that ``point`` names."""
    kind, _, what = point.partition(" ")
    if kind == "sealed":
        after_call(checkpoints.SealCheckpoints, "on_save", lambda *a, **k: True, int(what))
    elif kind == "unsealed":
        before_call(checkpoints, "write_json", lambda *a: True, int(what))
    elif kind == "unprobed":
        before_call(artefact.Probe, "write", lambda *a: True)
    elif kind == "merged":
        before_call(artefact, "load_base", lambda *a: True)
    elif kind == "before":
        before_call(RunFolder, "write", lambda self, name, value: name == what)
    elif kind == "after":
        after_call(measuring, "write_jsonl", lambda path, rows: path.as_posix().endswith(what))
    elif kind == "renaming":
        name, _, count = what.partition(" ")
        before_call(
            storage.os, "replace", lambda source, target: str(target).endswith(name), int(count)
        )
    elif kind == "saving":
        before_call(Provenance, "write", lambda *a: True)
    else:
        raise ValueError(point)


def run_and_die(contract: str, runs: str, overrides: list[str], point: str) -> None:
    arrange(point)
    fresh = FRESH in overrides
    settings = [override for override in overrides if override != FRESH]
    advance(Run(FineTune.load(contract, settings), runs, fresh=fresh), "check")


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run_and_die(*json.loads(line))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)


if __name__ == "__main__":
    main()
