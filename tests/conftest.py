"""A tiny seeded model with a real tokenizer and template, and a job that it can learn."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads would only wait

from preference_job import DPO
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("red", "green", "blue", "black", "white", "pink", "gray", "brown")

hypothesis.settings.register_profile(  # a busy machine is no failure
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


# Of the eleven families on which every tuner is held against PEFT, those that are unlike the rest:
# the others are slow tests.
TELLING = ("llama", "qwen3_moe", "gpt2", "t5", "bert", "vit")
_COMPARES = re.compile(r"\b(approx|assert_close|assert_allclose|allclose|isclose|tolerance)\b")
SLOW_SECONDS = 3600
"""How long a slow test may take; the limit of all others is in pyproject.toml."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tuners' tests on families that others stand for as slow; give slow tests longer."""
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if family and item.path.parent.name == "tuners" and family not in TELLING:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
        if "tests" in item.path.parts and _compares_numbers(item.path):
            item.add_marker(pytest.mark.numeric)


@cache
def _compares_numbers(path: Path) -> bool:
    """Return whether a test file compares within a tolerance, by what it calls."""
    return bool(_COMPARES.search(path.read_text("utf-8")))


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a two-layer Llama with grouped-query attention and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_job(folder: Path) -> Path:
    """Write data and a contract: answer every colour with yes; keep choosing between letters.

    Both objectives can be learned in a second, and are: `pairs.jsonl` and `held.jsonl` hold the
    same job as preferences (``--set objective.kind=dpo``).
    """
    system = {"role": "system", "content": "S"}

    def ask(number: int) -> list[dict]:
        return [system, {"role": "user", "content": f"{WORDS[number % 8]} {number}"}]

    def answered(name: str, first: int, count: int, **answer: object) -> list[dict]:
        numbers = range(first, first + count)
        return [{"id": f"{name}-{n}", "messages": ask(n), **answer} for n in numbers]

    train = [
        {"id": f"train-{n}", "messages": [*ask(n), {"role": "assistant", "content": "yes"}]}
        for n in range(24)
    ]
    retention = answered("keep", 200, 40, choices=["a", "bb", "ccc", "cc"])
    for number, item in enumerate(retention):
        item["answer"] = number % 2
    pair = {"chosen": "yes", "rejected": "q"}
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "task.jsonl", answered("task", 100, 12, answer="yes"))
    write_jsonl(folder / "retention.jsonl", retention)
    write_jsonl(folder / "pairs.jsonl", answered("pair", 300, 16, **pair))
    write_jsonl(folder / "held.jsonl", answered("held", 400, 12, **pair))
    contract = folder / "tiny.yaml"
    contract.write_text(
        f"""\
name: tiny
model: {folder / "model"}
space: {{rank: 4, alpha: 8}}
mask: {{train: train.jsonl, max_length: 64}}
budget: {{epochs: 6, batch_size: 8, micro_batch_size: 4, learning_rate: 0.02, save_every: 3}}
evaluation:
  task: task.jsonl
  retention: retention.jsonl
  few_shot: 2
  max_new_tokens: 6
  batch_size: 5
  bootstraps: 200
""",
        encoding="utf-8",
    )
    return contract


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep every test, and every process it starts, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEMATH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_job(tmp_path: Path, tiny_model: Path) -> Path:
    """A contract in a folder of its own, with the tiny model beside it."""
    (tmp_path / "model").symlink_to(tiny_model)
    return make_tiny_job(tmp_path)


@pytest.fixture(scope="session")
def shared_job(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny job, made once; `finished` holds its runs. Nobody changes it."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "model").symlink_to(tiny_model)
    return make_tiny_job(folder)


@pytest.fixture(scope="session")
def sft_run(shared_job: Path) -> Run:
    """A finished SFT run. Copy its folder before changing anything in it."""
    return _finish(shared_job)


@pytest.fixture(scope="session")
def dpo_run(shared_job: Path) -> Run:
    """A finished DPO run. Copy its folder before changing anything in it."""
    return _finish(shared_job, *(text.format(folder=shared_job.parent) for text in DPO))


@pytest.fixture(scope="session")
def good(sft_run: Run, dpo_run: Run) -> dict[str, dict]:
    """The evidence of the two finished runs. Copy it before changing anything in it."""
    return {"sft": sft_run.evidence(), "dpo": dpo_run.evidence()}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Run], Path]:
    """Copy a finished run, times and all; return the folder of the copy's runs."""

    def copy(run: Run) -> Path:
        shutil.copytree(run.folder.path, tmp_path / "runs" / run.folder.path.name)
        return tmp_path / "runs"

    return copy


def _finish(contract: Path, *overrides: str) -> Run:
    run = Run(FineTune.load(contract, overrides), contract.parent / "runs")
    advance(run)
    return run
