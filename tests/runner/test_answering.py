"""Sharing a prefix and batching change nothing: each row is held against itself alone."""

from __future__ import annotations

import random

import pytest
import torch
from small_models import PAD, draw, log_softmax_of, make_llama, make_sliding
from transformers import GenerationConfig

from tunemath.mask import common_prefix
from tunemath.runner.answering import generate, score_choices, shortfall
from tunemath.runner.prefix import SharedPrefix

STOP = (2, 7)


@pytest.fixture(params=[make_llama, make_sliding], ids=["llama", "sliding-window"])
def any_model(request: pytest.FixtureRequest):
    return request.param()


@pytest.fixture
def llama():
    return make_llama()


def make_prompts(kind: str) -> list[list[int]]:
    generator = random.Random(3)
    shared = draw(generator, 9, 9)
    own = [draw(generator, 1, 14) for _ in range(7)]
    if kind == "shared":
        return [[*shared, *row] for row in own]
    if kind == "nested":
        return [shared[:4], [*shared, *own[0]], shared]
    if kind == "single":
        return [own[0]]
    return [[3 + index, *row] for index, row in enumerate(own)]


KINDS = pytest.mark.parametrize("kind", ["shared", "nested", "single", "nothing in common"])
SIZES = pytest.mark.parametrize("size", [1, 3, 16])


@KINDS
@SIZES
def test_generate_is_plain_greedy_decoding(any_model, kind, size):
    prompts, done = make_prompts(kind), []
    found = generate(
        any_model,
        prompts,
        stop=STOP,
        pad=PAD,
        max_new_tokens=9,
        batch_size=size,
        tick=done.append,
    )
    for prompt, answer in zip(prompts, found, strict=True):
        ids, expected, finished = list(prompt), [], False
        for _ in range(9):
            best = int(log_softmax_of(any_model, ids)[-1].argmax())
            if best in STOP:
                finished = True
                break
            expected.append(best)
            ids.append(best)
        assert (list(answer.tokens), answer.finished) == (expected, finished)
    assert done[-1] == len(prompts)


def test_generate_equals_the_models_own_unbatched_generate(llama):
    prompts = make_prompts("shared")
    found = generate(
        llama,
        prompts,
        stop=[2],
        pad=PAD,
        max_new_tokens=8,
        batch_size=4,
        tick=lambda done: None,
    )
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        out = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=PAD,
        )
        assert [*answer.tokens] == [token for token in out[0, len(prompt) :].tolist() if token != 2]


CHOICES = [
    [[5], [6], [9]],
    [[5, 8, 11, 4], [5]],  # the second begins the first
    [[7, 7], [12, 3, 3, 3, 19], [30]],
    [[44, 45], [44, 46]],
    [[10]],
    [[3], [3, 4], [3, 4, 5], [3, 4, 5, 6]],
    [[59, 58, 57], [20]],
]


def plain_score(model, stem: list[int], choice: list[int]) -> float:
    """Σ log p over the choice's tokens, on the whole sequence by itself, in float64."""
    table = log_softmax_of(model, [*stem, *choice])
    return sum(float(table[len(stem) + k - 1, token]) for k, token in enumerate(choice))


@KINDS
@SIZES
def test_score_choices_is_the_plain_sum(any_model, kind, size):
    stems = make_prompts(kind)
    choices = CHOICES[: len(stems)]
    found = score_choices(
        any_model, stems, choices, pad=PAD, batch_size=size, tick=lambda done: None
    )
    for stem, options, values in zip(stems, choices, found, strict=True):
        expected = [plain_score(any_model, stem, option) for option in options]
        assert values == pytest.approx(expected, abs=2e-5)


def test_score_choices_reports_progress_to_the_end(llama):
    done: list[int] = []
    stems = make_prompts("shared")
    score_choices(llama, stems, CHOICES, pad=PAD, batch_size=3, tick=done.append)
    assert done == [3, 6, 7]


def test_the_prefix_is_shared_where_it_may_be(llama):
    prompts = make_prompts("shared")
    assert len(SharedPrefix(llama, common_prefix(prompts)).ids) >= 9


def test_a_sliding_window_cache_is_never_shared():
    prefix = SharedPrefix(make_sliding(), [3, 4, 5])
    assert (prefix.usable, prefix.ids, prefix.cache) == (False, (), None)


@pytest.mark.parametrize("pad", [0, 2, 5])
def test_the_pad_id_has_no_influence(llama, pad):
    stems = make_prompts("shared")
    first, again = (
        score_choices(llama, stems, CHOICES, pad=p, batch_size=5, tick=lambda done: None)
        for p in (1, pad)
    )
    assert first == again


def test_shortfall_is_how_far_the_worst_token_stays_below_the_first(llama):
    generator = random.Random(5)
    prompt, answer = draw(generator, 6, 6), draw(generator, 5, 5)
    worst, ids = 0.0, list(prompt)
    for token in answer:
        values = log_softmax_of(llama, ids)[-1]
        worst = max(worst, float(values.max() - values[token]))
        ids.append(token)
    assert worst > 0.1
    assert shortfall(llama, prompt, answer) == pytest.approx(worst, rel=1e-4)


def test_a_greedy_answer_has_no_shortfall(llama):
    prompt = draw(random.Random(6), 8, 8)
    settings = {"stop": STOP, "pad": PAD, "max_new_tokens": 6, "batch_size": 1}
    answer = generate(llama, [prompt], **settings, tick=lambda done: None)[0]
    assert shortfall(llama, prompt, answer.tokens) == pytest.approx(0.0, abs=1e-5)


def test_settings_of_the_models_own_are_set_aside(llama):
    """Beams, penalties and limits that generation_config.json asks for change no greedy answer."""
    prompts = make_prompts("nothing in common")
    options = {"stop": STOP, "pad": PAD, "max_new_tokens": 6, "batch_size": 3, "tick": print}
    plain = generate(llama, prompts, **options)
    own = GenerationConfig(num_beams=3, repetition_penalty=5.0, min_new_tokens=6, do_sample=True)
    llama.generation_config = own
    assert generate(llama, prompts, **options) == plain
    assert llama.generation_config is own
