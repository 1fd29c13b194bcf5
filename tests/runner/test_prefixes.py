"""Prefix and prompt tuning against live PEFT, against real tokens, and against themselves."""

from __future__ import annotations

import copy
import functools
from typing import Any

import peft
import pytest
import torch
import transformers
from small_models import PAD, SMALL, VOCAB, make_llama, make_rows
from transformers import AutoModelForCausalLM

from tunemath.errors import ModelError
from tunemath.runner import probes
from tunemath.runner.answering import generate
from tunemath.runner.heads import output_states
from tunemath.runner.models import attach_adapter, load_adapter
from tunemath.runner.movement import Read, row_movements
from tunemath.runner.probing import answer_logits
from tunemath.runner.quiet import quiet_libraries
from tunemath.space import PrefixSpace, PromptSpace

LENGTH = 5
PREFIX = PrefixSpace(method="prefix", length=LENGTH, init="random")
PROJECTED = PrefixSpace(method="prefix", length=LENGTH, projection=True, hidden=7)
PROMPT = PromptSpace(method="prompt", length=LENGTH, init="random")
SPACES = {"prefix": PREFIX, "projected": PROJECTED, "prompt": PROMPT}
MOE = {"num_local_experts": 3, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, eager": ("Llama", {"attn_implementation": "eager"}),
    "qwen 2": ("Qwen2", {}),
    "qwen 3": ("Qwen3", {"head_dim": 16}),
    "mixtral": ("Mixtral", MOE),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma 2": ("Gemma2", {"head_dim": 8, "attn_implementation": "eager", "sliding_window": 64}),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "phi": ("Phi", {}),
    "gpt 2": ("GPT2", {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "gpt neox": ("GPTNeoX", {}),
}


@functools.cache
def family(name: str):
    """A tiny model with weights wide enough that a prefix is felt. Take a copy."""
    kind, extra = FAMILIES[name]
    torch.manual_seed(0)
    with quiet_libraries():
        sizes = {**SMALL, "pad_token_id": PAD, **extra}
        if kind.startswith("GPT"):  # these have no grouped queries
            del sizes["num_key_value_heads"]
        config = getattr(transformers, f"{kind}Config")(**sizes)
        return AutoModelForCausalLM.from_config(config).eval()


def tuned(space, name: str = "llama", seed: int = 0) -> Any:
    return attach_adapter(copy.deepcopy(family(name)), space, seed).eval()


def peft_model(space, name: str = "llama") -> Any:
    """PEFT's own model, with the weights of `tuned`."""
    config: peft.PeftConfig
    if space.method == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    else:
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=LENGTH,
            prefix_projection=space.projection, encoder_hidden_size=space.hidden,
        )  # fmt: skip
    model: Any = peft.get_peft_model(copy.deepcopy(family(name)), config).eval()
    ours = tuned(space, name)
    model.prompt_encoder.load_state_dict(ours.prompt_encoder.state_dict())
    return model


def batch(side: str = "right") -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 2)):
        mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask if side == "left" else mask.flip(1)}


close = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=2e-5)  # float32


def own_logits(model: Any, space, **inputs: torch.Tensor) -> torch.Tensor:
    """The logits of the row's own tokens; PEFT gives those of a prompt too."""
    logits = model(**inputs).logits
    return (
        logits[:, LENGTH:] if space.method == "prompt" and not hasattr(model, "before") else logits
    )


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_logits_are_those_of_peft(name, kind, side):
    space, inputs = SPACES[kind], batch(side)
    real = inputs["attention_mask"].bool() | (side == "none")
    if side == "none":
        del inputs["attention_mask"]
    expected = own_logits(peft_model(space, name), space, **inputs)
    model = tuned(space, name)
    close(own_logits(model, space, **inputs)[real], expected[real])
    base = family(name)(**inputs).logits
    assert (base - expected)[real].abs().max() > 1e-3  # so the test could fail
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits[real], base[real])


@pytest.mark.parametrize("kind", ["prefix", "projected"])
def test_peft_counts_the_same(kind):
    assert (
        tuned(SPACES[kind]).get_nb_trainable_parameters()
        == peft_model(SPACES[kind]).get_nb_trainable_parameters()
    )


@pytest.mark.parametrize("kind", SPACES)
@torch.no_grad()
def test_peft_loads_what_is_saved_and_what_peft_saves_is_loaded(kind, tmp_path):
    space, inputs = SPACES[kind], batch()
    ours, theirs = tuned(space), peft_model(space)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    expected = ours(**inputs).logits
    by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(family("llama")), tmp_path / "ours")
    close(own_logits(by_peft, space, **inputs), expected)
    for folder in ("ours", "theirs"):
        again = load_adapter(copy.deepcopy(family("llama")), tmp_path / folder)
        close(again(**inputs).logits, expected)
        assert not any(p.requires_grad for p in again.parameters())


def test_virtual_tokens_of_another_model_are_refused(tmp_path):
    tuned(PREFIX).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"virtual tokens of \(5, 64\).*needs \(5, 128\)"):
        load_adapter(copy.deepcopy(family("qwen 3")), tmp_path)


# --- what the values mean


@pytest.mark.parametrize("method", ["prefix", "prompt"])
@pytest.mark.parametrize("name", ["llama", "gemma", "gemma 2", "gpt 2"])
@torch.no_grad()
def test_from_the_vocabulary_it_starts_as_tokens_before_the_input(name, method):
    space = (
        PrefixSpace(method="prefix", length=LENGTH)
        if method == "prefix"
        else PromptSpace(method="prompt", length=LENGTH)
    )
    ids = batch()["input_ids"]
    torch.manual_seed(7)
    # The prompt draws its tokens, and the prefix the same, after PEFT has drawn random weights.
    model = attach_adapter(copy.deepcopy(family(name)), space, 7).eval()
    vocabulary = family(name).get_input_embeddings()
    if method == "prompt":
        rows = model.prompt_encoder["default"].embedding.weight.double()
        table = vocabulary.weight.float().double()
        words = torch.cdist(rows, table).argmin(dim=1)
    else:
        torch.manual_seed(7)
        torch.nn.Embedding(*model.prompt_encoder["default"].embedding.weight.shape)
        words = torch.randint(VOCAB, (1, LENGTH))[0]
    whole = torch.cat([words.expand(3, -1), ids], dim=1)
    expected = family(name)(input_ids=whole).logits[:, LENGTH:]
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


# --- training


def gradients(model: Any, inputs: dict[str, torch.Tensor], space) -> list[torch.Tensor]:
    model.train()
    (own_logits(model, space, **inputs)[:, -3:] ** 2).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not p.requires_grad)
    return [p.grad for p in model.prompt_encoder.parameters()]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", ["llama", "gpt 2"])
def test_gradients_under_checkpointing_are_those_of_peft_without(name, kind, reentrant):
    if kind == "prompt" and reentrant:
        pytest.skip("what the prompt computes is shared by the layers, which one pass can't replay")
    space, inputs = SPACES[kind], batch()
    expected = gradients(peft_model(space, name), inputs, space)
    model = tuned(space, name)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model, inputs, space)
    assert any(m.gradient_checkpointing for m in model.modules() if hasattr(m, "layer_idx")
               or hasattr(m, "gradient_checkpointing"))  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        close(one, other)


def test_a_prompt_is_read_again_when_it_has_changed():
    model, inputs = tuned(PROMPT), batch()
    with torch.no_grad():
        before = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, before)
        model.prompt_encoder["default"].embedding.weight.add_(1.0)
        assert (model(**inputs).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("space", [PREFIX, PROMPT])
def test_a_half_precision_base_has_float32_virtual_tokens(space):
    model = attach_adapter(make_llama(torch.bfloat16), space, 0)
    learns = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in learns} == {torch.float32}
    logits = model(**batch()).logits
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learns)


# --- what the rest of the road asks of a model


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", ["llama", "gpt 2", "gemma 2"])
def test_left_padded_generation_with_a_cache_is_that_of_whole_rows(name, kind):
    space, model = SPACES[kind], tuned(SPACES[kind], name)
    theirs = peft_model(space, name)
    prompts = [[9, 4, 11], [9, 4, 5, 6, 7, 8], [9, 4]]
    answers = generate(
        model, prompts, stop=[2], pad=PAD, max_new_tokens=5, batch_size=3, tick=lambda _: None
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        row = list(prompt)
        for token in answer.tokens:
            logits = own_logits(theirs, space, input_ids=torch.tensor([row]))
            assert int(logits[0, -1].argmax()) == token
            row.append(token)


@pytest.mark.parametrize("kind", SPACES)
def test_the_fused_objectives_see_its_head(kind):
    model, inputs = tuned(SPACES[kind]), batch()
    keep = torch.tensor([3, 5])
    states = output_states(model, keep=keep, **inputs)
    assert states.head is not None
    close(states.logits(), model(**inputs).logits[:, keep])


@pytest.mark.parametrize("kind", SPACES)
@torch.no_grad()
def test_movement_is_the_kl_of_whole_rows(kind):
    space, model = SPACES[kind], tuned(SPACES[kind])
    theirs = peft_model(space)
    prompts, answers = [[9, 4, 11], [9, 4, 5, 6]], [[7, 2], [8, 3, 2]]
    found = row_movements(model, Read(prompts, answers, PAD), lambda _: None)
    for prompt, answer, movement in zip(prompts, answers, found, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        p = own_logits(theirs, space, input_ids=ids)[0].log_softmax(-1)
        q = family("llama")(input_ids=ids).logits[0].log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1]
        assert movement.answer == pytest.approx(kl.tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", SPACES)
def test_what_it_does_at_step_0_is_measured(kind):
    model, rows = tuned(SPACES[kind]), make_rows(4)
    plain = answer_logits(family("llama"), rows)
    found = probes.identity(plain, model, rows)
    tuned_logits, base = (
        logits.double().log_softmax(-1) for logits in (answer_logits(model, rows), plain)
    )
    kl = (tuned_logits.exp() * (tuned_logits - base)).sum(-1).mean()
    assert found["switched_off"] == 0.0
    assert found["moves_by_nature"]
    assert found["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert found["kl"] > 1e-4


@torch.no_grad()
def test_in_a_sliding_window_a_prefix_stays_in_sight():
    sizes = SMALL | {"num_hidden_layers": 1, "sliding_window": 4}
    torch.manual_seed(0)
    with quiet_libraries():
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes)).eval()
    model, ids = attach_adapter(model, PREFIX, 0), batch()["input_ids"]
    after = model(input_ids=ids).logits
    with model.disable_adapter():
        before = model(input_ids=ids).logits
    assert (after - before)[:, -1].abs().max() > 1e-3  # nine places behind the prefix


def test_off_inside_off_is_off():
    model, inputs = tuned(PREFIX), batch("none")
    base = family("llama")(**inputs).logits
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(model(**inputs).logits, base)
        assert torch.equal(model(**inputs).logits, base)
    assert not torch.equal(model(**inputs).logits, base)


# --- what is refused


def test_models_that_have_no_place_for_them_are_refused():
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=8, num_layers=1)
    )
    with pytest.raises(ModelError, match="need a causal language model; t5 is none; use lora"):
        attach_adapter(t5, PREFIX, 0)
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1)
    )
    with pytest.raises(ModelError, match="MambaModel takes no position_ids; use lora"):
        attach_adapter(mamba, PROMPT, 0)


def test_an_attention_that_is_not_known_is_refused():
    model = make_llama()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match=r"sdpa or eager, and this model's is 'flex_attention'"):
        attach_adapter(model, PREFIX, 0)


def test_layers_without_keys_and_values_are_named():
    config = transformers.Lfm2Config(
        **{k: v for k, v in SMALL.items() if k != "initializer_range"},
        layer_types=["conv", "full_attention"],
    )
    with quiet_libraries():
        model = transformers.Lfm2ForCausalLM(config)
    with pytest.raises(ModelError, match=r"before layers \[0\] of this lfm2 model.*use lora"):
        attach_adapter(model, PROMPT, 0)
