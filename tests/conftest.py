"""A tiny seeded model with a real tokenizer and template, and a job that it can learn."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("red", "green", "blue", "black", "white", "pink", "gray", "brown")


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
        pad_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_job(folder: Path, seed: int = 0) -> Path:
    """Write data and a contract: answer a colour's first letter; choose between two words."""
    generator = random.Random(seed)
    system = {"role": "system", "content": "S"}

    def ask(word: str, number: int) -> list[dict]:
        return [system, {"role": "user", "content": f"{word} {number}"}]

    train = [
        {
            "id": f"train-{n}",
            "messages": [
                *ask(generator.choice(WORDS), n),
                {"role": "assistant", "content": "yes" if n % 2 else "no"},
            ],
        }
        for n in range(24)
    ]
    task = [
        {"id": f"task-{n}", "messages": ask(WORDS[n % 8], 100 + n), "answer": "yes"}
        for n in range(10)
    ]
    retention = [
        {
            "id": f"keep-{n}",
            "messages": ask(WORDS[n % 8], 200 + n),
            "choices": ["a", "bb", "ccc"],
            "answer": n % 3,
        }
        for n in range(12)
    ]
    pairs = [
        {
            "id": f"pair-{n}",
            "messages": ask(WORDS[n % 8], 300 + n),
            "chosen": "yes",
            "rejected": "q",
        }
        for n in range(16)
    ]
    held = [
        {
            "id": f"held-{n}",
            "messages": ask(WORDS[n % 8], 400 + n),
            "chosen": "yes",
            "rejected": "q",
        }
        for n in range(10)
    ]
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "task.jsonl", task)
    write_jsonl(folder / "retention.jsonl", retention)
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "held.jsonl", held)
    contract = folder / "tiny.yaml"
    contract.write_text(
        f"""\
name: tiny
model: {folder / "model"}
space: {{rank: 4, alpha: 8}}
mask: {{train: train.jsonl, max_length: 64}}
budget: {{epochs: 2, batch_size: 8, micro_batch_size: 4, learning_rate: 0.01, save_every: 2}}
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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_job(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A contract in a folder of its own, with the tiny model beside it and its own cache."""
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").symlink_to(tiny_model)
    return make_tiny_job(tmp_path)
