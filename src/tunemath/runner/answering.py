"""What a model answers: greedy generation, and the likelihood of given choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from tunemath.mask import common_prefix
from tunemath.runner.prefix import SharedPrefix, pad_right
from tunemath.runner.quiet import quiet_libraries

__all__ = ["Answer", "generate", "score_choices", "shortfall"]

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
        with quiet_libraries(), _without_its_own(model):
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


@contextmanager
def _without_its_own(model: Any) -> Iterator[None]:
    """Set aside what a model's generation_config.json asks for: beams, penalties, limits.

    transformers takes each setting from there that the call's own configuration leaves at its
    default, and greedy answers are greedy.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    holders = {id(each): each for each in (model, base, *base.modules())}
    kept = [
        (holder, vars(holder)["generation_config"])
        for holder in holders.values()
        if isinstance(vars(holder).get("generation_config"), GenerationConfig)
    ]
    for holder, _ in kept:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, own in kept:
            holder.generation_config = own


def _until_stop(row: list[int], stop: set[int]) -> Answer:
    for place, token in enumerate(row):
        if token in stop:
            return Answer(tuple(row[:place]), True)
    return Answer(tuple(row), False)


@torch.inference_mode()
def shortfall(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return how far, at most, a token of an answer stays below the likeliest in its logit.

    0 if a greedy model gives this answer. At a tie the order of float sums decides which of two
    answers it gives; the other then has a shortfall of a rounding error.
    """
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    taken = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return float((logits.amax(dim=1) - taken).max())


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
    score = _score_batch if prefix.usable else _score_whole
    scores: list[list[float]] = [[] for _ in stems]
    done = 0
    for indices in batches([len(stem) for stem in stems], batch_size):
        own = [stems[index][len(prefix.ids) :] for index in indices]
        for index, values in zip(
            indices, score(prefix, own, [choices[i] for i in indices], pad), strict=True
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
    """Score all choices of an item in one row: the stem once, and each choice behind it.

    A choice's tokens take the positions right after the stem and see prefix, stem and themselves,
    not the other choices; so each is read as if it stood there alone.
    """
    device = prefix.model.device
    rows, positions, branches, taken = [], [], [], []
    for item, (stem, options) in enumerate(zip(stems, choices, strict=True)):
        row, place, branch = list(stem), list(range(len(stem))), [0] * len(stem)
        for number, option in enumerate(options):
            sources = [len(stem) - 1, *range(len(row), len(row) + len(option) - 1)]
            taken += [(item, number, s, t) for s, t in zip(sources, option, strict=True)]
            row += option[:-1]
            place += range(len(stem), len(stem) + len(option) - 1)
            branch += [number + 1] * (len(option) - 1)
        rows.append(row)
        positions.append(place)
        branches.append(branch)
    batch = pad_right(rows, pad, device)
    states = prefix.branched(
        batch, pad_right(positions, 0, device).ids, pad_right(branches, -1, device).ids
    )
    items, _, sources, targets = torch.tensor(taken, device=device).T
    values = states[items, sources].log_probs(targets).tolist()
    scores = [[0.0] * len(options) for options in choices]
    for (item, number, _, _), value in zip(taken, values, strict=True):
        scores[item][number] += value
    return scores


def _score_whole(
    prefix: SharedPrefix,
    stems: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    pad: int,
) -> list[list[float]]:
    """Score each choice on its whole row, for a model whose cache can't be continued."""
    device = prefix.model.device
    scores = []
    for stem, options in zip(stems, choices, strict=True):
        batch = pad_right([[*stem, *option] for option in options], pad, device)
        columns = torch.arange(len(stem) - 1, batch.ids.shape[1] - 1, device=device)
        states, following = prefix.forward(batch, keep=columns), columns + 1
        values = states.log_probs(batch.ids[:, following], batch.real[:, following])
        scores.append(values.sum(dim=1).tolist())
    return scores
