"""A learner's code in a process of its own, with limits on time and memory.

The limits keep an endless loop or a huge array from taking the machine along. They are no
protection from code that means harm: it is the learner's own, on the learner's machine.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from tunemath.course.grading import Grade, PartGrade

__all__ = ["graded", "pictured"]

SECONDS = 10
_BYTES = 4 * 2**30


def graded(name: str, source: str, seconds: float = SECONDS) -> Grade:
    """Grade an answer to an exercise in another process."""
    found = _run("grade", name, source, seconds)
    if "error" in found and "parts" not in found:
        return Grade((), error=found["error"])
    parts = tuple(PartGrade(**part) for part in found["parts"])
    return Grade(parts, found["printed"], found["error"])


def pictured(name: str, source: str, seconds: float = 3 * SECONDS) -> tuple[bytes, str]:
    """Return an exercise's figure as SVG, drawn with the learner's own functions, or why not."""
    found = _run("figure", name, source, seconds)
    return base64.b64decode(found.get("svg", "")), found.get("error", "")


def _run(what: str, name: str, source: str, seconds: float) -> dict[str, Any]:
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunemath.course.isolated", what, name]
    try:
        done = subprocess.run(
            command, input=source, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it ran for more than {seconds:g} seconds and was stopped: a loop that "
                         "doesn't end?"}  # fmt: skip
    lines = done.stdout.splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"the code ended its process (exit code {done.returncode}): {last}"}


def _limit() -> None:
    """Hold this process's memory and processor time."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (6 * SECONDS, 6 * SECONDS))


def _main(what: str, name: str) -> None:
    from tunemath.course.book import exercise
    from tunemath.course.grading import grade, run

    chosen, source, out = exercise(name), sys.stdin.read(), sys.stdout
    _limit()
    sys.stdin, sys.stdout = open(os.devnull), sys.stderr  # noqa: SIM115
    if what == "grade":
        found = grade(source, chosen.parts)
        result: dict[str, Any] = asdict(found)
    else:
        names, error = run(source)
        result = {"error": error}
        if not error:
            result = _svg(chosen, names)
    out.write("\n" + json.dumps(result) + "\n")


def _svg(chosen: Any, names: dict[str, Any]) -> dict[str, str]:
    from io import BytesIO

    try:
        figure = chosen.figure(names)
    except Exception as error:
        return {"error": f"the figure can't be drawn with these functions: {error!r}"}
    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    return {"svg": base64.b64encode(buffer.getvalue()).decode(), "error": ""}


if __name__ == "__main__":
    _main(*sys.argv[1:])
