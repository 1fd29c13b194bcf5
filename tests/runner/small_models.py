"""Models small enough to be checked by plain loops, on token ids without a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import tolerance
from tunemath.runner.quiet import quiet_libraries

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


def logit_bound(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Return by how much logits that one of these models computes in two ways may differ."""
    layers, width = SMALL["num_hidden_layers"], SMALL["intermediate_size"]
    return tolerance.network(values, layers=layers, width=width, dtype=dtype)


def assert_equal_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Two models are one but for the rounding of float32."""
    torch.testing.assert_close(found, expected, rtol=0, atol=logit_bound(expected))


def make_llama(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).to(dtype).eval()


def make_sliding(dtype: torch.dtype = torch.float64) -> MistralForCausalLM:
    """A model whose attention sees six tokens back, so that no cache of it can be shared."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6)).to(dtype).eval()


FAMILIES: dict[str, tuple[str, dict[str, Any], float, float | None]] = {
    "llama": ("Llama", {}, 1.0, None),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}, 1.0, None),
    "gemma 2": ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}, 1.0, 3.0),
    "gemma 3": ("Gemma3", {"final_logit_softcapping": 2.5, "head_dim": 8}, 1.0, 2.5),
    "cohere": ("Cohere", {"logit_scale": 0.25}, 0.25, None),
    "granite": ("Granite", {"logits_scaling": 8.0}, 1 / 8, None),
    "hyperclovax": ("HyperCLOVAX", {"logits_scaling": 0.5}, 0.5, None),
    "gpt 2": ("GPT2", {}, 1.0, None),
    "phi": ("Phi", {}, 1.0, None),  # its head has a bias
}
"""Name: class, what its config adds, and the scale and soft-cap that its paper gives."""


def make_family(name: str, dtype: torch.dtype = torch.float64):
    """A model of random weights, a bias included, whose logits are wide enough for its soft-cap."""
    kind, extra, _, _ = FAMILIES[name]
    torch.manual_seed(0)
    kinds: Any = transformers
    text = "Text" if kind == "Gemma3" else ""
    config = getattr(kinds, f"{kind}{text}Config")(
        **SMALL | {"pad_token_id": PAD, "attn_implementation": "eager"} | extra
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    if model.lm_head.bias is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def with_adapter(base, *, moved: bool = True, **options: Any):
    """Wrap a model with LoRA; ``moved`` gives B values, so that the adapter does something."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    with quiet_libraries():
        tuned = get_peft_model(base, LoraConfig(**options))
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
