"""Damaged and hostile files, thousands of them, against the commands that read them.

Each case damages one file of a small job, by a seed, and runs one command in a fork of a process
that has imported everything. A command may succeed or refuse. What it must not do: end with an
internal error, take longer or more memory than such a small job can need, print what acts on a
terminal, or leave half-written files.

    python tests/fuzz.py --cases 20000          # or: make fuzz
    python tests/fuzz.py --only adapter --cases 500 --seed 7
    python tests/fuzz.py --case 7:1234          # one again, with all that it prints
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from space.blueprint.gguf_files import write_gguf
from tiny_job import make_tiny_job, make_tiny_model
from tunemath.runner.resolve import weights_hash
from tunemath.space.weights.provenance import Provenance, Source

SECONDS = 30
"""Of processor time that a case may take."""
MEMORY = 3 * 2**30
"""Bytes of address space beyond what the process has before."""
MOST_OUTPUT = 2**20
ALLOWED = (0, 1, 2, 3)
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    10**12,
    -(10**12),
    10**30,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "x",
    "\x1b[31mred",
    "\u202ereversed",
    "a\x00b",
    "\ud800",
    "é\u0301",
    "../../etc",
    "/dev/zero",
    "~nobody/x",
    "((.*)*)*x",
    "(.|\\w)*!",
    "(((",
    "{{",
    "%s%n",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, 2, 3],
    {"a": {"b": {}}},
    "os.system",
    "!!python/object/apply:os.system ['true']",
)
TEMPLATES = (
    "{{ 10 ** (10 ** 8) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('\x1b[31m') }}",
    "{{ messages[99].content }}",
    "{{ '%1000000000d' % 1 }}",
    "{% include 'x' %}",
    "{{ undefined.x }}",
    "{% for m in messages %}{{ m }}{% endfor %}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ messages | tojson(indent=10 ** 9) }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ namespace(a=1) }}",
)
LINES = (
    "a: &a [*a]",
    "x: !!int abc",
    "d: 2024-99-99",
    "n: 0x_",
    "? {a: b}",
    "- -",
    "\t",
    "{",
    "[" * 1000,
    "k: |\n  text",
    "<<: {a: 1}",
    "model: !!python/name:os.system",
    "seed: 99999999999999999999",
    "budget: {epochs: 1.0e+999}",
    "space: {rank: [1]}",
    'e: "\\e[31m"',
    "\x1b]0;x\x07: 1",
)


@dataclass(frozen=True)
class Target:
    """A file to damage, how, and the commands that read it; ``{job}`` is the folder of the job."""

    file: str
    """A pattern; one of those that match is damaged."""
    damage: Callable[[random.Random, bytes], bytes]
    commands: tuple[str, ...]


def of_bytes(draw: random.Random, data: bytes) -> bytes:
    """Flip, insert, delete, repeat or cut bytes."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(found) + 1)
        match draw.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                found[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 40))))
            case 2:
                del found[at : at + draw.choice((1, 5, 100))]
            case 3:
                found[at:at] = found[at : at + draw.choice((1, 20, 400))]
            case 4:
                del found[at:]
            case _:
                found[at : at + 8] = draw.choice((2**63, 0, 2**31, 10**18)).to_bytes(8, "little")
    return bytes(found)


def of_header(draw: random.Random, data: bytes) -> bytes:
    """Damage the first bytes: lengths and headers."""
    return of_bytes(draw, data[:2000]) + data[2000:]


def of_json(draw: random.Random, data: bytes) -> bytes:
    """Replace, delete, double or rename values of a JSON document, or damage its bytes."""
    if draw.random() < 0.15:
        return of_bytes(draw, data)
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 1, 3))):
        value = _changed(draw, value)
    if draw.random() < 0.02:
        return b"[" * 100_000
    return json.dumps(value).encode()


def of_lines(draw: random.Random, data: bytes) -> bytes:
    """Damage one row of a JSONL file, or its bytes."""
    if draw.random() < 0.2:
        return of_bytes(draw, data)
    lines = data.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = of_json(draw, lines[at]).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def of_yaml(draw: random.Random, data: bytes) -> bytes:
    """Put a value in a field's place, add a line, or damage bytes."""
    if draw.random() < 0.2:
        return of_bytes(draw, data)
    lines = data.decode().splitlines()
    at = draw.randrange(len(lines))
    if draw.random() < 0.4:
        lines.insert(at, draw.choice(LINES))
    else:
        fields = list(re.finditer(r": ([^{},\n]+)", lines[at])) or [re.search(r"$", lines[at])]
        field = draw.choice(fields)
        assert field is not None
        value = json.dumps(draw.choice(NASTY)).replace("NaN", ".nan").replace("Infinity", ".inf")
        lines[at] = lines[at][: field.start()] + ": " + value + lines[at][field.end() :]
    return "\n".join(lines).encode(errors="surrogatepass")


def of_template(draw: random.Random, data: bytes) -> bytes:
    """Put a hostile expression into a template, or damage its bytes."""
    if draw.random() < 0.3:
        return of_bytes(draw, data)
    at = draw.choice((0, len(data)))
    return data[:at] + draw.choice(TEMPLATES).encode() + data[at:]


def _changed(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        found = dict(value)
        match draw.randrange(10):
            case 0:
                del found[key]
            case 1:
                found[draw.choice(("", "x", "\x1b[31m", key + "s", "x" * 3000))] = found.pop(key)
            case _:
                found[key] = _changed(draw, found[key])
        return found
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], _changed(draw, value[at]), *value[at + draw.randrange(2) :]]
    return draw.choice(NASTY)


_PLAN = ("plan {job}/tiny.yaml --runs {job}/runs", "mask {job}/tiny.yaml --runs {job}/runs --json")
_RUN = tuple(
    f"{command} {{job}}/tiny.yaml --runs {{job}}/runs"
    for command in ("plan", "check", "movement", "report")
)
_MODEL = ("count {job}/model", "memory {job}/model --json", *_PLAN)
_ADAPTER = (
    "spectrum {job}/adapter",
    "resize {job}/adapter {job}/out --rank 2 --base {job}/model",
    "merge {job}/model {job}/adapter --out {job}/out",
    "count {job}/model --peft-config {job}/adapter/adapter_config.json",
    "memory {job}/model --peft-config {job}/adapter/adapter_config.json --json",
)
TARGETS = {
    "contract": Target("tiny.yaml", of_yaml, _PLAN),
    "rows": Target("train.jsonl", of_lines, _PLAN),
    "items": Target("task.jsonl", of_lines, _PLAN),
    "choices": Target("retention.jsonl", of_lines, _PLAN),
    "config": Target("model/config.json", of_json, (*_MODEL, _ADAPTER[2])),
    "generation": Target("model/generation_config.json", of_json, _PLAN),
    "tokenizer": Target("model/tokenizer.json", of_json, _PLAN),
    "settings": Target("model/tokenizer_config.json", of_json, _PLAN),
    "template": Target("model/chat_template.jinja", of_template, _PLAN),
    "weights": Target("model/model.safetensors", of_header, (*_MODEL[:2], _ADAPTER[2])),
    "index": Target("sharded/model.safetensors.index.json", of_json, ("count {job}/sharded",)),
    "gguf": Target("model.gguf", of_header, ("count {job}/model.gguf",)),
    "peft": Target("adapter/adapter_config.json", of_json, _ADAPTER),
    "adapter": Target("adapter/adapter_model.safetensors", of_header, _ADAPTER[:3]),
    "record": Target("adapter/tunemath.json", of_json, _ADAPTER[:3]),
    "manifest": Target("runs/tiny/manifest.json", of_json, _RUN),
    "evidence": Target("runs/tiny/*.json", of_json, _RUN),
    "answers": Target("runs/tiny/items/*.jsonl", of_lines, _RUN[1:]),
}


@dataclass(frozen=True)
class Outcome:
    """What a case did; ``fault`` says what it must not have done, if anything."""

    target: str
    command: str
    code: str
    fault: str


def make_job(folder: Path) -> Path:
    """Write the job that is damaged: a model, its shards and GGUF, data, a contract, an adapter,
    and a finished run.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(folder / "model"))
    model.save_pretrained(folder / "sharded", max_shard_size="200KB")
    make_tiny_job(folder)
    text = (folder / "tiny.yaml").read_text("utf-8")
    (folder / "tiny.yaml").write_text(text.replace(f"{folder}/", ""), "utf-8")
    write_gguf("llama", folder / "model.gguf")
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(folder / "adapter")
    base = Source("base", "./model", weights_hash(folder / "model"))
    Provenance("train", (base,), {"method": "lora"}).write(folder / "adapter")
    command = f"run {folder}/tiny.yaml --runs {folder}/runs"
    with tempfile.TemporaryDirectory() as place:
        outputs = Path(place) / "out", Path(place) / "err"
        code = _forked(command.split(), folder, *outputs)
        if code not in ("0", "3"):
            raise RuntimeError(f"{command}: {outputs[1].read_text('utf-8')}")
    return folder


def run_case(
    job: Path, seed: int, number: int, only: Sequence[str], shown: bool = False
) -> Outcome:
    """Damage one file of a copy of the job and run one command on it, in a fork."""
    draw = random.Random(f"{seed}:{number}")
    name = draw.choice(sorted(only or TARGETS))
    target = TARGETS[name]
    command = draw.choice(target.commands)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(job, Path(place) / "job", copy_function=os.link))
        damaged = draw.choice(sorted(copy.glob(target.file)))
        data = target.damage(draw, damaged.read_bytes())
        damaged.unlink()
        damaged.write_bytes(data)
        outputs = Path(place) / "out", Path(place) / "err"
        code = _forked(command.format(job=copy).split(), copy, *outputs)
        said = b"".join(path.read_bytes() for path in outputs).decode(errors="surrogateescape")
        if shown:
            print(f"{damaged.relative_to(copy)}: tunemath {command}\n{said}")
        return Outcome(name, command.split()[0], code, _fault(code, said, copy))


def sound(job: Path) -> list[str]:
    """Return the commands that refuse the job as it is, with what they say: there must be none."""
    refused = []
    for command in sorted({each for target in TARGETS.values() for each in target.commands}):
        with tempfile.TemporaryDirectory() as place:
            copy = Path(shutil.copytree(job, Path(place) / "job", copy_function=os.link))
            outputs = Path(place) / "out", Path(place) / "err"
            if _forked(command.format(job=copy).split(), copy, *outputs) not in ("0", "3"):
                refused.append(f"{command}: {outputs[1].read_text('utf-8')}")
    return refused


def _fault(code: str, said: str, copy: Path) -> str:
    if code not in map(str, ALLOWED):
        last = [line for line in said.splitlines() if line.strip()][-1:]
        return f"ended with {code}: {ascii(last[0])[:200] if last else ''}"
    if len(said) > MOST_OUTPUT:
        return f"printed {len(said):,} characters"
    raw = _RAW.search(said)
    if raw:
        return f"printed {raw[0]!a}"
    left = [path.name for path in copy.rglob(".*") if path.name.endswith(("part", ".tmp"))]
    return f"left {left[0]}" if left else ""


def _forked(arguments: list[str], folder: Path, out: Path, err: Path) -> str:
    """Return the exit code of a command, or how it was ended."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for path, descriptor in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), descriptor)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        os._exit(_main(arguments))
    ended, status, used = os.wait4(child, 0) if _waited(child) else (0, 0, None)
    if not ended:
        return "a hang"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"a hang ({name})" if used and used.ru_utime > SECONDS - 2 else name
    return str(os.WEXITSTATUS(status))


def _waited(child: int) -> bool:
    """Wait for a child to end; end it after ten times the processor time that it may take."""
    until = time.monotonic() + 10 * SECONDS
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)
    return True


def _main(arguments: list[str]) -> int:
    from tunemath.cli import main

    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    try:
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        print(f"not caught: {error!r:.300}", file=sys.stderr)
        return 71
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def warm() -> None:
    """Import what the commands need, so that forks have it."""
    import rich.traceback  # noqa: F401
    import torch
    import transformers.masking_utils
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tunemath

    for module in pkgutil.walk_packages(tunemath.__path__, "tunemath."):
        if module.name != "tunemath.__main__" and ".course" not in module.name:
            importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.freeze()  # so that a fork's collections don't copy all of it


@contextlib.contextmanager
def job() -> Iterator[Path]:
    """Give a warm process a job to damage, and a cache of its own."""
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"TUNEMATH_CACHE": f"{place}/cache", "HF_HUB_OFFLINE": "1"}
        warm()
        folder = Path(place) / "job"
        folder.mkdir()
        yield make_job(folder)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    summary, _, examples = (__doc__ or "").partition("\n\n    ")
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=summary, epilog="    " + examples, formatter_class=shape
    )
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="go on from this number")
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), default=[])
    parser.add_argument("--case", metavar="SEED:NUMBER", help="run one again and show its output")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the cases; return 1 if any did what it must not."""
    options = arguments(given)
    with job() as folder:
        if options.case:
            seed, number = map(int, options.case.split(":"))
            print(run_case(folder, seed, number, options.only, shown=True))
            return 0
        refused = sound(folder)
        if refused:
            print("refused though nothing is damaged:", *refused, sep="\n")
            return 1
        return report(options, _all(folder, options))


def _all(folder: Path, options: argparse.Namespace) -> Iterator[tuple[int, Outcome]]:
    """Yield each case's outcome; ``jobs`` processes share them."""
    from multiprocessing import get_context

    cases = (
        (folder, options.seed, number, options.only)
        for number in range(options.start, options.start + options.cases)
    )
    with get_context("fork").Pool(options.jobs) as pool:
        yield from enumerate(pool.imap(_one, cases), options.start)


def _one(case: tuple[Path, int, int, Sequence[str]]) -> Outcome:
    return run_case(*case)


def report(options: argparse.Namespace, outcomes: Iterator[tuple[int, Outcome]]) -> int:
    """Print faults as they come, with the command that shows each, and a table at the end."""
    from rich.progress import track

    table: dict[str, Counter[str]] = {}
    faults = 0
    for number, found in track(outcomes, "fuzzing", total=options.cases):
        table.setdefault(found.target, Counter())[found.code] += 1
        if found.fault:
            faults += 1
            only = "".join(f" --only {name}" for name in options.only)
            print(
                f"{found.target}, {found.command}: {found.fault}\n"
                f"    python tests/fuzz.py{only} --case {options.seed}:{number}",
                flush=True,
            )
    codes = sorted({code for counts in table.values() for code in counts})
    print("| file | " + " | ".join(codes) + " |\n|---|" + "--:|" * len(codes))
    for name, counts in sorted(table.items()):
        print(f"| {name} | " + " | ".join(str(counts[code]) for code in codes) + " |")
    print(f"{options.cases:,} cases, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
