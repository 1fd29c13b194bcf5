"""Two models on the same prompts: their logits, row by row, with little memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunemath.budget.peaks import PASS_LOGITS
from tunemath.errors import TunemathError
from tunemath.mask import Message, Template, encode_prompt, load_tokenizer
from tunemath.objective import kl_from_logits
from tunemath.runner.mapped import Cast, computing_in_float32
from tunemath.runner.trainer import Row

__all__ = [
    "TOLERANCES",
    "answer_logits",
    "compared",
    "probe_logits",
    "probe_rows",
    "tolerance_of",
    "vocabulary_of",
]

TOLERANCES = {"float32": 1e-3, "float64": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""By how much any logit of a merged model may differ from the adapter's, by the weights' dtype.

bfloat16 keeps 8 bits, float16 11, and logits are of order 10.
"""

_TEXTS = (
    "What is the capital of Australia, and which city is larger?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into French: the library closes at nine on Sundays.",
    "A train leaves at 14:05 and arrives at 16:50. How long does it take?",
    "Summarise in one sentence: photosynthesis turns light into chemical energy.",
    "List three differences between a virus and a bacterium.",
)
_LONGEST = 48
_NUMBERS = 2**23
"""The most logits that are kept, in all."""
_BLOCK = 2**20
"""The most logits that are compared at once."""


def probe_rows(folder: Path, vocabulary: int) -> tuple[list[Row], str]:
    """Return rows of token ids to compare models on, every position, and what they are.

    A few texts through the tokenizer and its chat template; seeded random ids where the folder has
    no tokenizer, or one that is not read here.
    """
    try:
        tokenizer = load_tokenizer(folder)
    except TunemathError:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(vocabulary, (len(_TEXTS), _LONGEST // 2), generator=generator)
        return [_row(ids.tolist()) for ids in drawn], "seeded token ids"
    try:
        template = Template.load(folder)
        encoded = [encode_prompt(template, tokenizer, [Message("user", text)]) for text in _TEXTS]
        about = "built-in prompts through the chat template"
    except TunemathError:
        encoded, about = [tokenizer.encode(text) for text in _TEXTS], "built-in texts"
    return [_row(list(ids)[:_LONGEST]) for ids in encoded], about


def _row(ids: list[int]) -> Row:
    return ids, [True] * len(ids)


@torch.inference_mode()
def probe_logits(model: Any, rows: Sequence[Row], cast: Cast | None = None) -> Tensor:
    """Return the logits at positions that predict a supervised token, (N, V), float32.

    The model runs in float32, whatever it is stored in. N is limited so that few are kept.
    """
    with computing_in_float32(model, cast):
        return answer_logits(model, rows)


@torch.inference_mode()
def answer_logits(model: Any, rows: Sequence[Row], most: int = _NUMBERS) -> Tensor:
    """Return the logits at positions that predict a supervised token, (N, V), float32.

    The model runs where it is and in its own precision. Of each row so many of the first positions
    are taken that all have about ``most`` logits.
    """
    with _no_cache(model):
        return torch.cat(list(_logits(model, rows, most)))


def _logits(model: Any, rows: Sequence[Row], most: int) -> Iterator[Tensor]:
    base = _base_of(model)
    some = "logits_to_keep" in inspect.signature(base.forward).parameters
    vocabulary = vocabulary_of(model)
    each = max(1, most // vocabulary // max(1, len(rows)))
    # Casting costs once a pass, so as many rows share one as their logits allow.
    widest = max(len(ids) for ids, _ in rows)
    together = max(1, PASS_LOGITS // vocabulary // widest)
    for start in range(0, len(rows), together):
        batch = rows[start : start + together]
        places = [
            [at - 1 for at, counts in enumerate(supervised) if counts and at][:each]
            for _, supervised in batch
        ]
        kept = sorted(set().union(*places))
        ids, mask = (each.to(model.device) for each in _padded([ids for ids, _ in batch]))
        options = {"logits_to_keep": torch.tensor(kept, device=model.device)} if some else {}
        logits = model(input_ids=ids, attention_mask=mask, **options).logits
        for row, wanted in enumerate(places):
            yield logits[row, [kept.index(p) if some else p for p in wanted]].float()


def vocabulary_of(model: Any) -> int:
    """Return V by the configuration of a causal model, PEFT's or plain."""
    return _base_of(model).config.get_text_config().vocab_size


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids (B, T), zeros to the right of shorter rows, and the mask of what is real."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(list(row))
        mask[place, : len(row)] = 1
    return ids, mask


@contextmanager
def _no_cache(model: Any) -> Iterator[None]:
    config = model.config
    had, config.use_cache = getattr(config, "use_cache", None), False
    try:
        yield
    finally:
        config.use_cache = had


def tolerance_of(model: Any) -> float:
    """Return by how much any logit of two equal models may differ in the model's precision."""
    return TOLERANCES[str(model.dtype).removeprefix("torch.")]


def compared(reference: Tensor, other: Tensor) -> dict[str, float]:
    """Return the largest difference of any logit, and KL(other ‖ reference), mean and maximum.

    The KL is in nats a position; both arguments are logits (N, V).
    """
    some = max(1, _BLOCK // reference.shape[-1])
    blocks = list(zip(reference.split(some), other.split(some), strict=True))
    kl = torch.cat([kl_from_logits(there, here) for here, there in blocks])
    return {
        "max_logit_difference": max(float((here - there).abs().max()) for here, there in blocks),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
    }
