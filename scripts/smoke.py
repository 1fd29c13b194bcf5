"""Build wheel and sdist, and try the wheel as somebody would who has nothing else.

    python scripts/smoke.py DIST     builds into DIST, looks inside, installs and runs the wheel

The wheel holds exactly the package's files that git knows, and the sdist builds the same wheel. It
is installed without extras into a fresh environment, outside of the tree; there the commands that
need no torch do their work on a model of a few bytes, and one that does names its extra.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)
CONTRACT = """\
model: model
mask: {train: train.jsonl}
evaluation: {task: task.jsonl, few_shot: 1}
budget: {epochs: 1, batch_size: 2}
"""


def run(*command: str | Path, cwd: Path = ROOT, code: int = 0) -> str:
    """Run a command without this project's tree in its sight; return what it said."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["TUNEMATH_CACHE"] = str(cwd / "cache")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    if done.returncode != code:
        sys.exit(f"{command}: exit code {done.returncode}, expected {code}\n{said}")
    return said


def expect(holds: object, what: str) -> None:
    """End with what was expected where it does not hold."""
    if not holds:
        sys.exit(f"the smoke test failed: {what}")


def contents(wheel: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a wheel, by its name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def build(dist: Path, scratch: Path) -> Path:
    """Build the sdist and, from it, the wheel; hold the wheel against the tree's files."""
    python = (sys.executable, "-m", "build", "--no-isolation")
    run(*python, "--outdir", dist, ROOT)  # the wheel is built from the sdist
    run(*python, "--wheel", "--outdir", scratch, ROOT)
    (wheel,), (direct,) = dist.glob("*.whl"), scratch.glob("*.whl")
    expect(len(list(dist.glob("*.tar.gz"))) == 1, "one sdist")
    found = contents(wheel)
    expect(found == contents(direct), "the sdist builds the wheel that the tree builds")
    known = run("git", "ls-files", "src/tunemath").split()
    package = {name for name in found if ".dist-info/" not in name}
    wanted = {name.removeprefix("src/") for name in known}
    expect(package == wanted, f"only and all of the package: {sorted(package ^ wanted)[:5]}")
    expect("tunemath/py.typed" in package, "its types are marked as such")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel alone into a fresh environment; return its folder of programs."""
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet")
    run(*pip, "--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel)
    return programs


def write_job(folder: Path) -> None:
    """Write a model of a configuration and a tokenizer, data, and a contract."""
    letters = {chr(i): i for i in range(32, 127)}
    specials = {"<s>": 127, "</s>": 128}
    added = [
        {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False} for token, i in specials.items()
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": None, "unk_token": " ", "fuse_unk": False,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "vocab": {**letters, **specials}, "merges": []},
    }  # fmt: skip
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 129,
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 127,
        "eos_token_id": 128,
    }  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "chat_template": CHATML}
    (folder / "model").mkdir()
    for name, value in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", names),
    ):
        (folder / "model" / name).write_text(json.dumps(value), "utf-8")
    write_weights(folder / "model" / "model.safetensors")
    rows = [{"prompt": f"Say {i}.", "completion": str(i)} for i in range(8)]
    items = [{"prompt": f"Say {i}.", "answer": str(i)} for i in range(100, 108)]
    for name, lines in (("train.jsonl", rows), ("task.jsonl", items)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "job.yaml").write_text(CONTRACT, "utf-8")


def write_weights(path: Path) -> None:
    """Write zeros for the tensors of that Llama, by hand: a length, a header, the data."""
    shapes = {"model.embed_tokens.weight": [129, 16], "model.norm.weight": [16]}
    for layer in range(2):
        start = f"model.layers.{layer}"
        for name, rows in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8), ("o_proj", 16)):
            shapes[f"{start}.self_attn.{name}.weight"] = [rows, 16]
        for name, shape in (("gate", [32, 16]), ("up", [32, 16]), ("down", [16, 32])):
            shapes[f"{start}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{start}.{name}.weight"] = [16]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def try_out(programs: Path, folder: Path) -> None:
    """Use what was installed."""
    python, tunemath = programs / "python", programs / "tunemath"
    imported = run(python, "-c", "import tunemath; print(tunemath.__file__)", cwd=folder)
    expect(str(programs.parent) in imported, f"the installed package is used, not {imported}")
    expect(run(tunemath, "--version", cwd=folder).startswith("tunemath "), "its version")
    expect("Usage: tunemath" in run(python, "-m", "tunemath", "--help", cwd=folder), "its help")
    expect(json.loads(run(tunemath, "schema", cwd=folder))["properties"]["space"], "the schema")
    run(tunemath, "init", "new.yaml", cwd=folder)
    write_job(folder)
    # By hand, of rank 8: two layers of q 16→16, k and v 16→8, o 16→16, gate and up 16→32, down.
    by_hand = 2 * 8 * (32 + 24 + 24 + 32 + 48 + 48 + 48)
    counted = run(tunemath, "count", "model", "-m", "lora", "--json", cwd=folder)
    expect(json.loads(counted)["trainable"] == by_hand, "the count of a LoRA by hand")
    run(tunemath, "memory", "model", "-m", "lora", cwd=folder)
    planned = json.loads(run(tunemath, "plan", "job.yaml", "--json", cwd=folder))
    expect(planned["parameters"]["trainable"] == by_hand, "the plan's count")
    certified = json.loads(run(tunemath, "mask", "job.yaml", "--json", cwd=folder))
    expect(not any(certified["violations"].values()), "the certificate of eight rows")
    run(tunemath, "learn", "1", "--dir", "mine", cwd=folder)
    (answer,) = (folder / "mine").glob("01*.py")
    run(tunemath, "learn", "1", "--dir", "mine", "--grade", cwd=folder, code=1)
    solution = next(ROOT.glob("src/tunemath/course/e01_*/solution.py"))
    answer.write_bytes(solution.read_bytes())
    run(tunemath, "learn", "1", "--dir", "mine", "--grade", cwd=folder)
    lacking = run(tunemath, "baselines", "job.yaml", cwd=folder, code=2)
    expect(re.search(r"needs \w+; run: pip install '.*\[train\]'", lacking), f"extra: {lacking}")


def main() -> None:
    """Build, look inside, install, try."""
    dist = Path(sys.argv[1]).resolve()
    dist.mkdir(parents=True, exist_ok=True)
    for old in (*dist.glob("tunemath-*.whl"), *dist.glob("tunemath-*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("wheel", "work"):
            (folder / name).mkdir()
        wheel = build(dist, folder / "wheel")
        programs = install(wheel, folder / "environment")
        try_out(programs, folder / "work")
    print(f"{wheel.name} does what it says; it and the sdist are in {dist}")


if __name__ == "__main__":
    main()
