"""Run the console examples of Markdown pages, and write or check what they print.

A block of ``console`` holds commands after ``$`` and under each what it prints. Where that is cut,
a line … stands for any lines, and … within a line for any characters. After the comment
``<!-- not run: why -->`` a block is for reading only. Commands on a run of the shipped example are
run where ``runs/dates-sft`` is finished; another processor trains to other figures, so of what
these print only the words are compared.

    python scripts/consoles.py docs/quickstart.md           writes what differs
    python scripts/consoles.py --check docs/**/*.md         exits with 1 and shows what differs
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["commands", "main", "matches", "outcome"]

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: [^>]*-->\s*$")
_NEEDS_RUN = re.compile(
    r"\bdates-(sft|full|dpo)\b|\b(check|movement|report|run|spectrum) examples/dates/"
)
_FIGURE = re.compile(r"[-+−]?\d[\d,.]*(e[-+]?\d+)?|[━▁-█]+")
_WIDTH = "80"


def main() -> int:
    """Write or check the pages named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    wrong = 0
    for page in options.pages:
        text = page.read_text(encoding="utf-8")
        renewed = text
        for command, printed in commands(text):
            on_run = bool(_NEEDS_RUN.search(command))
            if on_run and not (ROOT / "runs/dates-sft/report.html").is_file():
                print(f"{page}: skipped, as runs/dates-sft is not finished: {command}")
                continue
            now = outcome(command)
            if matches(printed, now, figures=not (on_run and options.check)):
                continue
            wrong += 1
            print(f"{page}: differs: {command}", *([now] if options.check else []), sep="\n")
            renewed = renewed.replace(f"$ {command}\n{printed}", f"$ {command}\n{now}", 1)
        if not options.check and renewed != text:
            page.write_text(renewed, encoding="utf-8")
    return int(options.check and wrong > 0)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a page's examples and what the page says that it prints."""
    for block in _BLOCK.finditer(text):
        if _NOT_RUN.search(text[: block.start()]):
            continue
        for part in re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def outcome(command: str) -> str:
    """Return what a command prints, of its progress and errors only where that is all."""
    names = {"COLUMNS": _WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env={**os.environ, **names, "PATH": path},
        capture_output=True,
        text=True,
    )
    lines = [line.rstrip() for line in (done.stdout or done.stderr).strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


def matches(written: str, printed: str, *, figures: bool = True) -> bool:
    """Return whether a page's text is what was printed, … standing for whatever was left out.

    Without *figures*, numbers and where lines break may differ.
    """
    if not figures:
        written, printed = (
            "".join(f"{word}\n" for word in _FIGURE.sub("0", text).split())
            for text in (written, printed)
        )
    pattern = "".join(
        "(?:.*\n)*?" if line == "…\n" else re.escape(line).replace("…", ".*?")
        for line in written.splitlines(keepends=True)
    )
    return re.fullmatch(pattern, printed) is not None


if __name__ == "__main__":
    sys.exit(main())
