"""Updates cut down to a rank, against torch's own SVD of the weights' difference."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import PAD, SMALL, assert_equal_logits, draw, log_softmax_of
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tolerance
from tunemath.contract import ModelChoice
from tunemath.errors import ModelError
from tunemath.runner.curves import Asked, answer_states, load_tuned, open_update, row_kl
from tunemath.runner.models import attach_adapter, load_base
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel, resolve_model
from tunemath.runner.truncation import Truncation, cut_differences
from tunemath.space import AdapterSpace, PrefixSpace, UnfreezeSpace

CPU = torch.device("cpu"), torch.float32
IDS = torch.tensor([[5, 9, 11, 3, 40, 7]])


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path) -> ResolvedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, tie_word_embeddings=request.param)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return resolve_model(ModelChoice(id=str(tmp_path / "base")))


def save_lora(base: ResolvedModel, folder: Path, **options: Any) -> Path:
    """Save an adapter of random factors with PEFT."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
    with quiet_libraries():
        tuned = get_peft_model(load_base(base, *CPU), LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        tuned.save_pretrained(folder)
    return folder


def save_full(base: ResolvedModel, folder: Path, planted: int | None = None) -> Path:
    """Save a model all of whose weights moved, or its matrices by a planted rank alone."""
    model: Any = load_base(base, *CPU)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if planted is None:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
            elif weight.dim() == 2:
                left = torch.randn((weight.shape[0], planted), generator=generator)
                weight += 0.1 * left @ torch.randn((planted, weight.shape[1]), generator=generator)
    model.save_pretrained(folder)
    return folder


SAVED = {"lora": save_lora, "full": save_full}


def opened(base: ResolvedModel, folder: Path, ranks: int = 100) -> tuple[Any, Truncation]:
    with quiet_libraries():
        tuned = load_tuned(base, folder)
        reference = load_tuned(base, folder)
        return reference, open_update(base, tuned, folder, ranks)


def whole(update: Truncation, rank: int) -> dict[str, int]:
    return dict.fromkeys(update.blocks, rank)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", SAVED)
def test_the_whole_is_the_tuned_model_and_outside_it_is_the_base(base, tmp_path, kind):
    tuned, update = opened(base, SAVED[kind](base, tmp_path / kind))
    before, expected = tensors(load_base(base, *CPU)), logits(load_base(base, *CPU))
    assert (logits(tuned) - expected).abs().max() > 0.1  # so the test could fail
    with update.at({}) as model:
        assert_equal_logits(logits(model), logits(tuned))
    assert torch.equal(logits(update.model), expected)
    after = dict(update.model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_rank_0_of_lora_is_the_base(base, tmp_path):
    _, update = opened(base, save_lora(base, tmp_path / "lora"))
    with update.at(whole(update, 0)) as model:
        assert torch.equal(logits(model), logits(load_base(base, *CPU)))
    assert update.uncut == ()
    assert update.rank == 4
    assert update.source == "LoRA's factors"


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_cut_is_torch_svd_of_the_difference(base, tmp_path, kind, rank):
    folder = SAVED[kind](base, tmp_path / kind)
    _, update = opened(base, folder)
    before = tensors(load_base(base, *CPU))
    after: Any = load_tuned(base, folder)
    with quiet_libraries():
        after = after.merge_and_unload() if kind == "lora" else after
    held = total = 0.0
    with update.at(whole(update, rank)) as model:
        found = tensors(model)
    for name, weight in after.named_parameters():
        if name not in before:  # a head that was tied, and was not trained
            continue
        if weight.dim() < 2 or torch.equal(weight, before[name]):
            assert torch.equal(found[name], weight)
            continue
        u, s, vh = torch.linalg.svd(weight.detach().double() - before[name].double())
        expected = before[name] + (u[:, :rank] * s[:rank]) @ vh[:rank]
        delta = weight.detach().double() - before[name].double()
        # ΔW is known to the rounding of W + ΔW, and decomposed in float32.
        error = float(tolerance.rounded(weight.detach(), torch.float32).norm())
        allowed = tolerance.cut(delta, rank, error + tolerance.decomposition(delta, torch.float32))
        allowed += float(tolerance.rounded(expected, torch.float32).max())
        torch.testing.assert_close(found[name].double(), expected.double(), rtol=0, atol=allowed)
        held, total = held + float((s[:rank] ** 2).sum()), total + float((s**2).sum())
    assert update.energy(whole(update, rank)) == pytest.approx(held / total, rel=1e-4)
    assert update.energy({}) == 1.0


@pytest.mark.parametrize("kind", SAVED)
def test_a_block_is_cut_alone(base, tmp_path, kind):
    _, update = opened(base, SAVED[kind](base, tmp_path / kind))
    with update.at({}) as model:
        tuned = tensors(model)
    with update.at({"attention": 1}) as model:
        cut = tensors(model)
    for name, weight in tuned.items():
        same = torch.equal(cut[name], weight)
        assert same == ("self_attn" not in name)
    expected = ("attention", "feed-forward")
    assert update.blocks == (expected if kind == "lora" else (*expected, "embeddings and head"))


def test_changed_vectors_stay_whole_and_are_named(base, tmp_path):
    _, update = opened(base, save_full(base, tmp_path / "full"))
    assert set(update.uncut) == {n for n, w in tensors(update.model).items() if w.dim() < 2}
    tied = load_base(base, *CPU).config.tie_word_embeddings
    names = [part.name for part in update.parts]
    assert len(names) == len(set(names)) == 14 + (1 if tied else 2)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["down_proj", "lm_head"]},
        {"target_modules": ["down_proj", "lm_head"], "use_dora": True},
    ],
    ids=["dora", "embeddings", "a module saved whole", "patterns", "head", "dora on the head"],
)
def test_whatever_peft_saves_is_whole_at_its_full_rank(base, tmp_path, options):
    tuned, update = opened(base, save_lora(base, tmp_path / "lora", **options))
    with update.at({}) as model:
        assert_equal_logits(logits(model), logits(tuned))


def test_gpt2_has_its_weights_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "base")
    base = resolve_model(ModelChoice(id=str(tmp_path / "base")))
    names = ["c_attn", "c_proj", "c_fc"]
    folder = save_lora(base, tmp_path / "lora", target_modules=names, fan_in_fan_out=True)
    tuned, update = opened(base, folder)
    assert update.source == "LoRA's factors"
    with update.at({}) as model:
        assert_equal_logits(logits(model), logits(tuned))


def test_a_planted_rank_is_all_there_is(base, tmp_path):
    tuned, update = opened(base, save_full(base, tmp_path / "full", planted=2), ranks=4)
    assert update.energy(whole(update, 1)) < 0.9
    # Of the squares that float32's singular values give: twice their relative error.
    rounding = 2 * tolerance.decomposition(torch.eye(61), torch.float32)
    assert update.energy(whole(update, 2)) == pytest.approx(1.0, abs=rounding)
    with update.at(whole(update, 2)) as model:
        assert_equal_logits(logits(model), logits(tuned))


def make_asked() -> Asked:
    generator = random.Random(5)
    prefix = draw(generator, 3, 3)
    prompts = [[*prefix, 3 + n, *draw(generator, 0, 8)] for n in range(6)]
    return Asked(prompts, [draw(generator, 1, 5) for _ in range(6)])


@pytest.mark.parametrize("kind", [*SAVED, "lora on the head"])
def test_the_curve_is_torch_kl_of_full_logits(base, tmp_path, kind):
    if kind == "lora on the head":
        names = ["q_proj", "up_proj", "lm_head"]
        folder = save_lora(base, tmp_path / "lora", target_modules=names)
    else:
        folder = SAVED[kind](base, tmp_path / kind)
    tuned, update = opened(base, folder)
    asked = make_asked()
    after = update.anchored(answer_states(tuned, asked, pad=PAD))
    before = update.anchored(answer_states(update.model, asked, pad=PAD))
    plain: Any = load_base(base, *CPU)
    rows = [[*p, *a] for p, a in zip(asked.prompts, asked.answers, strict=True)]
    cut = whole(update, 1)
    with update.at(cut) as model:
        states = update.anchored(answer_states(model, asked, pad=PAD))
        middle = [log_softmax_of(model, row) for row in rows]
    for found, of, other in (
        (row_kl(states, before, asked), middle, [log_softmax_of(plain, row) for row in rows]),
        (row_kl(after, states, asked), [log_softmax_of(tuned, row) for row in rows], middle),
    ):
        for value, p, q, prompt in zip(found, of, other, asked.prompts, strict=True):
            places = slice(len(prompt) - 1, len(p) - 1)
            expected = torch.nn.functional.kl_div(
                q[places], p[places], reduction="sum", log_target=True
            )
            assert value == pytest.approx(float(expected), rel=2e-4, abs=1e-5)
            assert float(expected) > 1e-3


@pytest.mark.parametrize(
    "space", [PrefixSpace(method="prefix"), AdapterSpace(method="adapter", bottleneck=2)]
)
def test_what_changes_no_weight_is_refused(base, tmp_path, space):
    with quiet_libraries():
        attach_adapter(load_base(base, *CPU), space, 0).save_pretrained(tmp_path / "update")
    with pytest.raises(ModelError, match=r"no change of a weight|changes no weight"):
        load_tuned(base, tmp_path / "update")


def test_an_update_without_a_matrix_is_refused(base, tmp_path):
    model = attach_adapter(load_base(base, *CPU), UnfreezeSpace(method="layernorm"), 0)
    for weight in model.trained().values():
        weight.data += 0.1
    model.save_pretrained(tmp_path / "norms")
    with pytest.raises(ModelError, match="no weight of two dimensions changed"):
        opened(base, tmp_path / "norms")


def test_an_untrained_adapter_is_refused(base, tmp_path):
    with quiet_libraries():
        tuned = get_peft_model(load_base(base, *CPU), LoraConfig(target_modules="all-linear"))
        tuned.save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match="the adapter changes nothing"):
        opened(base, tmp_path / "lora")


def test_models_of_two_shapes_are_refused(base):
    torch.manual_seed(0)
    wide = LlamaForCausalLM(LlamaConfig(**SMALL | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"gate_proj.* has shape \[48, 32\] in the base and shape"):
        cut_differences(load_base(base, *CPU), wide, 4)
