"""What a model answers: greedy generation, and the likelihood of given choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from tunemath.mask import common_prefix
from tunemath.objective import token_log_probs
from tunemath.runner.prefix import SharedPrefix, pad_right
from tunemath.runner.quiet import quiet_libraries

__all__ = ["Answer", "generate", "score_choices"]

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """A generated answer: its tokens without the terminator, and whether it stopped by itself."""

    tokens: tuple[int, ...]
    finished: bool


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield row indices in batches of like length, longest first (so memory peaks at once)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    tick: Tick,
) -> list[Answer]:
    """Answer every prompt greedily. The prompts' common prefix is computed once.

    ``prompts`` are token ids; ``stop`` the ids that end an answer; ``tick`` is told how many
    prompts are done. Rows are padded on the left, between the prefix and their own tokens.
    """
    prefix = SharedPrefix(model, common_prefix(prompts))
    prefix.fill()
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop),
        pad_token_id=pad,
        use_cache=True,
    )
    answers: list[Answer | None] = [None] * len(prompts)
    done = 0
    for indices in batches([len(prompt) for prompt in prompts], batch_size):
        own = [prompts[index][len(prefix.ids) :] for index in indices]
        width = max(len(row) for row in own)
        rows = [[*prefix.ids, *[pad] * (width - len(row)), *row] for row in own]
        real = [[*[1] * len(prefix.ids), *[0] * (width - len(row)), *[1] * len(row)] for row in own]
        ids = torch.tensor(rows, device=model.device)
        with quiet_libraries():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.tensor(real, device=model.device),
                past_key_values=prefix.repeated(len(indices)) if prefix.cache else None,
                generation_config=config,
            )
        for index, row in zip(indices, out[:, ids.shape[1] :].tolist(), strict=True):
            answers[index] = _until_stop(row, set(stop))
        done += len(indices)
        tick(done)
    return [answer for answer in answers if answer is not None]


def _until_stop(row: list[int], stop: set[int]) -> Answer:
    for place, token in enumerate(row):
        if token in stop:
            return Answer(tuple(row[:place]), True)
    return Answer(tuple(row), False)


@torch.inference_mode()
def score_choices(
    model: Any,
    stems: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    pad: int,
    batch_size: int,
    tick: Tick,
) -> list[list[float]]:
    """Return each choice's log-probability after its stem, in nats, summed over its tokens.

    ``stems[i]`` are a prompt's ids, ``choices[i]`` the ids of its choices. What all stems share,
    and each item's stem, are computed once.
    """
    prefix = SharedPrefix(model, common_prefix(stems))
    scores: list[list[float]] = [[] for _ in stems]
    done = 0
    for indices in batches([len(stem) for stem in stems], batch_size):
        own = [stems[index][len(prefix.ids) :] for index in indices]
        for index, values in zip(
            indices, _score_batch(prefix, own, [choices[i] for i in indices], pad), strict=True
        ):
            scores[index] = values
        done += len(indices)
        tick(done)
    return scores


def _score_batch(
    prefix: SharedPrefix,
    stems: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    pad: int,
) -> list[list[float]]:
    device = prefix.model.device
    stem = pad_right(stems, pad, device)
    prefix.fill()
    cache = prefix.repeated(len(stems))
    last, column = torch.unique(stem.lengths - 1, return_inverse=True)
    logits = prefix.forward(stem, keep=last, cache=cache)
    first_logits = logits[torch.arange(len(stems), device=device), column].float()

    owner = [item for item, options in enumerate(choices) for _ in options]
    flat = [tuple(option) for options in choices for option in options]
    rows = torch.tensor(owner, device=device)
    targets = torch.tensor([option[0] for option in flat], device=device)
    total = token_log_probs(first_logits[rows], targets)

    longer = [index for index, option in enumerate(flat) if len(option) > 1]
    if longer:
        cache.batch_select_indices(rows[longer])
        inputs = pad_right([flat[index][:-1] for index in longer], pad, device)
        targets = pad_right([flat[index][1:] for index in longer], pad, device)
        parents = rows[longer]
        rest = prefix.resume(inputs, stem.lengths[parents], stem.real[parents], cache)
        values = token_log_probs(rest.float(), targets.ids)
        sums = torch.where(targets.real, values, 0.0).sum(dim=1)
        total[torch.tensor(longer, device=device)] += sums
    result: list[list[float]] = [[] for _ in stems]
    for item, value in zip(owner, total.tolist(), strict=True):
        result[item].append(value)
    return result
