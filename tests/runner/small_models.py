"""Models small enough to be checked by plain loops, on token ids without a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

VOCAB, PAD = 61, 0
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Row = tuple[list[int], list[bool]]


def make_llama(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).to(dtype).eval()


def make_sliding(dtype: torch.dtype = torch.float64) -> MistralForCausalLM:
    """A model whose attention sees six tokens back, so that no cache of it can be shared."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6)).to(dtype).eval()


def with_adapter(base, *, moved: bool = True):
    """Wrap a model with LoRA; ``moved`` gives B values, so that the adapter does something."""
    torch.manual_seed(1)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    if moved:
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return tuned.eval()


def draw(generator: random.Random, low: int, high: int) -> list[int]:
    """A few token ids, none of them special."""
    return [generator.randrange(3, VOCAB) for _ in range(generator.randint(low, high))]


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of unlike lengths whose answers follow their prompts."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt, answer = draw(generator, 2, 9), draw(generator, 1, 6)
        rows.append(([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)))
    return rows


@torch.no_grad()
def log_softmax_of(model, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (T, V) at each position of one row, by itself, in float64."""
    return model(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
