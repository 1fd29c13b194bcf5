"""A tiny seeded model with a real tokenizer and template, and a job that it can learn."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["make_tiny_job", "make_tiny_model", "write_jsonl"]

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
